use super::super::Told;
use super::super::tests::fixture::{attachment, pod};
use super::*;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::NetnsId;
use sluice_shared::wire::Reply;
use tokio::sync::oneshot;
use tokio::time::Instant;

fn facts(mode: &str) -> Message {
    let labels = [("istio.io/dataplane-mode".to_owned(), mode.to_owned())].into();
    Message::Facts(Some(Box::new(PodFacts { labels, ..pod("u1", None) })))
}

/// The message, and where its answer would come.
fn add() -> (Message, oneshot::Receiver<Reply>) {
    let netns = std::fs::File::open("/dev/null").unwrap().into();
    let (reply, answer) = oneshot::channel();
    let add = Message::Add {
        attachment: attachment("u1"),
        netns,
        told: Told::Shown,
        deadline: Instant::now(),
        reply,
    };
    (add, answer)
}

fn del() -> Message {
    Message::Del { attachment: attachment("u1"), reply: oneshot::channel().0 }
}

fn named(message: &Message) -> String {
    match message {
        Message::Facts(None) => "gone".into(),
        Message::Facts(Some(facts)) => facts.labels["istio.io/dataplane-mode"].clone(),
        Message::Add { .. } => "ADD".into(),
        Message::Del { .. } => "DEL".into(),
        Message::Resettle(waiters) => format!("settle, and tell {}", waiters.len()),
        Message::Look => "look".into(),
        Message::Doubt => "doubt".into(),
        Message::Synced => "synced".into(),
        _ => "another".into(),
    }
}

fn waiting(mailbox: &Mailbox) -> Vec<String> {
    mailbox.lock().messages.iter().map(named).collect()
}

#[test]
fn of_a_flood_only_the_newest_waits() {
    let mailbox = Mailbox::default();
    mailbox.post(Message::Synced);
    for round in 0..2_000 {
        mailbox.post(facts(&format!("m{round}")));
        mailbox.post(Message::Resettle(Vec::new()));
        mailbox.post(Message::Look);
        mailbox.post(Message::Doubt);
    }
    assert_eq!(waiting(&mailbox), ["synced", "m1999", "settle, and tell 0", "look", "doubt"]);
    mailbox.post(Message::Facts(None));
    assert_eq!(waiting(&mailbox)[1], "gone");
}

#[test]
fn facts_overtake_neither_add_nor_del() {
    let mailbox = Mailbox::default();
    let (add, _answer) = add();
    for message in
        [facts("a"), facts("b"), add, Message::Facts(None), facts("c"), del(), facts("d"), facts("e")]
    {
        mailbox.post(message);
    }
    assert_eq!(waiting(&mailbox), ["b", "ADD", "c", "DEL", "e"]);
}

#[test]
fn an_add_that_nobody_waits_for_is_let_go_of_with_its_namespace() {
    let mailbox = Mailbox::default();
    for _ in 0..100 {
        let (add, answer) = add();
        mailbox.post(add);
        drop(answer);
    }
    assert_eq!(waiting(&mailbox), ["ADD"]);
}

#[tokio::test]
async fn everybody_who_waits_for_a_settling_is_told() {
    let mailbox = Mailbox::default();
    let (first, told_first) = oneshot::channel();
    let (left, gave_up) = oneshot::channel();
    let (second, told_second) = oneshot::channel();
    drop(gave_up);
    for waiter in [first, left, second] {
        mailbox.post(Message::Resettle(vec![waiter]));
    }
    assert_eq!(waiting(&mailbox), ["settle, and tell 2"]);
    let Message::Resettle(waiters) = mailbox.next().await else { panic!("another message") };
    waiters.into_iter().for_each(|waiter| waiter.send(()).unwrap());
    assert_eq!((told_first.await, told_second.await), (Ok(()), Ok(())));
}

#[tokio::test]
async fn what_is_urgent_is_taken_first_and_leaves_the_others_where_they_are() {
    let mailbox = Mailbox::default();
    let urgent = |message: &Message| matches!(message, Message::Look);
    let over = |message: &Message| matches!(message, Message::Del { .. });
    for message in [facts("a"), Message::Synced, Message::Look] {
        mailbox.post(message);
    }
    assert!(matches!(mailbox.first(urgent, over).await, Some(Message::Look)));
    let (found, ()) = tokio::join!(mailbox.first(urgent, over), async {
        mailbox.post(Message::Look);
    });
    assert!(matches!(found, Some(Message::Look)));
    mailbox.post(Message::Look);
    mailbox.post(del());
    assert!(mailbox.first(urgent, over).await.is_none(), "there is nothing to be done for what has ended");
    assert_eq!(waiting(&mailbox), ["a", "synced", "look", "DEL"]);
    assert_eq!(named(&mailbox.next().await), "a");
}

#[tokio::test]
async fn with_nobody_to_take_them_messages_are_dropped_and_their_senders_hear_of_it() {
    let mailbox = Mailbox::default();
    let (done, wait) = oneshot::channel();
    assert!(mailbox.post(Message::Yield(NetnsId { dev: 1, inode: 2 }, done)));
    mailbox.close();
    assert!(wait.await.is_err() && mailbox.is_empty());
    assert!(!mailbox.post(Message::Look));
}
