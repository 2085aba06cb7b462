//! One pod by name, as an ADD asks for it.

use crate::fake::{FakeApi, Scripted, pod};
use serde_json::json;
use sluice_agent::source::kubernetes::PodLookup;
use sluice_agent::source::{Answer, Lookup};
use sluice_shared::enroll::EnrollPolicy;
use sluice_shared::ids::{PodRef, PodUid};
use std::time::Duration;
use tokio::time::Instant;

async fn ask(api: &FakeApi, key: &str, uid: Option<&str>) -> Answer {
    let lookup = Lookup::Api(PodLookup::new(api.client().await, "node1", &EnrollPolicy::default()));
    let (namespace, name) = key.split_once('/').unwrap();
    let uid = uid.map(|uid| PodUid::new(uid).unwrap());
    lookup.find(&PodRef::new(namespace, name), uid.as_ref(), Instant::now() + Duration::from_secs(2)).await
}

#[tokio::test]
async fn the_pod_itself_is_the_answer_and_no_other() {
    let api = FakeApi::start().await;
    api.apply(pod("shop/a", "u-a"));
    let mut elsewhere = pod("shop/b", "u-b");
    elsewhere["spec"]["nodeName"] = json!("node2");
    api.apply(elsewhere);
    assert!(
        matches!(ask(&api, "shop/a", Some("u-a")).await, Answer::Found(facts) if facts.service_account == "app")
    );
    assert!(matches!(ask(&api, "shop/a", None).await, Answer::Found(_)), "an old runtime says no uid");
    assert!(matches!(ask(&api, "shop/a", Some("u-before")).await, Answer::Gone(why) if why.contains("u-a")));
    assert!(
        matches!(ask(&api, "shop/b", Some("u-b")).await, Answer::Gone(why) if why.contains("another node"))
    );
    assert!(
        matches!(ask(&api, "shop/c", Some("u-c")).await, Answer::Gone(why) if why.contains("no such pod"))
    );
    assert_eq!(api.count("GET pod"), 5, "each asks once");
}

#[tokio::test]
async fn what_is_no_answer_leaves_the_pod_unknown() {
    let mut api = FakeApi::start().await;
    api.apply(pod("shop/a", "u-a"));
    for (scripted, expected) in [
        (Scripted::Status(500, "InternalError"), "500"),
        (Scripted::Status(403, "Forbidden"), "403"),
        (Scripted::Status(429, "TooManyRequests"), "429"),
        (Scripted::Body("<html>".to_owned()), "cannot be used"),
        (Scripted::Body("{\"metadata\":{}}".to_owned()), "another node"),
        (Scripted::Proxied(404), "HTTP 404 without a Status"),
        (Scripted::Hang, "did not answer"),
    ] {
        api.script("GET pod", scripted);
        let (Answer::Unknown(why) | Answer::Gone(why)) = ask(&api, "shop/a", Some("u-a")).await else {
            panic!("found: {expected}")
        };
        assert!(why.contains(expected), "{why}");
    }
    // The kubelet may not have been able to make the object of a static pod.
    let hash = "0123456789abcdef0123456789abcdef";
    assert!(matches!(ask(&api, "shop/static", Some(hash)).await, Answer::Unknown(_)));
    let before = api.requests().len();
    assert!(matches!(ask(&api, "shop/../../secrets", Some("u")).await, Answer::Unknown(_)));
    assert_eq!(api.requests().len(), before, "a name that is none leads nowhere");
    api.stop().await;
    assert!(
        matches!(ask(&api, "shop/a", Some("u-a")).await, Answer::Unknown(why) if why.contains("cannot be reached"))
    );
}
