//! What an agent that is told to end makes of its DaemonSet, and what the installer then reads.

use crate::fake::{FakeApi, Scripted, daemon_set, node};
use serde_json::{Value, json};
use sluice_agent::config::DaemonSetRef;
use sluice_agent::installed::Ending;
use sluice_shared::install::{INTENT_FILE, Intent, Wanted};
use std::time::{Duration, Instant};

const KEY: &str = "sluice-system/sluice-agent";
const SET: &str = "GET daemonset";
const NODE: &str = "GET node";

struct Agent {
    api: FakeApi,
    ending: Ending,
    run_dir: tempfile::TempDir,
}

impl Agent {
    /// An agent of a DaemonSet that selects Linux nodes, on one.
    async fn new() -> Self {
        let api = FakeApi::start().await;
        api.apply(node("node1", &json!({"kubernetes.io/os": "linux"}), &json!([])));
        let run_dir = tempfile::tempdir().unwrap();
        let own = DaemonSetRef { namespace: "sluice-system".into(), name: "sluice-agent".into() };
        let ending = Ending::new(api.client().await, own, "node1", run_dir.path());
        let agent = Self { api, ending, run_dir };
        agent.apply("u1", &json!({"nodeSelector": {"kubernetes.io/os": "linux"}}));
        agent
    }

    /// One that has run for a while.
    async fn settled() -> Self {
        let agent = Self::new().await;
        agent.ending.learn().await;
        agent
    }

    fn apply(&self, uid: &str, spec: &Value) {
        self.api.apply(daemon_set(KEY, uid, spec));
    }

    /// The next questions about the DaemonSet are answered so.
    fn refuses(&self, code: u16, times: usize) {
        for _ in 0..times {
            self.api.script(SET, Scripted::Status(code, "Refused"));
        }
    }

    async fn ends(&self) -> Intent {
        self.ending.tell().await;
        self.intent().expect("an intent")
    }

    fn intent(&self) -> Option<Intent> {
        Intent::parse(&std::fs::read(self.run_dir.path().join(INTENT_FILE)).ok()?)
    }

    fn write(&self, wanted: Wanted) {
        let intent = Intent::new(wanted, "by somebody else");
        std::fs::write(self.run_dir.path().join(INTENT_FILE), serde_json::to_vec(&intent).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn an_upgrade_costs_one_request_at_the_start_and_two_at_the_end() {
    let agent = Agent::settled().await;
    assert_eq!(agent.api.asked(), [SET]);
    let accept = &agent.api.requests()[0].headers["accept"];
    assert!(accept.contains("as=PartialObjectMetadata"), "{accept}");
    agent.apply("u1", &json!({"nodeSelector": {"kubernetes.io/os": "linux"}, "priority": 7}));
    assert_eq!(agent.ends().await.wanted, Wanted::Stay);
    assert_eq!(agent.api.asked(), [SET, SET, NODE]);
}

#[tokio::test]
async fn a_daemon_set_that_is_gone_or_going_or_another_means_leave() {
    let agent = Agent::settled().await;
    agent.api.delete("daemonsets", KEY);
    assert_eq!(agent.ends().await.wanted, Wanted::Leave);

    let agent = Agent::settled().await;
    let mut going = agent.api.object("daemonsets", KEY).unwrap();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    agent.api.apply(going);
    assert_eq!(agent.ends().await.wanted, Wanted::Leave);
    assert_eq!(agent.api.count(NODE), 0, "the node does not matter any more");

    let agent = Agent::settled().await;
    agent.apply("u2", &json!({}));
    assert_eq!(agent.ends().await.wanted, Wanted::Leave, "installed anew");
}

#[tokio::test]
async fn a_node_that_the_daemon_set_no_longer_wants_is_left() {
    let agent = Agent::settled().await;
    agent.api.apply(node("node1", &json!({"kubernetes.io/os": "linux", "mesh": "no"}), &json!([])));
    let expression = json!({"key": "mesh", "operator": "NotIn", "values": ["no"]});
    let terms = json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]});
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": terms});
    agent.apply("u1", &json!({"affinity": {"nodeAffinity": required}}));
    let intent = agent.ends().await;
    assert_eq!(intent.wanted, Wanted::Leave, "{}", intent.why);

    let agent = Agent::settled().await;
    let taint = |effect: &str| json!([{"key": "gpu", "value": "only", "effect": effect}]);
    agent.api.apply(node("node1", &json!({"kubernetes.io/os": "linux"}), &taint("NoSchedule")));
    assert_eq!(agent.ends().await.wanted, Wanted::Stay, "it keeps new pods away, and takes none");
    agent.api.apply(node("node1", &json!({"kubernetes.io/os": "linux"}), &taint("NoExecute")));
    assert_eq!(agent.ends().await.wanted, Wanted::Leave);
}

#[tokio::test]
async fn what_cannot_be_known_means_stay() {
    let mut agent = Agent::settled().await;
    for answer in [Scripted::Status(403, "Forbidden"), Scripted::Status(404, "NotFound")] {
        agent.api.script(NODE, answer);
        assert_eq!(agent.ends().await.wanted, Wanted::Stay, "nothing is known of the node");
    }
    agent.api.script(SET, Scripted::Status(500, "InternalError"));
    agent.api.script(SET, Scripted::Body("<html>".to_owned()));
    agent.api.script(SET, Scripted::Proxied(404));
    assert_eq!(agent.ends().await.wanted, Wanted::Stay, "asked until there is an answer of the API server's");
    assert_eq!(agent.api.count(SET), 7);
    for _ in 0..20 {
        agent.api.script(SET, Scripted::Hang);
    }
    let began = Instant::now();
    assert_eq!(agent.ends().await.wanted, Wanted::Stay);
    assert!(began.elapsed() >= Duration::from_secs(2), "it was waited for");
    agent.api.stop().await;
    agent.ending.tell().await;
    assert_eq!(agent.intent().unwrap().wanted, Wanted::Stay);
}

#[tokio::test]
async fn a_refusal_proves_an_uninstall_only_to_whoever_could_read() {
    for code in [401, 403] {
        let agent = Agent::settled().await;
        agent.refuses(code, 30);
        assert_eq!(agent.ends().await.wanted, Wanted::Leave, "{code}");
    }
    let agent = Agent::settled().await;
    agent.refuses(401, 2);
    assert_eq!(agent.ends().await.wanted, Wanted::Stay, "an API server that has just started");
    for code in [403, 404] {
        let agent = Agent::new().await;
        agent.refuses(code, 30);
        assert_eq!(agent.ends().await.wanted, Wanted::Stay, "{code}, and it has never seen its DaemonSet");
    }
}

#[tokio::test]
async fn the_start_asks_until_it_may() {
    let agent = Agent::new().await;
    agent.api.script(SET, Scripted::Status(403, "Forbidden"));
    agent.ending.learn().await;
    assert_eq!(agent.api.count(SET), 2);
    agent.ending.learn().await;
    assert_eq!(agent.api.count(SET), 2, "known is known");
}

#[tokio::test]
async fn an_old_intent_goes_at_the_start_and_an_operators_word_is_kept() {
    let agent = Agent::settled().await;
    let run_dir = agent.run_dir.path();
    Ending::forget_before(run_dir).unwrap();
    agent.write(Wanted::Stay);
    Ending::forget_before(run_dir).unwrap();
    assert_eq!(agent.intent(), None);
    std::fs::write(run_dir.join(INTENT_FILE), "{").unwrap();
    Ending::forget_before(run_dir).unwrap();
    assert!(!run_dir.join(INTENT_FILE).exists());
    agent.write(Wanted::Leave);
    Ending::forget_before(run_dir).unwrap();
    let intent = agent.ends().await;
    assert_eq!((intent.wanted, intent.why.as_str()), (Wanted::Leave, "by somebody else"));
}
