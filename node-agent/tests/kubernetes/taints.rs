//! The taints that the agent removes from its own node, and when.

use crate::fake::{FakeApi, Scripted, node};
use crate::fixture::{SETTLED, SOON};
use crate::installation::installation;
use serde_json::{Value, json};
use sluice_agent::installed::{Serving, Standing, Taints};
use sluice_agent::metrics::Metrics;
use sluice_shared::install::State;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const KEY: &str = "cni.istio.io/not-ready";
const WATCH: &str = "WATCH nodes";
const PATCH: &str = "PATCH node";

struct Agent {
    api: FakeApi,
    waiting_for: watch::Sender<Option<String>>,
    standing: watch::Sender<Standing>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// One that starts on a node with these taints.
    async fn on(taints: &Value) -> Self {
        let api = FakeApi::start().await;
        api.apply(node("node1", &json!({}), taints));
        api.apply(node("node2", &json!({}), &json!([taint(KEY)])));
        let (waiting_for, why) = watch::channel(Some("it starts".to_owned()));
        let (standing, stands) = watch::channel(Standing::default());
        let keys = vec![KEY.to_owned(), "another".to_owned()];
        let taints =
            Taints { client: api.client().await, node: "node1".into(), keys, metrics: Metrics::new() };
        let task = tokio::spawn(taints.run(Serving { waiting_for: why, standing: stands }));
        Self { api, waiting_for, standing, task }
    }

    fn serves(&self, state: State) {
        self.waiting_for.send_replace(None);
        let installation = Some(installation(state));
        self.standing.send_replace(Standing { installation, lease: None });
    }

    fn taints(&self) -> Vec<String> {
        let node = self.api.object("nodes", "node1").unwrap();
        let taints = node["spec"]["taints"].as_array().unwrap().clone();
        taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
    }

    async fn watches(&self) {
        let asked = async {
            while self.api.count(WATCH) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, asked).await.expect("the node is not watched");
    }

    async fn until(&self, taints: &[&str]) {
        let same = async {
            while self.taints() != taints {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let came = tokio::time::timeout(SOON, same).await;
        came.unwrap_or_else(|_| panic!("{:?}, after {:?}", self.taints(), self.api.asked()));
    }
}

fn taint(key: &str) -> Value {
    json!({"key": key, "effect": "NoSchedule"})
}

#[tokio::test]
async fn they_go_when_a_pod_that_starts_would_be_captured_and_others_stay() {
    let agent = Agent::on(&json!([taint("a"), taint(KEY), taint("b"), taint("another")])).await;
    agent.waiting_for.send_replace(None);
    tokio::time::sleep(SETTLED).await;
    agent.serves(State::Waiting);
    tokio::time::sleep(SETTLED).await;
    assert_eq!(agent.api.asked(), Vec::<String>::new(), "the plugin is not in the chain yet");
    agent.serves(State::Chained);
    agent.until(&["a", "b"]).await;
    tokio::time::sleep(SETTLED).await;
    assert_eq!(agent.api.asked(), [WATCH, PATCH]);
    let elsewhere = agent.api.object("nodes", "node2").unwrap();
    assert_eq!(elsewhere["spec"]["taints"], json!([taint(KEY)]));
}

#[tokio::test]
async fn nothing_is_asked_until_something_changes() {
    let agent = Agent::on(&json!([taint("a")])).await;
    agent.serves(State::Chained);
    agent.watches().await;
    agent.api.apply(node("node1", &json!({"kubelet": "was here"}), &json!([taint("a")])));
    tokio::time::sleep(SETTLED).await;
    assert_eq!(agent.api.asked(), [WATCH]);
    agent.api.apply(node("node1", &json!({}), &json!([taint(KEY), taint("a")])));
    agent.until(&["a"]).await;
    assert_eq!(agent.api.asked(), [WATCH, PATCH], "it came back");
}

#[tokio::test]
async fn one_that_comes_back_while_the_agent_does_not_serve_stays_until_it_does() {
    let agent = Agent::on(&json!([])).await;
    agent.serves(State::Chained);
    agent.watches().await;
    tokio::time::sleep(SETTLED).await;
    agent.serves(State::Blocked);
    tokio::time::sleep(SETTLED).await;
    agent.api.apply(node("node1", &json!({}), &json!([taint(KEY)])));
    tokio::time::sleep(SETTLED).await;
    assert_eq!(agent.taints(), [KEY]);
    agent.serves(State::Fighting);
    agent.until(&[]).await;
}

#[tokio::test]
async fn a_race_or_a_refusal_loses_nothing_and_is_tried_again() {
    for (code, reason) in [(422, "Invalid"), (409, "Conflict"), (403, "Forbidden"), (500, "InternalError")] {
        let agent = Agent::on(&json!([taint("a"), taint(KEY)])).await;
        agent.api.script(PATCH, Scripted::Status(code, reason));
        agent.serves(State::Chained);
        agent.until(&["a"]).await;
        assert_eq!(agent.api.count(PATCH), 2, "{code}");
    }
    let agent = Agent::on(&json!([taint(KEY)])).await;
    agent.api.script(WATCH, Scripted::Status(403, "Forbidden"));
    agent.api.script(WATCH, Scripted::Body("{}\n".to_owned()));
    agent.serves(State::Chained);
    agent.until(&[]).await;
    assert_eq!(agent.api.count(WATCH), 3);
}
