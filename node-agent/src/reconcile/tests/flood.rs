//! Whoever may change a pod, or a namespace, does so faster than the pod's task follows.

use super::fixture::{Boxed, Ztunnel, attachment, eventually, pod, start, start_telling};
use super::*;
use crate::kernel::fake::RecordingKernel;
use crate::metrics::Metrics;
use crate::status::Sink;
use crate::status::tests::server::{Mood, Server};
use sluice_shared::admin::State;
use sluice_shared::facts::PodFacts;

/// More than anybody sends while the pod's task waits for an API server that does not answer.
const FLOOD: usize = 1_000;
/// What may be done of it: the task follows each two seconds, and a loaded machine takes a while to send.
const A_FEW: usize = 30;

async fn relabelled(agent: &Boxed, mode: &str) {
    let labels = [("istio.io/dataplane-mode".to_owned(), mode.to_owned())].into();
    let facts = PodFacts { labels, ..pod("u1", Some("/run/netns/u1".into())) };
    agent.events.send(Event::Pod(Box::new(facts))).await.unwrap();
}

/// A captured pod, of which the API server is not told any more: each leave takes as long as it may.
async fn with_a_slow_pod() -> (Boxed, Ztunnel, NetnsId) {
    let server = Server::default();
    server.pod("demo/pod-u1", "u1", None);
    let status = Sink::start(server.client(), "node1".into(), Metrics::new());
    let agent = start_telling(tempfile::tempdir().unwrap(), RecordingKernel::default(), status).await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    eventually("it is annotated", || server.annotation("demo/pod-u1").as_deref() == Some("enabled")).await;
    server.becomes(Some(Mood::Silent));
    (agent, ztunnel, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_labels_the_last_one_counts() {
    let (agent, ztunnel, id) = with_a_slow_pod().await;
    for _ in 0..FLOOD {
        relabelled(&agent, "none").await;
        relabelled(&agent, "ambient").await;
    }
    relabelled(&agent, "none").await;
    eventually("it leaves", || agent.state("u1").is_some_and(|(_, why)| why.contains("opts out"))).await;
    relabelled(&agent, "ambient").await;
    agent.becomes("u1", State::Enabled).await;
    let (changes, told) = (agent.ran(id).len(), ztunnel.told().len());
    assert!(changes < A_FEW && told < A_FEW, "{changes} changes of its rules, {told} messages to ztunnel");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_changes_of_the_namespace_the_last_one_counts() {
    let (agent, ztunnel, id) = with_a_slow_pod().await;
    for _ in 0..FLOOD {
        agent.namespace("demo", None).await;
        agent.namespace("demo", Some("ambient")).await;
    }
    agent.namespace("demo", None).await;
    eventually("it leaves", || agent.state("u1").is_some_and(|(state, _)| state == State::Draining)).await;
    agent.namespace("demo", Some("ambient")).await;
    agent.becomes("u1", State::Enabled).await;
    let (changes, told) = (agent.ran(id).len(), ztunnel.told().len());
    assert!(changes < A_FEW && told < A_FEW, "{changes} changes of its rules, {told} messages to ztunnel");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_changes_while_ztunnel_is_asked_is_not_forgotten() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    ztunnel.hold_answers(true);
    agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    eventually("ztunnel is asked", || ztunnel.told().contains(&"add u1".to_owned())).await;
    agent.namespace("demo", None).await;
    let unsettled = || agent.cx.namespace("demo").is_some_and(|namespace| namespace.labels.is_empty());
    eventually("the agent has heard of it", unsettled).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ztunnel.hold_answers(false);
    agent.becomes("u1", State::Outside).await;
    eventually("ztunnel lets go of it", || ztunnel.told().last().is_some_and(|told| told == "del u1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_del_of_a_former_sandbox_does_not_end_the_present_ones_wait() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.events.send(Event::Pod(Box::new(pod("u1", None)))).await.unwrap();
    agent.synced().await;
    ztunnel.hold_answers(true);
    agent.sandbox("u1");
    let add = agent.add("u1", "u1");
    let late = async {
        eventually("ztunnel is asked", || ztunnel.told().len() > 1).await;
        let mut former = attachment("u1");
        former.id.container_id = "former".into();
        let del = agent.cni(Verb::Del(former), None);
        let answer = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ztunnel.hold_answers(false);
        };
        tokio::join!(del, answer).0
    };
    let (added, deleted) = tokio::join!(add, late);
    assert!(matches!(&added, Reply::Ok { outcome } if outcome == "captured"), "{added:?}");
    assert!(matches!(&deleted, Reply::Ok { outcome } if outcome.contains("another")), "{deleted:?}");
}
