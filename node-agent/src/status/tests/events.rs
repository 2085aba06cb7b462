use super::*;
use serde_json::Value;

fn reasons(t: &Told) -> Vec<(String, i64)> {
    t.server.events().into_iter().map(|(reason, count, _)| (reason, count)).collect()
}

/// One round of a fight over the pod's rules.
fn repaired(t: &Told, times: u64) {
    t.sink.stands(&PodStatus { drift_repairs: times - 1, ..status(1, State::Drifted) });
    t.sink.stands(&PodStatus { drift_repairs: times, ..status(1, State::Enabled) });
}

#[tokio::test(start_paused = true)]
async fn an_event_is_on_the_pod_with_reason_and_next_step() {
    let t = told();
    t.pod(1, None);
    t.is(1, State::Pending);
    pass(6.0).await;
    let events = t.server.events();
    let [(reason, 1, event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(reason, "CapturePending");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["involvedObject"]["kind"], "Pod");
    assert_eq!(event["involvedObject"]["uid"], uid(1).as_str());
    assert_eq!(event["involvedObject"]["name"], "pod-1");
    assert_eq!(event["metadata"]["namespace"], "demo");
    assert_eq!(event["source"]["component"], "sluice-agent");
    assert_eq!(event["source"]["host"], "node1");
    assert_eq!(event["message"], "it is pending; see on the node: sluicectl why demo/pod-1");
    let name = event["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("pod-1.") && name.len() == "pod-1.".len() + 16, "{name}");
    for time in ["firstTimestamp", "lastTimestamp"] {
        assert!(event[time].as_str().is_some_and(|text| text.ends_with('Z')), "{}", event[time]);
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_start_well_make_no_events() {
    let t = told();
    for n in 0..110 {
        t.pod(n, None);
        t.is(n, State::Pending);
        t.is(n, State::Enabled);
    }
    pass(60.0).await;
    assert_eq!(reasons(&t), []);
    t.is(1, State::Draining);
    t.is(1, State::Outside);
    pass(1.0).await;
    assert_eq!(reasons(&t), [("Released".to_owned(), 1)], "a live change is told");
}

#[tokio::test(start_paused = true)]
async fn a_fight_is_one_event_that_is_counted() {
    let t = told();
    t.pod(1, None);
    for round in 1..=3 {
        repaired(&t, round);
        pass(2.0).await;
    }
    assert_eq!(reasons(&t), [("Repaired".to_owned(), 3)]);
    for round in 4..=1_000 {
        repaired(&t, round);
        pass(0.2).await;
    }
    let written = t.server.requests().iter().filter(|asked| asked.path.contains("/events")).count();
    assert!(written < 25, "{written} writes in 200 s");
    // Somebody looks after the fight is over, and something happens once more.
    pass(60.0).await;
    repaired(&t, 1_001);
    pass(1.0).await;
    let repairs = reasons(&t).into_iter().find(|(reason, _)| reason == "Repaired");
    assert_eq!(repairs, Some(("Repaired".to_owned(), 1_001)), "what was withheld is counted");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_server_has_forgotten_is_made_anew() {
    let t = told();
    t.pod(1, None);
    repaired(&t, 1);
    pass(2.0).await;
    t.server.forget_events();
    repaired(&t, 2);
    pass(2.0).await;
    assert_eq!(reasons(&t), [("Repaired".to_owned(), 2)]);
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_the_server_is_away_is_told_later_or_given_up() {
    let t = told();
    t.pod(1, ENABLED);
    t.is(1, State::Enabled);
    t.server.becomes(Some(Mood::Away));
    repaired(&t, 1);
    pass(60.0).await;
    t.server.becomes(None);
    pass(15.0).await;
    assert_eq!(reasons(&t), [("Repaired".to_owned(), 1)]);
    t.server.becomes(Some(Mood::Away));
    t.is(1, State::Draining);
    t.is(1, State::Outside);
    pass(400.0).await;
    t.server.becomes(None);
    pass(30.0).await;
    assert_eq!(reasons(&t).len(), 1, "nobody needs to hear of it after so long");
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_make_events_annotations_are_still_written() {
    let t = told();
    t.pod(1, None);
    t.is(1, State::Outside);
    t.server.once(Mood::Says(403, None, "cannot create resource events"));
    t.sink.stands(&PodStatus { drift_repairs: 1, ..status(1, State::Outside) });
    pass(1.0).await;
    t.is(1, State::Enabled);
    pass(1.0).await;
    assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
    assert!(t.counted("sluice_events_total{result=\"forbidden\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_long_name_and_a_long_reason_fit() {
    let t = told();
    let long = PodStatus { name: "a".repeat(253), reason: "é".repeat(2_000), ..status(1, State::Pending) };
    t.sink.stands(&long);
    pass(6.0).await;
    let (_, _, event): (_, _, Value) = t.server.events().pop().unwrap();
    assert!(event["metadata"]["name"].as_str().unwrap().len() <= 253);
    assert!(event["message"].as_str().unwrap().len() <= 1024 + 600, "{}", event["message"]);
}
