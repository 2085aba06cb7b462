//! Peers that break the protocol, are not allowed, or come back too often.

use crate::agent::{ANSWER, LONG, Node, Told, uid};
use crate::ztunnel::{Request, Ztunnel, field};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sluice_agent::zds::AddError;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::time::Instant;

/// What a connection must not survive, after a request.
async fn ends_after(answer: impl AsyncFnOnce(&mut Ztunnel)) {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let add = node.add("u1", LONG);
    ztunnel.expect_add("u1").await;
    answer(&mut ztunnel).await;
    ztunnel.expect_end().await;
    node.until(|told| (*told == Told::Disconnected(1)).then_some(())).await;
    // The pod was not taken for served, and the next ztunnel gets it.
    assert!(!add.is_finished());
    let (_next, connection) = node.ready_ztunnel().await;
    assert_eq!(add.await.unwrap().unwrap().connection, connection);
}

#[tokio::test]
async fn an_answer_that_is_garbage_ends_the_connection() {
    ends_after(async |ztunnel| ztunnel.send(b"\xff\xff\xff").await).await;
}

#[tokio::test]
async fn an_answer_without_an_acknowledgement_ends_the_connection() {
    ends_after(async |ztunnel| ztunnel.send(&field(9, b"later")).await).await;
}

#[tokio::test]
async fn an_answer_longer_than_any_buffer_ends_the_connection() {
    let long = field(1, &field(1, &vec![b'x'; 70_000]));
    ends_after(async move |ztunnel| ztunnel.send(&long).await).await;
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_another() {
    let mut node = Node::impatient();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let adds = [node.add("u1", 2 * ANSWER), node.add("u2", 2 * ANSWER)];
    ztunnel.expect_add("u1").await;
    tokio::time::sleep(ANSWER + ANSWER / 2).await;
    ztunnel.send(&[0x0a, 0]).await;
    ztunnel.send(&[0x0a, 0]).await;
    ztunnel.expect_end().await;
    for add in adds {
        let error = add.await.unwrap().unwrap_err();
        assert!(matches!(error, AddError::NoAnswer(_) | AddError::NoZtunnel(_)), "{error}");
    }
    loop {
        match node.told().await {
            Told::Disconnected(1) => break,
            told => assert!(!matches!(told, Told::Answered(..)), "{told:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_too_many_is_not_taken_for_the_next_requests() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let adds = [node.add("u1", LONG), node.add("u2", LONG)];
    ztunnel.request().await.unwrap();
    ztunnel.send(&[0x0a, 0]).await;
    ztunnel.send(&[0x0a, 0]).await;
    ztunnel.expect_end_or_request().await;
    node.until(|told| (*told == Told::Disconnected(1)).then_some(())).await;
    let (_next, connection) = node.ready_ztunnel().await;
    let mut by: Vec<u64> = Vec::new();
    for add in adds {
        by.push(add.await.unwrap().unwrap().connection);
    }
    assert!(by.contains(&connection), "both were taken for served on one connection: {by:?}");
}

#[tokio::test]
async fn a_word_unasked_ends_the_connection() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    ztunnel.send(&[0x0a, 0]).await;
    ztunnel.expect_end().await;
    node.until(|told| (*told == Told::Disconnected(1)).then_some(())).await;
}

#[tokio::test]
async fn descriptors_from_ztunnel_are_closed_and_end_the_connection() {
    let mut node = Node::start();
    let (mut ztunnel, _) = node.ready_ztunnel().await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let rights = [ControlMessage::ScmRights(&[writer.as_raw_fd(), writer.as_raw_fd()])];
    sendmsg::<()>(ztunnel.fd(), &[IoSlice::new(&[0x0a, 0])], &rights, MsgFlags::empty(), None).unwrap();
    drop(writer);
    ztunnel.expect_end().await;
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "a descriptor was kept");
    node.until(|told| (*told == Told::Disconnected(1)).then_some(())).await;
}

#[tokio::test]
async fn a_refused_snapshot_end_ends_the_connection() {
    let mut node = Node::start();
    let mut ztunnel = Ztunnel::connect(&node.path).await;
    assert_eq!(ztunnel.request().await, Some(Request::SnapshotSent));
    ztunnel.nack("failure to process message : ProtocolError").await;
    ztunnel.expect_end().await;
    assert_eq!([node.told().await, node.told().await], [Told::Connected(1), Told::Disconnected(1)]);
    assert!(!*node.handle.any_ready().borrow());
}

#[tokio::test]
async fn whoever_does_not_say_a_proper_hello_is_not_connected() {
    let mut node = Node::impatient();
    for hello in [&b"\xff"[..], &[8, 2], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut peer = Ztunnel::mute(&node.path).await;
        peer.send(hello).await;
        peer.expect_end().await;
    }
    let mut silent = Ztunnel::mute(&node.path).await;
    silent.expect_end().await;
    assert_eq!((node.told_so_far(), node.handle.connections()), (vec![], vec![]));
    let (_ztunnel, connection) = node.ready_ztunnel().await;
    assert_eq!(connection, 1);
}

#[tokio::test]
async fn another_user_is_turned_away() {
    let mut node = Node::with(|config| config.ztunnel_uid += 1);
    let _watched = node.want("u1");
    let mut stranger = Ztunnel::connect(&node.path).await;
    stranger.expect_end().await;
    assert_eq!((node.told_so_far(), node.handle.connections()), (vec![], vec![]));
}

#[tokio::test]
async fn one_that_the_agent_knows_to_be_none_is_told_of_no_pod_and_changes_nothing() {
    let mut node = Node::start();
    let _watched = node.want("u1");
    let (mut ztunnel, first) = node.ready_ztunnel().await;
    node.agent.impostors.lock().unwrap().insert(2);
    let mut impostor = Ztunnel::connect(&node.path).await;
    impostor.expect_end().await;
    node.until(|told| (*told == Told::Disconnected(2)).then_some(())).await;
    assert_eq!(node.handle.connections().len(), 1);
    let add = node.add("u2", LONG);
    ztunnel.serve_until(|request| matches!(request, Request::Add { uid, .. } if uid == "u2")).await;
    assert_eq!(add.await.unwrap().unwrap().connection, first);
}

#[tokio::test]
async fn a_ztunnel_that_goes_during_the_preparations_is_noticed() {
    let mut node = Node::start();
    node.agent.prepared.forget_permits(usize::MAX);
    let ztunnel = Ztunnel::connect(&node.path).await;
    assert_eq!(node.told().await, Told::Connected(1));
    drop(ztunnel);
    assert_eq!(node.told().await, Told::Disconnected(1));
    node.handle.del(&uid("u1")).await;
}

#[tokio::test]
async fn a_reconnect_storm_is_slowed_down() {
    let interval = Duration::from_millis(50);
    let mut node = Node::with(|config| {
        config.accept_interval = interval;
        config.accept_burst = 3;
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        // Dropped at once, as by a ztunnel that does not like its first packet; the backlog takes some in advance.
        drop(Ztunnel::connect(&node.path).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let connected = node.told_so_far().iter().filter(|told| matches!(told, Told::Connected(_))).count();
    let most = 3 + usize::try_from(begun.elapsed().as_millis() / interval.as_millis()).unwrap() + 1;
    assert!((1..=most).contains(&connected), "{connected} connections, at most {most} were due");
}
