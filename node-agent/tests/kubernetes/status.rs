//! The annotation, over HTTP and with the watch that shows what was written.

use crate::fake::{FakeApi, namespace, pod};
use crate::fixture::SETTLED;
use sluice_agent::metrics::Metrics;
use sluice_agent::source::Event;
use sluice_agent::source::kubernetes::KubernetesSource;
use sluice_agent::status::{Peers, Sink};
use sluice_shared::admin::{PodStatus, State};
use sluice_shared::enroll::{Because, EnrollPolicy, Overrides, Reason};
use sluice_shared::ids::{NetnsId, PodUid};
use std::time::Duration;
use tokio::sync::mpsc;

const PODS: usize = 30;

/// An agent's two ends: what it hears of pods, and what it tells.
struct Agent {
    sink: Sink,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    async fn start(api: &FakeApi) -> Self {
        let (metrics, policy) = (Metrics::new(), EnrollPolicy::default());
        let sink = Sink::start(api.client().await, "node1".into(), metrics.clone());
        let (source, _problem) = KubernetesSource::new(api.client().await, "node1", &policy, metrics);
        let (sender, mut events) = mpsc::channel(64);
        let shown = sink.clone();
        let task = tokio::spawn(async move {
            let hear = async {
                while let Some(event) = events.recv().await {
                    if let Event::Pod(pod) = event {
                        shown.shown(&pod);
                    }
                }
            };
            tokio::join!(Box::pin(source.run(sender)), hear);
        });
        Self { sink, task }
    }

    fn all(&self, state: State) {
        for n in 0..PODS {
            self.sink.stands(&status(n, state));
        }
    }
}

fn uid(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

fn name(n: usize) -> String {
    format!("demo/pod-{n}")
}

fn status(n: usize, state: State) -> PodStatus {
    let because = (state == State::Enabled).then_some(Because::NamespaceLabel);
    PodStatus {
        uid: PodUid::new(uid(n)).unwrap(),
        namespace: "demo".into(),
        name: format!("pod-{n}"),
        ips: vec!["10.0.0.2".parse().unwrap()],
        state,
        reason: format!("it is {state}"),
        outside: because.is_none().then_some(Reason::NotSelected),
        because,
        overrides: Overrides::default(),
        netns: Some(NetnsId { dev: 1, inode: 2 }),
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}

fn annotation(api: &FakeApi, n: usize) -> Option<String> {
    let object = api.object("pods", &name(n)).unwrap();
    object["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str().map(str::to_owned)
}

async fn with_pods() -> FakeApi {
    let api = FakeApi::start().await;
    api.apply(namespace("demo", Some("ambient")));
    for n in 0..PODS {
        api.apply(pod(&name(n), &uid(n)));
    }
    api
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within a minute: {what}");
}

#[tokio::test]
async fn one_patch_a_pod_for_each_change_whatever_happens_to_the_server() {
    let mut api = with_pods().await;
    let agent = Agent::start(&api).await;
    agent.all(State::Enabled);
    eventually("all are enabled", || (0..PODS).all(|n| annotation(&api, n).as_deref() == Some("enabled")))
        .await;
    tokio::time::sleep(SETTLED).await;
    assert_eq!(api.count("PATCH pod"), PODS, "what the watch shows of a patch is no reason for another");
    let patch = api.requests().into_iter().find(|seen| seen.method == "PATCH").unwrap();
    assert!(patch.path.ends_with("/status"), "{}", patch.path);
    assert_eq!(patch.headers["content-type"], "application/merge-patch+json");
    assert_eq!(patch.query["fieldManager"], "sluice-agent");

    api.stop().await;
    agent.all(State::Draining);
    let leaves = PodUid::new(uid(0)).unwrap();
    assert!(!agent.sink.withdrawn(&leaves, Duration::from_secs(2)).await, "nobody is there to be told");
    api.resume().await;
    eventually("none is annotated", || (0..PODS).all(|n| annotation(&api, n).is_none())).await;
    assert!(agent.sink.withdrawn(&leaves, Duration::from_secs(30)).await);
    tokio::time::sleep(SETTLED).await;
    assert_eq!(api.count("PATCH pod"), 2 * PODS);
}

#[tokio::test]
async fn the_next_agent_patches_nothing_that_is_right() {
    let api = with_pods().await;
    let agent = Agent::start(&api).await;
    agent.all(State::Enabled);
    eventually("all are enabled", || api.count("PATCH pod") == PODS && agent.sink.owed() == 0).await;
    drop(agent);
    let agent = Agent::start(&api).await;
    let hears = |n| agent.sink.explain(&PodUid::new(uid(n)).unwrap()).is_some();
    eventually("it has heard of all", || (0..PODS).all(hears)).await;
    agent.all(State::Enabled);
    tokio::time::sleep(SETTLED).await;
    assert_eq!(api.count("PATCH pod"), PODS);
}

#[tokio::test]
async fn a_pod_that_came_back_under_its_name_does_not_get_its_predecessors_annotation() {
    let api = with_pods().await;
    let agent = Agent::start(&api).await;
    api.delete("pods", &name(0));
    api.apply(pod(&name(0), &uid(99)));
    agent.sink.stands(&status(0, State::Enabled));
    eventually("it was tried", || api.count("PATCH pod") == 1).await;
    tokio::time::sleep(SETTLED).await;
    assert_eq!((api.count("PATCH pod"), annotation(&api, 0)), (1, None));
    assert_eq!(agent.sink.peers(&PodUid::new(uid(0)).unwrap()), Peers::Unaware);
}
