//! A runtime that has its say only after a namespace was taken by its address.

#[path = "../../../tests/kernel/adopt/runtime.rs"]
#[allow(dead_code, reason = "the kernel tests need the rest of it")]
mod runtime;

use super::fixture::{Boxed, Ztunnel, pod, start_in};
use super::*;
use runtime::{Manner, Runtime, Sandbox, info};
use sluice_shared::facts::PodFacts;

fn sandbox(uid: &str, path: &Path) -> Sandbox {
    Sandbox {
        id: format!("sandbox-{uid}"),
        uid: uid.into(),
        name: format!("pod-{uid}"),
        attempt: 0,
        ready: true,
        ip: "10.0.0.2".into(),
        info: info(&path.display().to_string(), 0),
    }
}

fn u2(address: &str) -> PodFacts {
    let ips = address.parse().into_iter().collect();
    PodFacts { namespace: "plain".into(), ips, ..pod("u2", None) }
}

/// u1 was taken by its address, while the runtime showed no sandbox at all. Now it shows that of `owner`.
async fn taken_by_address(owner: &str) -> (Boxed, Ztunnel) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::listen(&dir.path().join("cri.sock"), Vec::new(), Manner::Honest);
    let agent = start_in(dir, RecordingKernel::default()).await;
    let ztunnel = agent.ztunnel().await;
    agent.bind_mount("cni-1", "10.0.0.2");
    agent.namespace("demo", Some("ambient")).await;
    agent.namespace("plain", None).await;
    agent.shows(pod("u1", None)).await;
    agent.shows(u2("")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    assert!(agent.remembered()[0].attachment.is_none());
    runtime.sandboxes.lock().unwrap().push(sandbox(owner, &agent.bind_mount_path("cni-1")));
    // What it said a moment ago holds for a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    (agent, ztunnel)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_runtimes_word_a_pod_keeps_what_another_shows_an_address_of() {
    let (agent, ztunnel) = taken_by_address("u1").await;
    agent.shows(u2("10.0.0.2")).await;
    let vouched = || agent.remembered().iter().any(|sandbox| sandbox.attachment.is_some());
    eventually("the runtime has vouched for it", vouched).await;
    assert_eq!(agent.state("u1").unwrap().0, State::Enabled);
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_runtime_denies_is_let_go_of() {
    let (agent, ztunnel) = taken_by_address("u2").await;
    agent.cx.tell(&PodUid::new("u1").unwrap(), Message::Doubt);
    agent.pending_because("u1", "of this node, and none of this pod's").await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
}
