//! No descriptor stays open, whatever happened on a connection. Counted for the whole process, so in a process of its
//! own.

use crate::agent::{LONG, Node, pod, uid};
use crate::ztunnel::Ztunnel;
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

/// For an Add that nobody answers: until after the connection has been given up.
const IN_VAIN: Duration = Duration::from_secs(1);

#[test]
fn no_descriptor_is_leaked() {
    let alone = ["--exact", "leaks::counted_alone", "--ignored", "--nocapture"];
    let output = Command::new(std::env::current_exe().unwrap()).args(alone).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "no_descriptor_is_leaked runs it in a process of its own"]
async fn counted_alone() {
    let mut node = Node::with(|config| {
        config.accept_burst = 1000;
        // One waits for it in each round, and the others must have answered by then.
        config.answer_timeout = Duration::from_millis(500);
    });
    round(&mut node).await;
    let before = settled(usize::MAX).await;
    for _ in 0..20 {
        round(&mut node).await;
    }
    let after = settled(before).await;
    assert!(after <= before, "{before} descriptors before, {after} after");
}

/// A connection that ends well, one that hangs with an Add, one that says rubbish, one that is refused.
async fn round(node: &mut Node) {
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    for name in ["u1", "u2"] {
        let handle = node.handle.clone();
        let (workload, _) = pod(name);
        let add = tokio::spawn(async move { handle.add(workload, Instant::now() + LONG).await });
        let request = ztunnel.expect_add(name).await;
        ztunnel.ack(&request).await;
        add.await.unwrap().unwrap();
    }
    let serving = tokio::spawn(ztunnel.serve());
    node.handle.del(&uid("u1")).await;
    serving.abort();
    assert!(serving.await.is_err());

    let (mut hung, _) = node.ready_ztunnel().await;
    let handle = node.handle.clone();
    let add = tokio::spawn(async move { handle.add(pod("u3").0, Instant::now() + IN_VAIN).await });
    hung.expect_add("u3").await;
    hung.expect_end().await;
    add.await.unwrap().unwrap_err();

    let mut rubbish = Ztunnel::mute(&node.path).await;
    rubbish.send(b"\xff\xff").await;
    rubbish.expect_end().await;
}

/// How many descriptors are open, once they are no more than `most` or do not become fewer.
async fn settled(most: usize) -> usize {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let begun = Instant::now();
    while open() > most && begun.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    open()
}
