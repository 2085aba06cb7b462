//! What the agent says of itself and its node.

use super::super::NodeView;
use super::*;
use crate::admin::View;
use crate::installed::Standing;
use sluice_shared::admin::{Choice, LeaseState, LeaseStatus};
use sluice_shared::install::{self, INSTALL_VERSION, Installation};

fn installation(state: install::State) -> Installation {
    Installation {
        version: INSTALL_VERSION,
        boot: String::new(),
        state,
        message: "the directory is read-only".into(),
        directory: "/etc/cni/net.d".into(),
        way: None,
        why: String::new(),
        file: None,
        primary: None,
        primary_seen: true,
        writes: 0,
        repairs: 0,
        istio: Vec::new(),
        fight: None,
        updated: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_succeeds_from_the_start_and_says_serving_once_the_source_has_spoken() {
    let agent = start().await;
    let status = async || match agent.cni(Verb::Status, None).await {
        Reply::Ok { outcome } => outcome,
        error @ Reply::Error { .. } => panic!("it would make the node NotReady: {error:?}"),
    };
    let outcome = status().await;
    assert!(outcome.starts_with("starting: "), "{outcome}");
    agent.synced().await;
    eventually("it has been told", || *agent.cx.synced.borrow()).await;
    assert_eq!(status().await, SERVING, "with no ztunnel there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_is_explained_by_a_chain_without_the_plugin() {
    let agent = start().await;
    agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    // Pending it is from the start, before anything is known of it.
    agent.pending_because("u1", "waiting for ztunnel").await;
    let (standing, standing_now) = watch::channel(Standing::default());
    let choice = || Choice::default();
    let (_problem, problem_now) = watch::channel(None);
    let (_drift, drift_now) = watch::channel(choice());
    let view = NodeView::new(
        Arc::clone(&agent.cx),
        "node1".into(),
        "a test".into(),
        problem_now,
        choice(),
        drift_now,
        standing_now,
    );
    let chain = async || {
        let checks = view.why("demo/pod-u1").await.unwrap().checks;
        let found = checks.into_iter().find(|check| check.name == "the plugin is in the chain");
        found.map(|check| (check.ok, check.detail))
    };
    assert_eq!(chain().await, None, "nobody says");
    let lease = LeaseStatus { state: LeaseState::Held, age_seconds: 3, horizon_seconds: 3600 };
    let blocked = Some(installation(install::State::Blocked));
    standing.send_replace(Standing { installation: blocked, lease: Some(lease.clone()) });
    let (ok, detail) = chain().await.unwrap();
    assert!(!ok && detail.contains("read-only"), "{detail}");
    let status = view.status().await;
    assert_eq!(status.lease, Some(lease));
    assert_eq!(status.installation.unwrap().state, install::State::Blocked);

    let _ztunnel = agent.ztunnel().await;
    agent.becomes("u1", State::Enabled).await;
    assert_eq!(chain().await, None, "a pod that is captured needs no explanation");
    standing
        .send_replace(Standing { installation: Some(installation(install::State::Chained)), lease: None });
    assert!(view.status().await.installation.is_some());
}
