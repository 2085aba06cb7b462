//! Pods that were there before, against a recording kernel: namespaces are played by files, processes by directories.

use super::fixture::{Boxed, PORTS, attachment, eventually, pod, start, start_in};
use super::*;
use sluice_shared::facts::{Phase, PodFacts};
use std::fs;
use std::os::unix::fs::MetadataExt;

impl Boxed {
    /// The runtime's bind mount of a sandbox's namespace with this address, on which ztunnel listens once it is asked.
    pub(super) fn bind_mount(&self, name: &str, address: &str) -> NetnsId {
        let path = self.bind_mount_path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let meta = fs::File::create(&path).unwrap().metadata().unwrap();
        let id = NetnsId { dev: meta.dev(), inode: meta.ino() };
        self.kernel.put(path, id);
        self.kernel.set_addresses(id, vec![address.parse().unwrap()]);
        self.kernel.set_listening(id, PORTS);
        id
    }

    pub(super) fn bind_mount_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("netns").join(name)
    }

    /// A process in a pod's cgroup, in the namespace of a bind mount.
    fn process(&self, pid: u32, uid: &str, mount: &str) {
        let directory = self.dir.path().join("proc").join(pid.to_string());
        fs::create_dir_all(directory.join("ns")).unwrap();
        fs::write(directory.join("cgroup"), format!("0::/kubepods/pod{uid}/c\n")).unwrap();
        fs::write(directory.join("stat"), format!("{pid} (a) S{} 5", " 0".repeat(18))).unwrap();
        let netns = directory.join("ns/net");
        fs::hard_link(self.dir.path().join("hidden").join(mount), &netns).unwrap();
        let meta = fs::metadata(&netns).unwrap();
        self.kernel.put(netns, NetnsId { dev: meta.dev(), inode: meta.ino() });
    }

    /// A namespace that no bind mount leads to.
    fn hidden_namespace(&self, name: &str, address: &str) -> NetnsId {
        let path = self.dir.path().join("hidden").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let meta = fs::File::create(&path).unwrap().metadata().unwrap();
        let id = NetnsId { dev: meta.dev(), inode: meta.ino() };
        self.kernel.set_addresses(id, vec![address.parse().unwrap()]);
        self.kernel.set_listening(id, PORTS);
        id
    }

    pub(super) async fn shows(&self, facts: PodFacts) {
        self.events.send(Event::Pod(Box::new(facts))).await.unwrap();
    }

    async fn del(&self, container: &str, netns: String) -> Reply {
        let mut attachment = Attachment { netns, ..attachment("u1") };
        attachment.id.container_id = container.into();
        self.cni(Verb::Del(attachment), None).await
    }

    pub(super) fn remembered(&self) -> Vec<crate::journal::Sandbox> {
        self.cx.journal.pods().unwrap()
    }

    pub(super) async fn pending_because(&self, uid: &str, why: &str) {
        eventually(&format!("{uid} is pending: {why}"), || {
            self.state(uid).is_some_and(|(state, said)| state == State::Pending && said.contains(why))
        })
        .await;
    }
}

/// A pod that ran before the agent, found in a bind mount and captured.
async fn with_an_adopted_pod() -> (Boxed, fixture::Ztunnel, NetnsId) {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.bind_mount("cni-1", "10.0.0.2");
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    (agent, ztunnel, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ran_before_the_agent_is_found_and_captured() {
    let (agent, ztunnel, id) = with_an_adopted_pod().await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
    assert!(!agent.ran(id).is_empty());
    let [sandbox] = &agent.remembered()[..] else { panic!() };
    assert!(sandbox.adopted && sandbox.redirected && sandbox.netns == id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_found_says_what_was_tried_and_is_looked_for_again() {
    let agent = start().await;
    let _ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    for why in ["the runtime: off (`criSocket` is empty)", "bind mounts: ", "processes: "] {
        agent.pending_because("u1", why).await;
    }
    fs::create_dir_all(agent.dir.path().join("proc")).unwrap();
    agent.bind_mount("cni-1", "10.0.0.2");
    agent.shows(PodFacts { ips: vec![], ..pod("u1", None) }).await;
    agent.pending_because("u1", "no address yet").await;
    eventually_enabled(&agent, "u1").await;
}

/// Shows the pod anew until it is captured: what was not found stands for some seconds.
async fn eventually_enabled(agent: &Boxed, uid: &str) {
    for _ in 0..100 {
        agent.shows(pod(uid, None)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if agent.state(uid).is_some_and(|(state, _)| state == State::Enabled) {
            return;
        }
    }
    panic!("not captured within 10 s: {:?}", agent.state(uid));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_del_let_go_of_is_not_taken_back() {
    let (agent, ztunnel, _) = with_an_adopted_pod().await;
    let path = agent.bind_mount_path("cni-1").display().to_string();
    assert_eq!(agent.del("c-any", path).await, Reply::Ok { outcome: "released".into() });
    agent.pending_because("u1", "what DEL let go of").await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert!(agent.remembered().is_empty());
}

/// Between a pod's DEL and the end of its object, its address may be that of another pod whose ADD is still under way.
#[tokio::test(flavor = "multi_thread")]
async fn after_del_another_namespace_with_its_address_is_not_its_own() {
    let (agent, ztunnel, _) = with_an_adopted_pod().await;
    let path = agent.bind_mount_path("cni-1");
    assert_eq!(
        agent.del("c-any", path.display().to_string()).await,
        Reply::Ok { outcome: "released".into() }
    );
    // The file lives on elsewhere, so that its inode is not the next one's.
    fs::rename(path, agent.dir.path().join("unmounted")).unwrap();
    let anothers = agent.bind_mount("cni-2", "10.0.0.2");
    // What was looked at a moment ago does not have it yet.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    agent.shows(pod("u1", None)).await;
    agent.pending_because("u1", "only its address speaks for").await;
    assert!(agent.ran(anothers).is_empty());
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    agent.sandbox("u1");
    assert_eq!(agent.add("u1", "u1").await, Reply::Ok { outcome: "captured".into() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_del_of_an_older_sandbox_is_not_about_the_one_that_lives() {
    let (agent, ztunnel, _) = with_an_adopted_pod().await;
    agent.bind_mount("cni-0", "10.0.0.9");
    for netns in [String::new(), agent.bind_mount_path("cni-0").display().to_string(), "/gone".into()] {
        let reply = agent.del("c-old", netns).await;
        assert_eq!(reply, Reply::Ok { outcome: "another attachment of this pod is in force".into() });
    }
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_del_after_the_namespace_is_gone_releases_it() {
    let (agent, ztunnel, _) = with_an_adopted_pod().await;
    fs::remove_file(agent.bind_mount_path("cni-1")).unwrap();
    agent.kernel.put(agent.bind_mount_path("cni-1"), NetnsId { dev: 1, inode: 1 });
    assert_eq!(agent.del("c-any", String::new()).await, Reply::Ok { outcome: "released".into() });
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_add_takes_its_place() {
    let (agent, ztunnel, old) = with_an_adopted_pod().await;
    let new = agent.sandbox("u1");
    assert_eq!(agent.add("u1", "u1").await, Reply::Ok { outcome: "captured".into() });
    assert_ne!(old, new);
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1", "add u1"]);
    assert!(matches!(&agent.remembered()[..], [sandbox] if sandbox.netns == new && !sandbox.adopted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_was_made_anew_is_found_anew() {
    let (agent, ztunnel, _) = with_an_adopted_pod().await;
    let new = agent.bind_mount("cni-2", "10.0.0.3");
    // What was looked at a moment ago does not have it yet.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    agent.shows(PodFacts { ips: vec!["10.0.0.3".parse().unwrap()], ..pod("u1", None) }).await;
    eventually(
        "the new one is captured",
        || matches!(&agent.remembered()[..], [sandbox] if sandbox.netns == new && sandbox.redirected),
    )
    .await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1", "add u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_source_forgets_stays_captured_until_its_namespace_goes() {
    let (agent, ztunnel, id) = with_an_adopted_pod().await;
    let written = agent.ran(id).len();
    agent.events.send(Event::PodGone(PodUid::new("u1").unwrap())).await.unwrap();
    agent.cx.registry.look(None);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((agent.ran(id).len(), ztunnel.told().len()), (written, 2), "its containers may still run");
    fs::remove_file(agent.bind_mount_path("cni-1")).unwrap();
    agent.cx.registry.look(None);
    // With the task its last handle on the namespace is gone.
    eventually("nothing is known of it", || agent.cx.registry.showings().is_empty()).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert!(agent.remembered().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_has_it_in_its_first_snapshot() {
    let (agent, ztunnel, id) = with_an_adopted_pod().await;
    ztunnel.task.abort();
    let Boxed { kernel, dir, zds, .. } = agent;
    zds.close().await;
    let agent = start_in(dir, kernel).await;
    let ztunnel = agent.ztunnel().await;
    assert_eq!(ztunnel.told(), ["add u1", "snapshot"]);
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    assert!(matches!(&agent.remembered()[..], [sandbox] if sandbox.netns == id && sandbox.adopted));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pods_with_one_address_neither_gets_the_namespace_of_the_other() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.bind_mount("cni-1", "10.0.0.2");
    agent.shows(pod("u1", None)).await;
    agent.shows(pod("u2", None)).await;
    agent.synced().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.pending_because("u1", "of the pod with uid u2 as well").await;
    agent.pending_because("u2", "of the pod with uid u1 as well").await;
    assert_eq!(ztunnel.told(), ["snapshot"]);
    // One of them is done with the network: the address is the other's.
    agent.shows(PodFacts { phase: Phase::Succeeded, ..pod("u1", None) }).await;
    agent.becomes("u1", State::Outside).await;
    eventually_enabled(&agent, "u2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_another_pod_holds_is_not_adopted() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    agent.add("u1", "u1").await;
    agent.kernel.set_addresses(id, vec!["10.0.0.7".parse().unwrap()]);
    let path = agent.bind_mount_path("planted");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    agent.kernel.put(&path, id);
    agent.shows(PodFacts { ips: vec!["10.0.0.7".parse().unwrap()], ..pod("u2", None) }).await;
    agent.pending_because("u2", "is held by the pod with uid u1").await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn found_by_a_process_it_outlives_that_process() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.hidden_namespace("a", "10.0.0.2");
    agent.process(41, "u1", "a");
    agent.process(42, "u1", "a");
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    let process = |pid: u32| agent.dir.path().join(format!("proc/{pid}"));
    assert_eq!(agent.remembered()[0].path, process(41).join("ns/net"));
    fs::remove_dir_all(process(41)).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    agent.cx.registry.look(None);
    eventually("it is found by another", || agent.remembered()[0].path == process(42).join("ns/net")).await;
    // With no process left, as between two runs of a container, the source's word counts.
    fs::remove_dir_all(process(42)).unwrap();
    agent.cx.registry.look(None);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((agent.remembered()[0].netns, ztunnel.told().len()), (id, 2));
    agent.events.send(Event::PodGone(PodUid::new("u1").unwrap())).await.unwrap();
    eventually("nothing is known of it", || {
        agent.cx.registry.look(None);
        agent.cx.registry.showings().is_empty()
    })
    .await;
}

/// After a reboot addresses are given anew: u1's object still shows the old one, while u2, outside the mesh, has it, by an
/// ADD that no agent saw.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_address_led_to_is_let_go_of_when_another_pod_shows_it() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let of_u2 = agent.bind_mount("cni-2", "10.0.0.2");
    agent.namespace("demo", Some("ambient")).await;
    agent.namespace("plain", None).await;
    let u2 = |address: &str| PodFacts {
        namespace: "plain".into(),
        ips: address.parse().into_iter().collect(),
        ..pod("u2", None)
    };
    agent.shows(pod("u1", None)).await;
    agent.shows(u2("")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    agent.shows(u2("10.0.0.2")).await;
    agent.pending_because("u1", "of the pod with uid u2 as well").await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert_eq!(agent.ran(of_u2).last(), Some(&lower(Backend::Nftables, Step::Remove)));
    assert!(agent.remembered().is_empty());
    // It was the other object that was old: the namespace is taken back.
    agent.shows(u2("10.0.0.7")).await;
    eventually_enabled(&agent, "u1").await;
}

/// Restarts an agent that has adopted u1, found by a process, after `meanwhile`: u1 must not be in its first snapshot, and
/// not be captured when the source shows it.
async fn is_nobodys_after_a_restart(meanwhile: impl FnOnce(&RecordingKernel, &Path, NetnsId)) {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.hidden_namespace("a", "10.0.0.2");
    agent.process(41, "u1", "a");
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    ztunnel.task.abort();
    let Boxed { kernel, dir, zds, .. } = agent;
    zds.close().await;
    meanwhile(&kernel, &dir.path().join("proc/41"), id);
    drop(kernel.take_log());
    let agent = start_in(dir, kernel).await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.shows(PodFacts { ips: vec![], namespace: "plain".into(), ..pod("u9", None) }).await;
    agent.shows(pod("u1", None)).await;
    agent.synced().await;
    agent.pending_because("u1", "processes: ").await;
    assert_eq!(ztunnel.told(), ["snapshot"]);
    assert!(agent.ran(id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_pid_and_inode_are_nobodys_after_a_restart() {
    is_nobodys_after_a_restart(|_, process, _| {
        fs::write(process.join("cgroup"), "0::/kubepods/podu9/c\n").unwrap();
    })
    .await;
    // A pod may make cgroups of any name below its own.
    is_nobodys_after_a_restart(|_, process, _| {
        fs::write(process.join("cgroup"), "0::/kubepods/podu9/c/kubepods/podu1/c\n").unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_the_pods_address_is_nobodys_after_a_restart() {
    is_nobodys_after_a_restart(|kernel, _, id| {
        kernel.set_addresses(id, vec!["10.0.0.66".parse().unwrap()]);
    })
    .await;
}

/// Whoever may name a node can write an object that claims to stand for a static pod. It is never run.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_another_name_is_not_the_pods_though_it_claims_its_uid() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.namespace("evil", None).await;
    agent.synced().await;
    agent.shows(pod("u1", None)).await;
    agent.sandbox("u1");
    assert_eq!(agent.add("u1", "u1").await, Reply::Ok { outcome: "captured".into() });
    agent.shows(PodFacts { namespace: "evil".into(), name: "static".into(), ..pod("u1", None) }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    agent.becomes("u1", State::Enabled).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
    // Nor does it count when it came first.
    agent.sandbox("u2");
    agent.shows(PodFacts { namespace: "evil".into(), ..pod("u2", None) }).await;
    assert_eq!(agent.add("u2", "u2").await, Reply::Ok { outcome: "captured".into() });
}
