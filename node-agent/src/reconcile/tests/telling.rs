//! What the cluster is told of a pod, and when, in the order of what is done to it.

use super::fixture::{Boxed, Ztunnel, eventually, planned, pod, proxied, start_telling};
use super::*;
use crate::kernel::fake::RecordingKernel;
use crate::metrics::Metrics;
use crate::status::Sink;
use crate::status::tests::server::{Mood, Server};
use sluice_shared::admin::State;
use sluice_shared::facts::Phase;
use sluice_shared::lower::{Step, lower};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{Older, Stage};

const NAME: &str = "demo/pod-u1";

async fn start(server: &Server, dir: tempfile::TempDir, kernel: RecordingKernel) -> Boxed {
    let metrics = Metrics::new();
    start_telling(dir, kernel, Sink::start(server.client(), "node1".into(), metrics)).await
}

/// A pod that runs, is captured, and whose annotation says so.
async fn with_an_annotated_pod() -> (Server, Boxed, Ztunnel, NetnsId) {
    let server = Server::default();
    server.pod(NAME, "u1", None);
    let agent = start(&server, tempfile::tempdir().unwrap(), RecordingKernel::default()).await;
    let witness = agent.kernel.clone();
    server.have_witnessed(move || witness.log().len());
    let ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    eventually("it is annotated", || server.annotation(NAME).as_deref() == Some("enabled")).await;
    (server, agent, ztunnel, id)
}

fn removed() -> Vec<KernelOp> {
    lower(Backend::Nftables, Step::Remove)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_annotated_when_its_rules_are_in_and_ztunnel_has_it() {
    let (server, agent, ztunnel, id) = with_an_annotated_pod().await;
    assert_eq!(server.testimony(), [agent.ran(id).len()], "its rules were in when that was written");
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
    assert_eq!(server.patches().len(), 1);
    assert_eq!(server.events(), [], "what goes well makes no noise");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_told_before_the_rules_of_a_leaving_pod_change_and_ztunnel_serves_until_they_know() {
    let (server, agent, ztunnel, id) = with_an_annotated_pod().await;
    let before = agent.kernel.log().len();
    let takes = Duration::from_millis(300);
    server.takes(takes);
    agent.namespace("demo", None).await;
    agent.becomes("u1", State::Outside).await;
    assert_eq!(server.annotation(NAME), None);
    assert_eq!(server.testimony()[1], before, "nothing was done to the pod until then");
    let drained = lower(Backend::Nftables, Step::Replace(&planned(Stage::Drain)));
    assert_eq!(agent.ran(id)[before..], [drained, removed()], "nothing new is captured, and then nothing");
    let gone = server.patches()[1].at + takes;
    let served = ztunnel.told_at("del u1").unwrap() - gone;
    assert!(served >= Duration::from_secs(2), "{served:?}: a peer may not have heard yet");
    eventually("it is said", || server.events().iter().any(|(reason, ..)| reason == "Released")).await;
    assert_eq!(server.patches().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_api_server_away_a_pod_is_let_go_of_but_served_until_peers_know() {
    let (server, agent, ztunnel, id) = with_an_annotated_pod().await;
    server.becomes(Some(Mood::Away));
    agent.namespace("demo", None).await;
    let drained = lower(Backend::Nftables, Step::Replace(&planned(Stage::Drain)));
    eventually("nothing new is captured", || agent.ran(id).last() == Some(&drained)).await;
    eventually("it waits for its peers", || {
        agent.state("u1").is_some_and(|(_, why)| why.contains("its annotation is still there"))
    })
    .await;
    assert!(!ztunnel.told().contains(&"del u1".to_owned()));
    server.becomes(None);
    for _ in 0..4 {
        if agent.state("u1").is_some_and(|(state, _)| state == State::Outside) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    agent.becomes("u1", State::Outside).await;
    assert_eq!(server.annotation(NAME), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_ends_is_not_kept_by_an_api_server_that_is_away() {
    let (server, agent, _ztunnel, id) = with_an_annotated_pod().await;
    server.becomes(Some(Mood::Silent));
    agent.namespace("demo", None).await;
    agent.becomes("u1", State::Draining).await;
    let reply = agent.cni(Verb::Del(super::attachment("u1")), None).await;
    assert!(matches!(reply, Reply::Ok { .. }), "{reply:?}");
    let drained = lower(Backend::Nftables, Step::Replace(&planned(Stage::Drain)));
    assert!(!agent.ran(id).contains(&drained), "the wait for the API server was not waited out");
    assert_eq!(agent.ran(id).last(), Some(&removed()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_pod_is_released_at_once_and_loses_its_annotation() {
    let (server, agent, ztunnel, id) = with_an_annotated_pod().await;
    agent.kernel.set_sockets(id, vec![proxied()]);
    let mut done = pod("u1", Some("/run/netns/u1".into()));
    done.phase = Phase::Succeeded;
    done.annotations.insert("ambient.istio.io/redirection".into(), "enabled".into());
    agent.events.send(Event::Pod(Box::new(done))).await.unwrap();
    agent.becomes("u1", State::Outside).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert_eq!(agent.ran(id).last(), Some(&removed()));
    eventually("the annotation is gone", || server.annotation(NAME).is_none()).await;
    assert_eq!(server.events(), [], "a pod that has ended is no news");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_finds_the_annotation_right() {
    let (server, agent, ztunnel, id) = with_an_annotated_pod().await;
    let Boxed { kernel, dir, zds, .. } = agent;
    zds.close().await;
    ztunnel.task.abort();
    let agent = start(&server, dir, kernel).await;
    let _ztunnel = agent.ztunnel().await;
    let mut facts = pod("u1", Some("/run/netns/u1".into()));
    facts.annotations.insert("ambient.istio.io/redirection".into(), "enabled".into());
    agent.events.send(Event::Pod(Box::new(facts))).await.unwrap();
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    // Longer than a trouble takes to count as over.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(server.patches().len(), 1, "by the agent before");
    assert_eq!(
        agent.ran(id).last(),
        Some(&lower(Backend::Nftables, Step::Replace(&planned(Stage::Redirect(Older::None)))))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn why_says_what_istiod_goes_by() {
    let (server, agent, _ztunnel, _) = with_an_annotated_pod().await;
    let why = async || {
        let (reply, answer) = oneshot::channel();
        agent.cx.tell(&PodUid::new("u1").unwrap(), Message::Inspect(reply));
        let status = answer.await.unwrap();
        status.checks.into_iter().find(|check| check.name.starts_with("annotation")).unwrap()
    };
    // The server has it before the agent has heard so.
    let said = async |what: &str| {
        loop {
            match why().await {
                check if check.detail.contains(what) => return check,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let told = async |what: &str| {
        let said = tokio::time::timeout(Duration::from_secs(30), said(what)).await;
        said.unwrap_or_else(|_| panic!("never said: {what}"))
    };
    let check = told("redirection: enabled").await;
    assert!(check.ok && check.detail.ends_with("redirection: enabled"), "{check:?}");
    server.becomes(Some(Mood::Says(403, None, "cannot patch resource pods/status")));
    let mut wrong = pod("u1", Some("/run/netns/u1".into()));
    wrong.annotations.insert("ambient.istio.io/redirection".into(), "enabled".into());
    agent.events.send(Event::Pod(Box::new(wrong.clone()))).await.unwrap();
    wrong.annotations.insert("ambient.istio.io/redirection".into(), "pending".into());
    agent.events.send(Event::Pod(Box::new(wrong))).await.unwrap();
    let check = told("cannot patch resource").await;
    assert!(!check.ok, "{check:?}");
    assert!(server.patches().len() >= 2);
}
