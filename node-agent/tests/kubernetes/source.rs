//! What the source says, and what it asks.

use crate::fake::{FakeApi, Scripted, Streaming, namespace, pod};
use crate::fixture::Followed;
use serde_json::json;

/// A server with two pods in a namespace of the mesh, and a pod of another node.
async fn shop() -> FakeApi {
    let api = FakeApi::start().await;
    api.apply(namespace("shop", Some("ambient")));
    api.apply(pod("shop/a", "u-a"));
    api.apply(pod("shop/b", "u-b"));
    let mut elsewhere = pod("shop/c", "u-c");
    elsewhere["spec"]["nodeName"] = json!("node2");
    api.apply(elsewhere);
    api
}

const START: [&str; 3] = ["+ns shop ambient", "+u-a", "+u-b"];

#[tokio::test]
async fn two_watches_are_all_that_is_asked_of_a_server_with_streaming_lists() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    source.api.apply(pod("shop/d", "u-d"));
    source.expect(&["+u-d"]).await;
    source.api.delete("pods", "shop/a");
    source.expect(&["-u-a"]).await;
    source.api.apply(namespace("shop", None));
    source.expect(&["+ns shop"]).await;
    source.api.apply(namespace("new", None));
    source.api.delete("namespaces", "new");
    source.expect(&["+ns new", "-ns new"]).await;
    let mut asked = source.api.asked();
    asked.sort();
    assert_eq!(asked, ["WATCH namespaces", "WATCH pods"]);
    for seen in source.api.requests() {
        assert_eq!(seen.headers["user-agent"], concat!("sluice-agent/", env!("CARGO_PKG_VERSION")));
        assert_eq!(seen.headers["authorization"], "Bearer secret");
        assert_eq!(
            seen.headers["accept"].contains("as=PartialObjectMetadata"),
            seen.what() == "WATCH namespaces"
        );
        assert_eq!(
            seen.query.get("fieldSelector").is_some_and(|s| s == "spec.nodeName=node1"),
            seen.what() == "WATCH pods"
        );
    }
    assert_eq!(*source.problem.borrow(), None);
}

#[tokio::test]
async fn a_change_that_decides_nothing_is_not_said() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    let mut heartbeat = pod("shop/a", "u-a");
    heartbeat["status"]["conditions"] = json!([{"type": "Ready", "lastProbeTime": "2026-01-01T00:00:00Z"}]);
    heartbeat["metadata"]["labels"]["app"] = json!("renamed");
    source.api.apply(heartbeat.clone());
    source.expect_silence().await;
    heartbeat["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("none");
    heartbeat["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    source.api.apply(heartbeat.clone());
    source.expect(&["+u-a"]).await;
    heartbeat["status"]["phase"] = json!("Succeeded");
    source.api.apply(heartbeat);
    source.expect(&["+u-a"]).await;
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_listed_and_watched() {
    for code in [400, 422] {
        let api = shop().await;
        api.streaming(Streaming::Refused(code));
        let mut source = Followed::new(api).await;
        source.expect_start(&START).await;
        source.api.apply(pod("shop/d", "u-d"));
        source.expect(&["+u-d"]).await;
        let besides_watches = source.api.asked().iter().filter(|asked| !asked.starts_with("WATCH")).count();
        assert_eq!(besides_watches, 2, "{:?}", source.api.asked());
        let lists = source.api.requests().into_iter().filter(|seen| seen.what().starts_with("LIST"));
        assert!(
            lists.into_iter().all(|seen| seen.query["resourceVersion"] == "0"),
            "each node would read etcd"
        );
        assert_eq!(*source.problem.borrow(), None, "an old server is no problem");
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_wish_for_a_streaming_list_is_found_out() {
    let api = shop().await;
    api.streaming(Streaming::Ignored);
    let mut source = Followed::new(api).await;
    // By a bookmark, and at the latest by its silence.
    source.asked("WATCH pods", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    source.api.bookmark();
    source.expect_start(&START).await;
    assert_eq!((source.api.count("LIST pods"), source.api.count("LIST namespaces")), (1, 1));
}

#[tokio::test]
async fn a_version_that_is_gone_leads_to_a_new_list_and_only_its_differences() {
    for (as_status, streaming) in [
        (true, Streaming::Supported),
        (false, Streaming::Supported),
        (true, Streaming::Refused(422)),
        (false, Streaming::Refused(400)),
    ] {
        let api = shop().await;
        api.streaming(streaming);
        api.gone_as_status(as_status);
        let mut source = Followed::new(api).await;
        source.expect_start(&START).await;
        source.asked("WATCH pods", if streaming == Streaming::Supported { 1 } else { 2 }).await;
        // While nobody watches: one pod goes, one comes, one is replaced under its name, one stays.
        source.api.stop().await;
        source.api.apply(pod("shop/stays", "u-stays"));
        source.api.resume().await;
        source.expect(&["+u-stays"]).await;
        source.api.stop().await;
        source.api.delete("pods", "shop/a");
        source.api.delete("pods", "shop/b");
        source.api.apply(pod("shop/b", "u-b2"));
        source.api.apply(pod("shop/d", "u-d"));
        source.api.compact();
        source.api.resume().await;
        source.expect(&["-u-a", "-u-b", "+u-b2", "+u-d"]).await;
        source.expect_silence().await;
        source.expect_no_problem().await;
    }
}

#[tokio::test]
async fn an_open_watch_that_ends_with_410_is_begun_anew_and_takes_no_pod_away() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    source.api.end_watches(Some(json!({"type": "ERROR", "object": status})));
    source.asked("WATCH pods", 2).await;
    source.asked("WATCH namespaces", 2).await;
    source.api.apply(pod("shop/d", "u-d"));
    source.expect(&["+u-d"]).await;
    source.expect_silence().await;
    assert!(source.api.requests()[2..].iter().all(|seen| seen.query.contains_key("sendInitialEvents")));
}

#[tokio::test]
async fn a_watch_that_the_server_ends_goes_on_where_it_was() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    source.api.apply(pod("shop/d", "u-d"));
    source.expect(&["+u-d"]).await;
    let version = source.api.object("pods", "shop/d").unwrap()["metadata"]["resourceVersion"].clone();
    source.api.end_watches(None);
    source.asked("WATCH pods", 2).await;
    source.api.apply(pod("shop/e", "u-e"));
    source.expect(&["+u-e"]).await;
    let again = source.api.requests().into_iter().filter(|seen| seen.what() == "WATCH pods").nth(1).unwrap();
    assert_eq!(json!(again.query["resourceVersion"]), version);
    assert!(!again.query.contains_key("sendInitialEvents"));
    assert_eq!(*source.problem.borrow(), None, "it is what every watch ends in");
}

#[tokio::test]
async fn a_bookmark_moves_the_version_on() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    source.api.compact();
    // Without the bookmark, which comes before the watch's end, the version would be too old now.
    source.api.bookmark();
    source.api.end_watches(None);
    source.asked("WATCH pods", 2).await;
    source.api.apply(pod("shop/d", "u-d"));
    source.expect(&["+u-d"]).await;
    assert_eq!(source.api.count("WATCH pods"), 2);
}

#[tokio::test]
async fn while_the_server_is_away_what_is_known_stays_and_the_problem_is_said() {
    let mut source = Followed::new(shop().await).await;
    source.expect_start(&START).await;
    source.api.stop().await;
    let said = source.expect_problem("pods cannot be watched").await;
    assert!(said.contains("cannot be reached") && said.ends_with("stays in force"), "{said}");
    source.expect_silence().await;
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"kubernetes\"}"));
    source.api.apply(pod("shop/d", "u-d"));
    source.api.resume().await;
    source.expect(&["+u-d"]).await;
    source.expect_no_problem().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let mut api = shop().await;
    api.stop().await;
    let mut source = Followed::new(api).await;
    let said = source.expect_problem("cannot be watched").await;
    assert!(said.contains("nothing is known of them"), "{said}");
    source.api.resume().await;
    source.expect_start(&START).await;
    source.expect_no_problem().await;
}

#[tokio::test]
async fn refusals_and_garbage_are_said_and_outlived() {
    for (answer, expected) in [
        (Scripted::Status(403, "Forbidden"), "answers 403: scripted"),
        (Scripted::Status(500, "InternalError"), "answers 500"),
        (Scripted::Body("<html>a proxy</html>\n".to_owned()), "none of the Kubernetes API"),
        (Scripted::Body("{\"type\":\"ADDED\"}\n".to_owned()), "none of the Kubernetes API"),
        (
            Scripted::Body("{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":504}}\n".to_owned()),
            "answers 504",
        ),
        (Scripted::Body("{\"type\":\"ADDED\",\"obj".to_owned()), "ended within its list"),
    ] {
        let api = shop().await;
        api.script("WATCH pods", answer);
        let mut source = Followed::new(api).await;
        source.expect_problem(expected).await;
        source.expect_start(&START).await;
        source.expect_no_problem().await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_and_asked_again() {
    let api = shop().await;
    api.script("WATCH namespaces", Scripted::Hang);
    let mut source = Followed::new(api).await;
    source.expect_problem("namespaces cannot be watched: the API server did not answer").await;
    source.expect_start(&START).await;
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let api = shop().await;
    api.streaming(Streaming::Refused(400));
    let mut source = Followed::new(api).await;
    source.expect_start(&START).await;
    source.api.stop().await;
    let names: Vec<_> = (0..1100).map(|number| format!("n{number}")).collect();
    for name in &names {
        source.api.apply(namespace(name, None));
    }
    source.api.compact();
    source.api.resume().await;
    let expected: Vec<_> = names.iter().map(|name| format!("+ns {name}")).collect();
    source.expect(&expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let paged = source.api.requests().into_iter().filter(|seen| seen.query.contains_key("continue"));
    assert_eq!(paged.count(), 2);
}

#[tokio::test]
async fn one_object_that_cannot_be_used_is_left_out_and_nothing_else_is_lost() {
    for streaming in [Streaming::Supported, Streaming::Refused(422)] {
        let api = shop().await;
        api.streaming(streaming);
        let mut wrong =
            [pod("shop/w0", "u-w0"), pod("shop/w1", "a/b"), pod("shop/w2", "u-w2"), pod("shop/w3", "u-w3")];
        wrong[0]["metadata"]["labels"] = json!(["not", "a", "map"]);
        wrong[2]["spec"]["serviceAccountName"] = json!("x\n2026 ERROR forged");
        wrong[3]["spec"]["containers"] = json!(7);
        for pod in wrong {
            api.apply(pod);
        }
        // One with a megabyte of labels and annotations is as good as any.
        let mut large = pod("shop/z", "u-z");
        for number in 0..10_000 {
            large["metadata"]["annotations"][format!("example.com/{number}")] = json!("x".repeat(50));
            large["metadata"]["labels"][format!("example.com/{number}")] = json!("x".repeat(50));
        }
        api.apply(large);
        let mut source = Followed::new(api).await;
        source.expect_start(&["+ns shop ambient", "+u-a", "+u-b", "+u-z"]).await;
        assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"kubernetes\"} 4\n"));
        // A change that cannot be read takes away nothing; the pod's end does.
        let mut broken = pod("shop/a", "u-a");
        broken["status"] = json!("?");
        source.api.apply(broken);
        source.expect_silence().await;
        source.api.delete("pods", "shop/a");
        source.expect(&["-u-a"]).await;
    }
}

#[tokio::test]
async fn two_pods_cannot_go_by_one_uid() {
    let api = shop().await;
    let mut source = Followed::new(api).await;
    source.expect_start(&START).await;
    source.api.apply(pod("shop/thief", "u-a"));
    source.expect_silence().await;
    source.api.delete("pods", "shop/thief");
    source.expect_silence().await;
}

#[tokio::test]
async fn over_tls_one_connection_carries_everything_and_a_dead_one_is_found_out() {
    let api = shop().await;
    let wire = api.over_tls().await;
    let mut source = Followed::new(api).await;
    source.expect_start(&START).await;
    source.api.apply(pod("shop/d", "u-d"));
    source.expect(&["+u-d"]).await;
    // Both watches may have begun to connect at the same moment.
    assert!(wire.connections() <= 2, "{}", wire.connections());
    wire.freeze();
    source.api.apply(pod("shop/e", "u-e"));
    source.expect(&["+u-e"]).await;
    source.expect_no_problem().await;
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let source = Followed::new(shop().await).await;
    let mut problem = source.problem.clone();
    drop(source.events);
    let ended = async { while problem.changed().await.is_ok() {} };
    tokio::time::timeout(crate::fixture::SOON, ended).await.expect("it still runs");
}
