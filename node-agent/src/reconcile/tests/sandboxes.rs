//! Which namespace is whose, and how a pod lets go of it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn del_lets_go_of_the_sandbox_it_is_about_and_of_no_other() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.sandbox("u1");
    agent.add("u1", "u1").await;
    let mut other = attachment("u1");
    other.id.container_id = "an earlier attempt".into();
    agent.cni(Verb::Del(other), None).await;
    assert_eq!(agent.state("u1"), Some((State::Enabled, "captured".into())));
    for _ in 0..2 {
        assert!(matches!(agent.cni(Verb::Del(attachment("u1")), None).await, Reply::Ok { .. }));
    }
    eventually("it is forgotten", || agent.state("u1").is_none()).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert!(agent.cx.journal.pods().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_never_served_under_two_uids() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.sandbox("u1");
    agent.add("u1", "u1").await;
    agent.add("u2", "u1").await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1", "add u2"]);
    agent.becomes("u2", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_the_pods_is_refused() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.kernel.set_addresses(id, vec!["10.0.0.99".parse().unwrap()]);
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Pending).await;
    eventually("the reason is said", || {
        agent.state("u1").is_some_and(|(_, why)| why.contains("not the pod's"))
    })
    .await;
    assert!(agent.ran(id).is_empty());
    assert_eq!(ztunnel.told(), ["snapshot"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn del_ends_an_add_that_waits_for_ztunnel() {
    let agent = start().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.sandbox("u1");
    let (added, deleted) = tokio::join!(agent.add("u1", "u1"), async {
        eventually("its rules are in", || !agent.kernel.log().is_empty()).await;
        agent.cni(Verb::Del(attachment("u1")), None).await
    });
    assert!(matches!(added, Reply::Error { .. }), "{added:?}");
    assert_eq!(deleted, Reply::Ok { outcome: "released".into() });
    eventually("it is forgotten", || agent.state("u1").is_none()).await;
}
