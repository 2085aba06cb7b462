//! Finding the namespaces of pods that ran before the agent, on nodes that lie: real namespaces, bind mounts, processes
//! and cgroups, and a runtime that need not be honest.

mod again;
mod node;
mod runtime;

use nix::sys::stat::Mode;
use node::{Node, Pod};
use runtime::{Manner, Sandbox, info};
use sluice_agent::adopt::Way;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub const TESTS: &[(&str, fn())] = &[
    ("the_runtimes_word_is_taken", the_runtimes_word),
    ("a_runtime_that_names_a_process_only_is_believed_if_the_process_is_the_pods", by_the_runtimes_process),
    ("a_runtime_that_lies_is_not_believed_and_nobody_else_is_asked", a_runtime_that_lies),
    ("a_runtime_that_does_not_answer_leaves_it_to_the_bind_mounts", a_silent_runtime),
    ("a_runtime_that_hangs_stalls_no_pod", a_hung_runtime),
    ("the_bind_mount_with_the_pods_address_is_found_among_everything_else", bind_mounts),
    ("a_planted_namespace_with_the_pods_address_gets_nobodys_identity", planted),
    ("a_bind_mount_that_was_replaced_is_not_taken_for_what_it_was", replaced_bind_mount),
    ("a_foreign_process_in_the_pods_namespace_changes_nothing", a_foreign_process),
    ("processes_that_left_the_pods_namespace_change_nothing", processes_that_left),
    ("a_recycled_pid_is_nobodys", a_recycled_pid),
    ("a_cgroup_below_anothers_changes_nothing", a_planted_cgroup),
    ("a_runtime_that_names_it_for_another_is_not_outvoted_by_an_address", again::named_for_another),
    ("a_runtime_that_has_the_nodes_pods_has_all_of_them", again::a_whole_list),
    ("a_recycled_pid_and_inode_are_not_had_again", again::recycled),
    ("a_bind_mount_is_had_again_while_it_is_the_pods", again::bind_mount),
    ("a_hundred_and_ten_pods_are_found_at_once", a_full_node),
];

fn the_runtimes_word() {
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    let pods = [Pod::new("u1", &["10.0.0.2", "fd00::2"]), Pod::new("u2", &["10.0.0.3"])];
    for pod in &pods {
        let path = node.bind(&format!("cni-{}", pod.wanted.uid), &pod.handle());
        cri.sandboxes.lock().expect("lock").push(pod.sandbox(&path, 0));
    }
    // A dead sandbox of an earlier attempt.
    let older = Sandbox { id: "old".into(), ready: false, ..pods[0].sandbox(Path::new("/gone"), 0) };
    let newest = node.mount_path(&format!("cni-{}", pods[0].wanted.uid));
    let newer = Sandbox { attempt: 1, ..pods[0].sandbox(&newest, 0) };
    cri.sandboxes.lock().expect("lock")[0] = newer;
    cri.sandboxes.lock().expect("lock").push(older);
    for pod in &pods {
        let found = node.finds(pod);
        assert_eq!(
            (found.way, found.path),
            (Way::Runtime, node.mount_path(&format!("cni-{}", pod.wanted.uid)))
        );
        assert_eq!(found.sandbox, Some(format!("sandbox-{}", pod.wanted.uid)));
    }
    assert_eq!(cri.lists.load(Ordering::SeqCst), 1, "one list for all");
}

fn by_the_runtimes_process() {
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    let pod = Pod::new("u1", &["10.0.0.2"]);
    let pid = node.process(Some(&pod.ns), &pod.cgroup());
    *cri.sandboxes.lock().expect("lock") = vec![pod.sandbox(Path::new("/run/netns/not-mounted-here"), pid)];
    let found = node.finds(&pod);
    assert_eq!((found.way, found.path), (Way::Runtime, format!("/proc/{pid}/ns/net").into()));

    // The number is another process's by now: in the same namespace even, but not of the pod.
    let pod = Pod::new("u2", &["10.0.0.3"]);
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    let pid = node.process(Some(&pod.ns), "");
    *cri.sandboxes.lock().expect("lock") = vec![pod.sandbox(Path::new("/run/netns/not-mounted-here"), pid)];
    node.refuses(&pod, "is not in the pod's cgroup");
    node.refuses(&pod, "HostToContainer");
}

fn a_runtime_that_lies() {
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.3"]));
    let host = Path::new("/proc/self/ns/net");
    type Lie = fn(Sandbox, &Path, &Path) -> Sandbox;
    let lies: [(&str, Lie); 8] = [
        ("belongs to the uid \"u9\"", |honest, _, _| Sandbox { uid: "u9".into(), ..honest }),
        ("says that it is demo/else", |honest, _, _| Sandbox { name: "else".into(), ..honest }),
        ("is not ready", |honest, _, _| Sandbox { ready: false, ..honest }),
        ("has the addresses [10.9.9.9]", |honest, _, _| Sandbox { ip: "10.9.9.9".into(), ..honest }),
        ("has none of the pod's addresses", |honest, others, _| Sandbox {
            info: info(&others.display().to_string(), 0),
            ..honest
        }),
        ("pods' rules are never written there", |honest, _, hosts| Sandbox {
            info: info(&hosts.display().to_string(), 0),
            ..honest
        }),
        ("no plain absolute path", |honest, _, _| Sandbox {
            info: info("/run/netns/../../proc/1/ns/net", 0),
            ..honest
        }),
        ("no network namespace of its own", |honest, _, _| Sandbox {
            info: r#"{"pid":1,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"}]}}}"#.into(),
            ..honest
        }),
    ];
    for (why, lie) in lies {
        let (mut node, cri) = Node::new(Some(Manner::Honest));
        let [path, others, hosts] = [("a", pod.handle()), ("b", other.handle()), ("c", host.to_owned())]
            .map(|(name, namespace)| node.bind(name, &namespace));
        *cri.expect("a runtime").sandboxes.lock().expect("lock") =
            vec![lie(pod.sandbox(&path, 0), &others, &hosts)];
        node.refuses(&pod, why);
    }
}

fn a_silent_runtime() {
    let pod = Pod::new("u1", &["10.0.0.2"]);
    for manner in [
        None,
        Some(Manner::Hangs),
        Some(Manner::HangsOnStatus),
        Some(Manner::Huge),
        Some(Manner::Garbage),
        Some(Manner::Fails),
    ] {
        let (mut node, cri) = Node::new(manner);
        let path = node.bind("a", &pod.handle());
        if let Some(cri) = cri {
            *cri.sandboxes.lock().expect("lock") = vec![pod.sandbox(&path, 0)];
        }
        assert_eq!(node.finds(&pod).way, Way::BindMount, "{manner:?}");
    }
    // One that knows the pod and is caught lying about it is not silent.
    let (mut node, cri) = Node::new(Some(Manner::OfAnother));
    let path = node.bind("a", &pod.handle());
    let other = Pod::new("u2", &["10.0.0.3"]);
    *cri.expect("a runtime").sandboxes.lock().expect("lock") =
        vec![pod.sandbox(&path, 0), other.sandbox(&path, 0)];
    node.refuses(&pod, "it gives that of \"sandbox-u2-");
}

fn a_hung_runtime() {
    for manner in [Manner::Hangs, Manner::HangsOnStatus] {
        let (mut node, cri) = Node::new(Some(manner));
        let pods: Vec<Pod> =
            (1..=30).map(|n| Pod::new(&format!("u{n}"), &[&format!("10.0.0.{n}")])).collect();
        for pod in &pods {
            let path = node.bind(pod.wanted.uid.as_str(), &pod.handle());
            cri.as_ref().expect("a runtime").sandboxes.lock().expect("lock").push(pod.sandbox(&path, 0));
        }
        let took = find_all(&node, &pods, Way::BindMount);
        // One time limit for all of them, not one for each.
        assert!(took < Duration::from_secs(20), "{manner:?}: {took:?}");
    }
}

fn bind_mounts() {
    let (mut node, _) = Node::new(None);
    let pod = Pod::new("u1", &["10.0.0.2", "fd00::2"]);
    let half = Pod::new("half", &["10.0.0.2"]);
    fs::write(node.mount_path("file"), "no namespace").expect("a file");
    std::os::unix::fs::symlink(half.handle(), node.mount_path("link")).expect("a link");
    nix::unistd::mkfifo(&node.mount_path("fifo"), Mode::S_IRWXU).expect("a fifo");
    fs::create_dir(node.mount_path("directory")).expect("a directory");
    node.bind("uts", Path::new("/proc/self/ns/uts"));
    node.bind("host", Path::new("/proc/self/ns/net"));
    node.bind("half", &half.handle());
    node.bind("other", &Pod::new("u2", &["10.0.0.3"]).handle());
    node.refuses(&Pod::new("u3", &["10.0.0.77"]), "has any of its addresses");
    node.bind("pod", &pod.handle());
    // Twice the same namespace is one.
    node.bind("again", &pod.handle());
    std::thread::sleep(Duration::from_millis(1100));
    let found = node.finds(&pod);
    assert_eq!(found.way, Way::BindMount);
    // The host's own addresses make nobody's pod of it: `lo` does not count, and it is never opened.
    node.refuses(&Pod::new("host", &["127.0.0.1"]), "has any of its addresses");
}

fn planted() {
    let (mut node, _) = Node::new(None);
    let pod = Pod::new("u1", &["10.0.0.2"]);
    node.bind("pod", &pod.handle());
    node.bind("planted", &Pod::new("x", &["10.0.0.2"]).handle());
    node.refuses(&pod, "which is the pod's cannot be told");

    // A pod that has given itself the other's address, where the other's own namespace is not to be seen.
    let (mut node, _) = Node::new(None);
    let evil = Pod::new("evil", &["10.0.0.9"]);
    evil.ns.ip("addr add 10.0.0.2/32 dev eth0");
    node.bind("evil", &evil.handle());
    node.knows(&evil);
    node.refuses(&pod, "10.0.0.9 of the pod with uid evil");
}

fn replaced_bind_mount() {
    let (mut node, _) = Node::new(None);
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.3"]));
    node.bind("a", &pod.handle());
    node.finds(&pod);
    node.unbind("a");
    node.bind("a", &other.handle());
    // What was seen a moment ago is looked at again.
    assert!(node.find(&pod.wanted).is_err());
}

fn a_foreign_process() {
    let (mut node, _) = Node::new(None);
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.3"]));
    let first = node.process(Some(&pod.ns), &pod.cgroup());
    node.process(Some(&other.ns), &other.cgroup());
    // nsenter, from another pod's container and from the host.
    node.process(Some(&pod.ns), &other.cgroup());
    node.process(Some(&pod.ns), "");
    node.knows(&pod);
    node.knows(&other);
    for (pod, other) in [(&pod, &other), (&other, &pod)] {
        node.neighbours = Default::default();
        node.knows(other);
        assert_eq!(node.finds(pod).way, Way::Processes);
    }
    assert_eq!(node.finds(&other).aside.len(), 1, "the process in the other's namespace is said");
    node.neighbours = Default::default();
    assert_eq!(node.finds(&pod).path, Path::new(&format!("/proc/{first}/ns/net")), "the oldest");
    // Only the foreigner is left: a process in the namespace is no proof of whose it is.
    node.end(first);
    std::thread::sleep(Duration::from_millis(1100));
    node.refuses(&pod, "is in its cgroup");
}

fn processes_that_left() {
    let (mut node, _) = Node::new(None);
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.3"]));
    node.process(None, &pod.cgroup());
    node.process(Some(&other.ns), &pod.cgroup());
    node.refuses(&pod, "has none of its addresses");
    node.refuses(&pod, "pods' rules are never written there");
    node.process(Some(&pod.ns), &pod.cgroup());
    std::thread::sleep(Duration::from_millis(1100));
    let found = node.finds(&pod);
    assert_eq!(found.aside.len(), 2, "{:?}", found.aside);
}

fn a_recycled_pid() {
    let (mut node, _) = Node::new(None);
    let pod = Pod::new("u1", &["10.0.0.2"]);
    let pid = node.process(Some(&pod.ns), &pod.cgroup());
    node.finds(&pod);
    node.end(pid);
    // The same number, in a namespace with the same address, but not in the pod's cgroup.
    let same_address = Pod::new("x", &["10.0.0.2"]);
    node.process_again(pid, &same_address.ns, "");
    assert!(node.find(&pod.wanted).is_err());
}

fn a_planted_cgroup() {
    let (mut node, _) = Node::new(None);
    let (pod, evil) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("evil", &["10.0.0.9"]));
    evil.ns.ip("addr del 10.0.0.9/32 dev eth0");
    evil.ns.ip("addr add 10.0.0.2/32 dev eth0");
    node.process(Some(&evil.ns), &format!("{}/{}", evil.cgroup(), pod.cgroup()));
    node.knows(&evil);
    node.refuses(&pod, "is in its cgroup");
}

/// Every way finds a hundred and ten pods, all of which ask at the same time.
fn a_full_node() {
    let pods: Vec<Pod> = (1..=110).map(|n| Pod::new(&format!("u{n}"), &[&format!("10.0.0.{n}")])).collect();
    for way in [Way::Runtime, Way::BindMount, Way::Processes] {
        let (mut node, cri) = Node::new((way == Way::Runtime).then_some(Manner::Honest));
        for pod in &pods {
            if way == Way::Processes {
                node.process(Some(&pod.ns), &pod.cgroup());
                continue;
            }
            let path = node.bind(pod.wanted.uid.as_str(), &pod.handle());
            if let Some(cri) = &cri {
                cri.sandboxes.lock().expect("lock").push(pod.sandbox(&path, 0));
            }
        }
        let took = find_all(&node, &pods, way);
        eprintln!("110 pods found by {way} in {took:?}");
        // The target is 3 s for everything; a loaded machine must not fail the test.
        assert!(took < Duration::from_secs(20), "{way}: {took:?}");
        if let Some(cri) = cri {
            assert!(cri.lists.load(Ordering::SeqCst) <= 3, "the list is shared");
            assert_eq!(cri.statuses.load(Ordering::SeqCst), pods.len());
        }
    }
}

fn find_all(node: &Node, pods: &[Pod], way: Way) -> Duration {
    let began = Instant::now();
    let finds = pods.iter().map(|pod| async {
        let found = node.finder.find(&pod.wanted, &node.neighbours).await.expect("found");
        assert_eq!((found.netns.id(), found.way), (pod.id, way));
    });
    node.runtime.block_on(futures_util::future::join_all(finds));
    began.elapsed()
}
