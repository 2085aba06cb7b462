//! Several ztunnels at once, as during an upgrade, and one that dies.

use crate::agent::{ANSWER, LONG, Node, Told, pod, uid};
use crate::ztunnel::{Request, Ztunnel, added};
use sluice_agent::zds::{AddError, Workload};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn the_newest_ready_ztunnel_gets_the_adds_and_all_get_the_dels() {
    let mut node = Node::start();
    let (mut old, first) = node.ready_ztunnel().await;
    let (mut new, second) = node.ready_ztunnel().await;
    let connections: Vec<_> =
        node.handle.connections().iter().map(|c| (c.peer.connection, c.ready)).collect();
    assert_eq!(connections, [(second, true), (first, true)]);
    let add = node.add("u1", LONG);
    let request = new.expect_add("u1").await;
    new.ack(&request).await;
    assert_eq!(add.await.unwrap().unwrap().connection, second);
    assert!(old.is_silent_for(Duration::from_millis(50)).await);

    let gone = tokio::spawn(node.handle.del(&uid("u1")));
    for ztunnel in [&mut old, &mut new] {
        assert!(!gone.is_finished());
        assert_eq!(ztunnel.request().await, Some(Request::Del("u1".into())));
        ztunnel.ack(&Request::Del("u1".into())).await;
    }
    gone.await.unwrap();
}

#[tokio::test]
async fn an_add_during_a_snapshot_goes_to_the_ready_one_now_and_to_the_new_one_after_it() {
    let mut node = Node::start();
    let _watched = node.want("u1");
    let (mut old, first) = node.ready_ztunnel().await;
    let mut new = Ztunnel::connect(&node.path).await;
    let pending = new.expect_add("u1").await;
    let add = node.add("u2", LONG);
    let request = old.expect_add("u2").await;
    old.ack(&request).await;
    assert_eq!(add.await.unwrap().unwrap().connection, first, "the hand-over waited for a snapshot");
    new.ack(&pending).await;
    assert_eq!(added(&new.snapshot().await), Vec::<&str>::new());
    let request = new.expect_add("u2").await;
    new.ack(&request).await;
    node.until(|told| (*told == Told::Answered(2, "u2".into(), Ok(()))).then_some(())).await;
    assert_eq!(node.handle.state(&uid("u2")).acked_by, [2, 1]);
}

#[tokio::test]
async fn an_add_before_a_snapshot_is_not_missed() {
    let mut node = Node::start();
    node.agent.prepared.forget_permits(usize::MAX);
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    assert_eq!(node.told().await, Told::Connected(1));
    // Not on the agent's list, so that only the Add can bring it.
    let (workload, _watched) = pod("u1");
    let handle = node.handle.clone();
    let add = tokio::spawn(async move { handle.add(workload, Instant::now() + LONG).await });
    assert!(
        ztunnel.is_silent_for(Duration::from_millis(50)).await,
        "the agent was not ready for this ztunnel"
    );
    node.agent.prepared.add_permits(1);
    assert_eq!(ztunnel.snapshot().await, [Request::SnapshotSent]);
    let request = ztunnel.expect_add("u1").await;
    ztunnel.ack(&request).await;
    add.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_added_while_the_snapshot_names_it_is_sent_once() {
    let mut node = Node::start();
    let (workload, _watched) = pod("u1");
    let add = node.add_workload(workload, LONG);
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    add.await.unwrap().unwrap();
    assert!(ztunnel.is_silent_for(Duration::from_millis(50)).await, "the pod was sent twice");
}

#[tokio::test]
async fn when_the_newest_dies_the_next_gets_what_it_lacks() {
    let mut node = Node::start();
    let (mut old, first) = node.ready_ztunnel().await;
    let (mut new, _) = node.ready_ztunnel().await;
    let add = node.add("u1", LONG);
    let request = new.expect_add("u1").await;
    new.ack(&request).await;
    add.await.unwrap().unwrap();
    let add = node.add("u2", LONG);
    new.expect_add("u2").await;
    drop(new);
    let mut requests = old.serve_until(|_| true).await;
    requests.extend(old.serve_until(|_| true).await);
    let mut got = added(&requests);
    got.sort_unstable();
    assert_eq!(got, ["u1", "u2"], "u2 is sent again, and u1 had only been told to the one that died");
    assert_eq!(add.await.unwrap().unwrap().connection, first);
}

#[tokio::test]
async fn a_ztunnel_that_hangs_delays_an_add_by_one_timeout_at_most() {
    let mut node = Node::impatient();
    let (mut old, first) = node.ready_ztunnel().await;
    let (mut hung, _) = node.ready_ztunnel().await;
    let begun = Instant::now();
    let adds = [node.add("u1", LONG), node.add("u2", LONG)];
    hung.request().await.unwrap();
    let old = tokio::spawn(async move {
        old.serve_until(|_| true).await;
        old.serve_until(|_| true).await;
        old
    });
    for add in adds {
        assert_eq!(add.await.unwrap().unwrap().connection, first);
    }
    let took = begun.elapsed();
    assert!(took >= ANSWER && took < 5 * ANSWER, "{took:?}");
    hung.expect_end().await;
    drop(old.await.unwrap());
}

#[tokio::test]
async fn a_ztunnel_that_hangs_in_its_snapshot_delays_no_add() {
    let mut node = Node::start();
    let _watched = node.want("u1");
    let (mut old, first) = node.ready_ztunnel().await;
    let mut hung = Ztunnel::connect(&node.path).await;
    hung.expect_add("u1").await;
    let add = node.add("u2", LONG);
    let request = old.expect_add("u2").await;
    old.ack(&request).await;
    assert_eq!(add.await.unwrap().unwrap().connection, first);
}

#[tokio::test]
async fn a_del_ends_when_a_hung_ztunnel_is_dropped() {
    let mut node = Node::impatient();
    let (mut hung, _) = node.ready_ztunnel().await;
    let gone = node.handle.del(&uid("u1"));
    assert_eq!(hung.request().await, Some(Request::Del("u1".into())));
    gone.await;
    hung.expect_end().await;
    assert!(node.handle.connections().is_empty());
}

#[tokio::test]
async fn if_no_ztunnel_answers_in_time_the_add_says_so() {
    let mut node = Node::start();
    let (mut hung, _) = node.ready_ztunnel().await;
    let add = node.add("u1", ANSWER);
    hung.expect_add("u1").await;
    let error = add.await.unwrap().unwrap_err();
    assert!(matches!(error, AddError::NoAnswer(waited) if waited >= ANSWER), "{error}");
}

#[tokio::test]
async fn a_restarted_ztunnel_is_told_everything_anew() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let (workload, _watched) = pod("u1");
    let moved = Workload { netns: pod("u1").0.netns, ..workload.clone() };
    for workload in [workload, moved] {
        let add = node.add_workload(workload, LONG);
        let request = ztunnel.expect_add("u1").await;
        ztunnel.ack(&request).await;
        add.await.unwrap().unwrap();
    }
    drop(ztunnel);
    let (ztunnel, connection) = node.ready_ztunnel().await;
    assert_eq!((connection, ztunnel.up.len()), (2, 1));
    let told = node.told_so_far();
    assert!(!told.contains(&Told::Disconnected(2)), "{told:?}");
    assert_eq!(node.handle.state(&uid("u1")).acked_by, [2]);
}

/// Pods come and go by the hundred while ztunnels come and go: in the end the newest serves what is wanted, and nothing
/// else. The strict reader watches the protocol all along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_pods_and_ztunnels_ends_as_the_agent_wants_it() {
    let node = Node::with(|config| config.accept_burst = 100);
    let serving = |path: std::path::PathBuf| async move { Ztunnel::connect(&path).await.serve().await };
    let mut adds = Vec::new();
    let mut gone = Vec::new();
    for round in 0..4 {
        let ztunnel = tokio::spawn(serving(node.path.clone()));
        node.until_newest(|newest| newest.peer.connection == round + 1).await;
        for n in 0..60 {
            adds.push((round, n, node.add(&format!("r{round}-{n:02}"), LONG)));
            tokio::task::yield_now().await;
        }
        for n in (0..60).step_by(3) {
            let name = format!("r{round}-{n:02}");
            node.agent.unwant(&name);
            gone.push(tokio::spawn(node.handle.del(&uid(&name))));
        }
        if round % 2 == 0 {
            ztunnel.abort();
        }
    }
    for (round, n, add) in adds {
        let answer = add.await.unwrap();
        let deleted = n % 3 == 0;
        assert!(answer.is_ok() || deleted && answer == Err(AddError::Withdrawn), "r{round}-{n}: {answer:?}");
    }
    for gone in gone {
        gone.await.unwrap();
    }
    let last = tokio::spawn(serving(node.path.clone()));
    node.until_newest(|newest| newest.peer.connection == 5 && newest.ready).await;
    let barrier = node.add("barrier", LONG).await.unwrap().unwrap();
    assert_eq!(barrier.connection, 5);
    node.server.close().await;
    let up = last.await.unwrap().up;
    assert_eq!(up.len(), 4 * 40 + 1, "{:?}", up.keys());
    assert!(up.keys().all(|name| name == "barrier" || name[3..].parse::<u32>().unwrap() % 3 != 0));
}
