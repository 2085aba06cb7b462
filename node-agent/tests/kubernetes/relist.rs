//! What leads to a new list, and what becomes of a server with which that helps nothing.

use crate::fake::{FakeApi, Scripted, Streaming, namespace, pod};
use crate::fixture::Followed;
use serde_json::json;

async fn shop() -> FakeApi {
    let api = FakeApi::start().await;
    api.apply(namespace("shop", Some("ambient")));
    api.apply(pod("shop/a", "u-a"));
    api
}

const START: [&str; 2] = ["+ns shop ambient", "+u-a"];
const GONE: Scripted = Scripted::Status(410, "Expired");

#[tokio::test]
async fn a_server_that_has_no_version_at_all_is_a_problem_until_it_has() {
    let api = shop().await;
    api.script("WATCH pods", GONE);
    api.script("WATCH pods", GONE);
    let mut source = Followed::new(api).await;
    let said = source.expect_problem("pods cannot be watched: the API server answers 410").await;
    assert!(said.contains("nothing is known of them"), "{said}");
    source.expect_start(&START).await;
    source.expect_no_problem().await;
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"kubernetes\"} 1\n"));
}

#[tokio::test]
async fn a_server_that_forgets_what_it_has_just_listed_is_a_problem_until_a_watch_works() {
    let api = shop().await;
    api.streaming(Streaming::Refused(422));
    let mut source = Followed::new(api).await;
    source.expect_start(&START).await;
    source.asked("WATCH pods", 2).await;
    // What any watch may meet that was away for a while.
    source.api.script("WATCH pods", GONE);
    source.api.end_watches(None);
    source.asked("WATCH pods", 4).await;
    source.api.apply(pod("shop/b", "u-b"));
    source.expect(&["+u-b"]).await;
    assert_eq!(*source.problem.borrow(), None);
    for _ in 0..3 {
        source.api.script("WATCH pods", GONE);
    }
    source.api.end_watches(None);
    let said = source.expect_problem("answers 410").await;
    assert!(said.ends_with("stays in force"), "{said}");
    // A list alone is no proof that it is over.
    source.expect_no_problem().await;
    assert_eq!(source.api.count("WATCH pods"), 8);
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"kubernetes\"} 2\n"));
    source.api.apply(pod("shop/c", "u-c"));
    source.expect(&["+u-c"]).await;
}

#[tokio::test]
async fn a_change_that_is_too_long_for_a_line_is_listed_be_it_a_pods_end() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    let mut large = pod("shop/large", "u-large");
    large["metadata"]["annotations"]["example.com/large"] = json!("x".repeat(17 * 1024 * 1024));
    source.api.apply(large);
    source.expect(&["+u-large"]).await;
    source.expect_no_problem().await;
    source.api.delete("pods", "shop/large");
    source.expect(&["-u-large"]).await;
    source.expect_no_problem().await;
    assert!(source.api.count("LIST pods") >= 2, "{:?}", source.api.asked());
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"kubernetes\"} 2\n"));
}

#[tokio::test]
async fn what_is_in_front_of_an_api_server_can_neither_end_a_version_nor_a_watch() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    source.api.script("WATCH pods", Scripted::Proxied(410));
    source.api.end_watches(None);
    source.expect_problem("HTTP 410 without a Status").await;
    source.expect_no_problem().await;
    source.api.apply(pod("shop/b", "u-b"));
    source.expect(&["+u-b"]).await;
    let watches = source.api.requests().into_iter().filter(|seen| seen.what() == "WATCH pods");
    let listed = watches.filter(|seen| seen.query.contains_key("sendInitialEvents")).count();
    assert_eq!(listed, 1, "it goes on from the version that it knows");
}
