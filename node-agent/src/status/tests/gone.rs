//! Pods whose object goes, comes back, or only seems to be gone.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_static_pods_object_that_is_made_anew_is_annotated_anew() {
    let t = told();
    t.pod(1, None);
    t.server.delete(&name(1));
    t.is(1, State::Enabled);
    pass(60.0).await;
    assert_eq!((t.server.patches().len(), t.sink.owed()), (1, 0), "there is nothing to write to");
    t.pod(1, None);
    pass(1.0).await;
    assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
    // The watch says that it is gone before anybody has written in vain, and that it is back at once.
    t.server.delete(&name(1));
    t.sink.gone(&uid(1));
    t.is(1, State::Pending);
    t.is(1, State::Enabled);
    pass(10.0).await;
    assert_eq!((t.server.patches().len(), t.sink.peers(&uid(1))), (2, Peers::Unaware));
    t.pod(1, None);
    pass(1.0).await;
    assert_eq!(
        t.server.annotation(&name(1)).as_deref(),
        ENABLED,
        "what its predecessor had it does not have"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_older_than_what_the_watch_shows_makes_nothing_gone() {
    let t = told();
    t.pod(1, None);
    t.server.takes(Duration::from_secs(1));
    t.server.once(Mood::Says(404, None, "not found"));
    t.is(1, State::Enabled);
    pass(0.5).await;
    t.pod(1, None);
    pass(10.0).await;
    assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_pod_that_goes_does_not_wait_on() {
    let t = told();
    t.pod(1, ENABLED);
    t.server.becomes(Some(Mood::Away));
    t.is(1, State::Draining);
    let uid = uid(1);
    let waits = t.sink.withdrawn(&uid, Duration::from_secs(60));
    let goes = async {
        pass(1.0).await;
        t.sink.gone(&uid);
    };
    let before = Instant::now();
    assert!(tokio::join!(waits, goes).0, "an object that is gone tells nobody to dial");
    assert_eq!(before.elapsed(), Duration::from_secs(1));
}
