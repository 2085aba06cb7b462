//! The ZDS server against a scripted ztunnel, over real sockets. No root needed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod broken;
mod leaks;
mod several;
mod ztunnel;

use agent::{ANSWER, LONG, Node, Told, pod, uid};
use sluice_agent::zds::{AddError, PodState, Workload};
use std::time::Duration;
use tokio::time::Instant;
use ztunnel::{Request, Ztunnel, added};

#[tokio::test]
async fn a_snapshot_of_500_pods_takes_less_than_2_seconds() {
    let mut node = Node::start();
    let _watched: Vec<_> = (0..500).map(|n| node.want(&format!("u{n:03}"))).collect();
    let (begun, waited) = (Instant::now(), waited_for_a_processor());
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    let requests = ztunnel.snapshot().await;
    // Server and ztunnel are on this thread. What others on a loaded machine took of it is not its own slowness.
    let took = begun.elapsed().saturating_sub(waited_for_a_processor() - waited);
    assert_eq!((requests.len(), ztunnel.up.len()), (501, 500));
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(node.told().await, Told::Connected(1));
    for n in 0..500 {
        assert_eq!(node.told().await, Told::Answered(1, format!("u{n:03}"), Ok(())));
    }
    assert_eq!(node.told().await, Told::Ready(1));
    assert_eq!(node.handle.state(&uid("u499")).acked_by, [1]);
}

/// How long this thread has been ready to run and has not run, in all (`Documentation/scheduler/sched-stats.rst`).
fn waited_for_a_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[tokio::test]
async fn an_add_says_who_the_pod_is_and_carries_its_namespace() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let (workload, _watched) = pod("u1");
    let netns = workload.netns.as_ref().unwrap().id().inode;
    let add = node.add_workload(workload, LONG);
    let request = ztunnel.request().await.unwrap();
    let (name, namespace, service_account) = ("u1-name".into(), "shop".into(), "till".into());
    assert_eq!(request, Request::Add { uid: "u1".into(), name, namespace, service_account, netns });
    assert_eq!(node.handle.state(&uid("u1")), PodState::default());
    ztunnel.ack(&request).await;
    let peer = add.await.unwrap().unwrap();
    assert_eq!((peer.connection, peer.pid), (1, i32::try_from(std::process::id()).unwrap()));
    assert_eq!(node.handle.state(&uid("u1")).acked_by, [1]);
}

#[tokio::test]
async fn one_request_is_in_flight_at_a_time() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let adds: Vec<_> = (0..20).map(|n| node.add(&format!("u{n}"), LONG)).collect();
    for _ in 0..20 {
        let request = ztunnel.request().await.unwrap();
        // The strict reader panics when another one comes before the answer.
        assert!(ztunnel.is_silent_for(Duration::from_millis(5)).await);
        ztunnel.ack(&request).await;
    }
    for add in adds {
        add.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pod_whose_namespace_is_not_known_is_kept_within_the_snapshot_only() {
    let mut node = Node::start();
    let (known, _watched) = pod("u1");
    let unknown = Workload { netns: None, uid: uid("u2"), ..known.clone() };
    node.agent.want(known);
    node.agent.want(unknown.clone());
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    ztunnel.up.insert("u2".into(), 7);
    ztunnel.up.insert("u3".into(), 8);
    let requests = ztunnel.snapshot().await;
    assert_eq!(requests[1..], [Request::Keep("u2".into()), Request::SnapshotSent]);
    assert_eq!(ztunnel.up.keys().collect::<Vec<_>>(), ["u1", "u2"]);
    node.until(|told| (*told == Told::Ready(1)).then_some(())).await;
    assert_eq!(node.handle.state(&uid("u2")), PodState::default(), "a Keep proves no listener");
    assert!(matches!(node.add_workload(unknown, LONG).await.unwrap(), Err(AddError::Refused(_))));
    assert!(ztunnel.is_silent_for(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_refused_pod_is_offered_again_until_it_is_served() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let add = node.add("u1", LONG);
    ztunnel.expect_add("u1").await;
    let backtrace = "\n  0: frame".repeat(300);
    ztunnel.nack(&format!("failure to start proxy : Bind(AddrInUse){backtrace}")).await;
    let reason = "failure to start proxy : Bind(AddrInUse)".to_owned();
    assert_eq!(add.await.unwrap(), Err(AddError::Refused(reason.clone())));
    let state = node.handle.state(&uid("u1"));
    assert_eq!((state.acked_by.len(), state.last_nack.as_ref()), (0, Some(&reason)));

    // ztunnel says nothing when its own retry succeeds, so the agent asks again.
    ztunnel.expect_add("u1").await;
    ztunnel.nack("failure to start proxy : still").await;
    let request = ztunnel.expect_add("u1").await;
    ztunnel.ack(&request).await;
    node.until(|told| (*told == Told::Answered(1, "u1".into(), Ok(()))).then_some(())).await;
    assert_eq!(node.handle.state(&uid("u1")), PodState { acked_by: vec![1], last_nack: None });
}

#[tokio::test]
async fn a_refused_pod_that_nobody_wants_is_not_offered_again() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let add = node.add("u1", LONG);
    ztunnel.expect_add("u1").await;
    ztunnel.nack("no").await;
    add.await.unwrap().unwrap_err();
    node.agent.unwant("u1");
    let gone = node.handle.del(&uid("u1"));
    assert_eq!(ztunnel.request().await, Some(Request::Del("u1".into())));
    ztunnel.ack(&Request::Del("u1".into())).await;
    gone.await;
    assert_eq!(node.handle.state(&uid("u1")), PodState::default());
    assert!(ztunnel.is_silent_for(Duration::from_millis(1500)).await);
}

#[tokio::test]
async fn a_refusal_within_the_snapshot_does_not_stop_it() {
    let mut node = Node::start();
    let _watched = [node.want("u1"), node.want("u2")];
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    ztunnel.expect_add("u1").await;
    ztunnel.nack("failure to start proxy : no loopback").await;
    assert_eq!(added(&ztunnel.snapshot().await), ["u2"]);
    node.until(|told| (*told == Told::Ready(1)).then_some(())).await;
    assert!(node.handle.state(&uid("u1")).last_nack.is_some());
    let request = ztunnel.expect_add("u1").await;
    ztunnel.ack(&request).await;
}

#[tokio::test]
async fn a_pod_that_ztunnel_cannot_read_is_never_sent() {
    let mut node = Node::start();
    let (mut workload, mut watched) = pod("u1");
    workload.service_account = "x".repeat(2000);
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let error = node.handle.add(workload, Instant::now() + LONG).await.unwrap_err();
    assert!(matches!(&error, AddError::Refused(why) if why.contains("1023")), "{error}");
    assert!(watched.is_gone());
    let add = node.add("u2", LONG);
    let request = ztunnel.expect_add("u2").await;
    ztunnel.ack(&request).await;
    add.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_ztunnel_an_add_waits_until_its_deadline_and_a_del_does_not() {
    let mut node = Node::start();
    let ready = node.handle.any_ready();
    let add = node.add("u1", Duration::from_millis(50));
    let error = add.await.unwrap().unwrap_err();
    assert!(matches!(error, AddError::NoZtunnel(waited) if waited >= Duration::from_millis(50)), "{error}");
    node.agent.unwant("u1");
    node.handle.del(&uid("u1")).await;

    let add = node.add("u2", LONG);
    assert!(!*ready.borrow());
    let (_ztunnel, connection) = node.ready_ztunnel().await;
    assert_eq!(add.await.unwrap().unwrap().connection, connection);
    assert!(*ready.borrow());
}

#[tokio::test]
async fn an_add_ends_when_its_pod_is_deleted() {
    let node = Node::start();
    let add = node.add("u1", LONG);
    while !add.is_finished() {
        node.handle.del(&uid("u1")).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(add.await.unwrap(), Err(AddError::Withdrawn));
}

#[tokio::test]
async fn a_pod_deleted_during_the_snapshot_does_not_come_back() {
    let mut node = Node::start();
    let _watched = [node.want("u1"), node.want("u2"), node.want("u3"), node.want("u4")];
    let handle = node.handle.clone();
    *node.agent.meanwhile.lock().unwrap() = Some(Box::new(move || drop(handle.del(&uid("u4")))));
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    let first = ztunnel.expect_add("u1").await;
    let mut gone = Vec::new();
    for name in ["u1", "u2"] {
        node.agent.unwant(name);
        gone.push(node.handle.del(&uid(name)));
    }
    let late = node.add("u5", LONG);
    ztunnel.ack(&first).await;
    assert_eq!(added(&ztunnel.snapshot().await), ["u3"], "u1 was sent before, u2 and u4 must not be");
    // What was deleted or added meanwhile comes after the snapshot, whatever was told before.
    let rest = ztunnel.serve_until(|request| matches!(request, Request::Add { .. })).await;
    let dels = [Request::Del("u1".into()), Request::Del("u2".into())];
    assert_eq!((&rest[..2], added(&rest)), (&dels[..], vec!["u5"]));
    for gone in gone {
        gone.await;
    }
    late.await.unwrap().unwrap();
    assert_eq!(ztunnel.up.keys().collect::<Vec<_>>(), ["u3", "u5"]);
    node.until(|told| (*told == Told::Ready(1)).then_some(())).await;
}

#[tokio::test]
async fn a_del_takes_back_an_add_that_waits() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let _first = node.add("u1", LONG);
    let first = ztunnel.expect_add("u1").await;
    let (workload, mut watched) = pod("u2");
    let handle = node.handle.clone();
    let second = tokio::spawn(async move { handle.add(workload, Instant::now() + LONG).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let gone = node.handle.del(&uid("u2"));
    assert_eq!(second.await.unwrap(), Err(AddError::Withdrawn));
    assert!(watched.is_gone(), "the namespace of a deleted pod is held");
    ztunnel.ack(&first).await;
    assert_eq!(ztunnel.request().await, Some(Request::Del("u2".into())));
    ztunnel.ack(&Request::Del("u2".into())).await;
    gone.await;
}

#[tokio::test]
async fn a_namespace_is_held_until_it_is_answered_and_no_longer() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let (workload, mut watched) = pod("u1");
    let handle = node.handle.clone();
    let add = tokio::spawn(async move { handle.add(workload, Instant::now() + LONG).await });
    let request = ztunnel.expect_add("u1").await;
    assert!(!watched.is_gone());
    ztunnel.ack(&request).await;
    add.await.unwrap().unwrap();
    while !watched.is_gone() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_pods_are_never_served_in_one_namespace() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let (old, _watched) = pod("old");
    let new = Workload { uid: uid("new"), ..old.clone() };
    let add = node.add_workload(old.clone(), LONG);
    let request = ztunnel.expect_add("old").await;
    ztunnel.ack(&request).await;
    add.await.unwrap().unwrap();
    let add = node.add_workload(new, LONG);
    let requests = ztunnel.serve_until(|request| matches!(request, Request::Add { .. })).await;
    assert_eq!((&requests[0], added(&requests)), (&Request::Del("old".into()), vec!["new"]));
    add.await.unwrap().unwrap();
    assert_eq!(node.handle.state(&uid("old")), PodState::default());

    // Both are still on the agent's list: a new ztunnel gets one of them, and the other when that one is gone.
    let mut next = ztunnel.reconnect(&node.path).await;
    let requests = next.snapshot().await;
    assert_eq!(added(&requests), ["new"]);
    node.agent.unwant("new");
    let gone = node.handle.del(&uid("new"));
    let requests = next.serve_until(|request| matches!(request, Request::Add { .. })).await;
    assert_eq!((&requests[0], added(&requests)), (&Request::Del("new".into()), vec!["old"]));
    gone.await;
}

#[tokio::test]
async fn closing_the_server_takes_no_pod_from_ztunnel() {
    let mut node = Node::start();
    let _watched = node.want("u1");
    let (ztunnel, _) = node.ready_ztunnel().await;
    let ztunnel = tokio::spawn(ztunnel.serve());
    node.server.close().await;
    let ztunnel = ztunnel.await.unwrap();
    assert_eq!(ztunnel.up.keys().collect::<Vec<_>>(), ["u1"]);
    assert!(!node.path.exists());
    assert!(!*node.handle.any_ready().borrow());
    let error = node.handle.add(pod("u2").0, Instant::now() + ANSWER / 10).await.unwrap_err();
    assert!(matches!(error, AddError::NoZtunnel(_)), "{error}");
}
