//! How the installation stands, told on the agent's own pod.

use crate::fake::FakeApi;
use crate::fixture::SETTLED;
use serde_json::Value;
use sluice_agent::installed::{Looker, Standing, Teller};
use sluice_agent::metrics::Metrics;
use sluice_agent::status::Sink;
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::install::{Fought, INSTALL_VERSION, INSTALLATION_FILE, Installation, State};
use std::time::Duration;
use tokio::sync::watch;

const UID: &str = "6d9f3a52-0c8e-4b1e-9a57-1f0c5d3e7b42";

/// What the installer of this boot writes.
pub fn installation(state: State) -> Installation {
    let fight = (state == State::Fighting).then(|| Fought {
        file: "10-calico.conflist".into(),
        times: 5,
        seconds: 20,
        every: 4,
        suspect: "calico-node".into(),
    });
    Installation {
        version: INSTALL_VERSION,
        boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
        state,
        message: format!("it is {}", state.as_str()),
        directory: "/etc/cni/net.d".into(),
        way: None,
        why: String::new(),
        file: None,
        primary: None,
        primary_seen: true,
        writes: 9,
        repairs: 7,
        istio: Vec::new(),
        fight,
        updated: 0,
    }
}

#[tokio::test]
async fn a_fight_is_an_event_on_the_agents_own_pod_and_a_metric() {
    let api = FakeApi::start().await;
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let (standing, mut now) = watch::channel(Standing::default());
    let teller = Teller {
        pod: Some((PodRef::new("sluice-system", "sluice-agent-x1"), PodUid::new(UID).unwrap())),
        status: Sink::start(api.client().await, "node1".into(), metrics.clone()),
        metrics: metrics.clone(),
        standing,
    };
    tokio::spawn(teller.run(Looker::new(dir.path(), dir.path()).unwrap()));
    let write = |state| {
        let bytes = serde_json::to_vec(&installation(state)).unwrap();
        std::fs::write(dir.path().join(INSTALLATION_FILE), bytes).unwrap();
    };
    write(State::Chained);
    now.wait_for(Standing::is_chained).await.unwrap();
    tokio::time::sleep(SETTLED).await;
    assert_eq!(api.asked(), Vec::<String>::new(), "that all is well is no news");

    write(State::Fighting);
    let fights = |now: &Standing| now.installation.as_ref().is_some_and(|found| found.fight.is_some());
    now.wait_for(fights).await.unwrap();
    while api.count("POST event") < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let event: Value = serde_json::from_str(&api.requests()[0].body).unwrap();
    assert_eq!((&event["reason"], &event["type"]), (&"ChainFought".into(), &"Warning".into()));
    let about = &event["involvedObject"];
    assert_eq!((&about["kind"], &about["uid"]), (&"Pod".into(), &UID.into()));
    assert_eq!(about["name"], "sluice-agent-x1");
    assert_eq!(event["metadata"]["namespace"], "sluice-system");
    // What the admission policy goes by.
    assert_eq!(event["reportingComponent"], "sluice-agent");
    assert_eq!(event["reportingInstance"], "node1");
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("10-calico.conflist") && message.contains("by calico-node"), "{message}");
    assert!(message.ends_with("see on the node: sluicectl status"), "{message}");
    let text = metrics.render();
    assert!(text.contains("sluice_install_state{state=\"fighting\"} 1"), "{text}");
    assert!(text.contains("sluice_install_fight_undone 5"), "{text}");
    tokio::time::sleep(SETTLED * 3).await;
    assert_eq!(api.asked(), ["POST event"], "a fight that goes on is one Event");
}
