//! Pods and a host that istio-cni has programmed, against a recording kernel.

use super::fixture::{Boxed, eventually, planned, start, start_after};
use super::*;
use crate::kernel::fake::Place;
use crate::predecessor::Predecessor;
use crate::reconcile::succession::OnHost;
use sluice_shared::ids::Family;
use sluice_shared::istio::{Chain, Does, Listing, Place as Whose, Rule, RuleId, Table, recognise};
use sluice_shared::lower::{Step, lower};

/// As istio-cni's chains in one table of ip_tables are listed.
fn listing() -> Listing {
    let table = Table::Legacy(Family::V4, "nat".into());
    let rule = |does| Rule { id: RuleId(0), bare: true, does };
    let chain = |name: &str, base, does| Chain {
        table: table.clone(),
        name: name.into(),
        base,
        passes: true,
        rules: vec![rule(does)],
    };
    let chains = vec![
        chain("OUTPUT", true, Does::Jump("ISTIO_OUTPUT".into())),
        chain("ISTIO_OUTPUT", false, Does::Redirect(15001)),
    ];
    Listing { generation: Some(1), chains, ipsets: BTreeSet::new() }
}

fn host_listing() -> Listing {
    Listing { ipsets: BTreeSet::from(["istio-inpod-probes-v4".to_owned()]), ..Listing::default() }
}

/// On a node where istio-cni runs, and has its set on the host.
async fn beside_istio_cni() -> Boxed {
    let kernel = RecordingKernel::default();
    kernel.set_istio(Place::Host, host_listing());
    start_after(Predecessor::Lives, kernel).await
}

fn take_over() -> Vec<KernelOp> {
    let plan = planned(Stage::Redirect(Older::None));
    let remains = recognise(&listing(), Whose::Pod);
    lower(Backend::Nftables, Step::TakeOver { plan: &plan, remains: &remains })
}

impl Boxed {
    fn host_ops(&self) -> Vec<Vec<KernelOp>> {
        let log = self.kernel.log().into_iter();
        log.filter(|(place, _)| *place == Place::Host).map(|(_, ops)| ops).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_left_to_a_living_istio_cni_and_taken_over_when_it_is_gone() {
    let agent = beside_istio_cni().await;
    let _ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.kernel.set_istio(Place::Pod(id), listing());
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    eventually("it is said why", || {
        agent
            .state("u1")
            .is_some_and(|(state, why)| state == State::Pending && why.contains("remove its DaemonSet"))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(agent.ran(id).is_empty() && agent.host_ops().is_empty(), "nothing is touched");
    let shown = agent.cx.succession.choice().unwrap();
    assert_eq!(shown.chosen, "runs on this node");
    assert!(shown.because.contains("1 still have its rules"), "{}", shown.because);

    agent.predecessor.send_replace(Predecessor::Gone);
    agent.becomes("u1", State::Enabled).await;
    assert_eq!(agent.ran(id)[0], take_over());
    eventually("the host follows", || !agent.host_ops().is_empty()).await;
    assert_eq!(agent.host_ops(), [vec![KernelOp::DestroyIpset("istio-inpod-probes-v4".into())]]);
    eventually("it is said", || {
        let shown = agent.cx.succession.choice().unwrap();
        shown.chosen == "gone"
            && shown.because == "1 pods taken over; taken away on the host: ipset istio-inpod-probes-v4"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_waits_for_the_last_pod() {
    let agent = beside_istio_cni().await;
    let id = agent.running_pod("u1").await;
    agent.kernel.set_istio(Place::Pod(id), listing());
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let says = |what: &'static str| {
        let agent = &agent;
        move || agent.state("u1").is_some_and(|(_, why)| why.contains(what))
    };
    eventually("it is left to istio-cni", says("istio-cni runs on this node")).await;
    agent.predecessor.send_replace(Predecessor::Gone);
    // With no ztunnel to serve it the pod keeps istio-cni's rules.
    eventually("it waits", says("waiting for ztunnel")).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(agent.host_ops().is_empty() && agent.ran(id).is_empty());
    let _ztunnel = agent.ztunnel().await;
    agent.becomes("u1", State::Enabled).await;
    eventually("the host follows", || !agent.host_ops().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_on_a_node_of_both_starts_when_istio_cni_has_captured_it() {
    let agent = start_after(Predecessor::Lives, RecordingKernel::default()).await;
    let _ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    let refused = agent.add("u1", "u1").await;
    assert!(
        matches!(&refused, Reply::Error { code: 11, msg, .. } if msg.contains("has not captured it")),
        "{refused:?}"
    );
    agent.kernel.set_istio(Place::Pod(id), listing());
    let outcome = "captured by istio-cni, and taken over when that is gone".into();
    assert_eq!(agent.add("u1", "u1").await, Reply::Ok { outcome });
    assert!(agent.ran(id).is_empty());
    agent.predecessor.send_replace(Predecessor::Gone);
    agent.becomes("u1", State::Enabled).await;
    assert_eq!(agent.ran(id)[0], take_over());
    // One whose ADD comes just after istio-cni went.
    let late = agent.sandbox("u2");
    agent.kernel.set_istio(Place::Pod(late), listing());
    assert_eq!(agent.add("u2", "u2").await, Reply::Ok { outcome: "captured".into() });
    assert_eq!(agent.ran(late)[0], take_over());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_left_half_done_is_finished_by_the_next() {
    let agent = start().await;
    let _ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.kernel.set_istio(Place::Pod(id), listing());
    agent.kernel.tamper_rules(Place::Pod(id), Some(Fingerprint(7)));
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    let finished =
        |ops: &Vec<KernelOp>| matches!(&ops[..], [KernelOp::LegacyWithout { table, .. }] if table == "nat");
    assert_eq!(agent.ran(id).iter().filter(|ops| finished(ops)).count(), 1, "{:?}", agent.ran(id));
}

/// The list of the host takes its time, and istio-cni may be installed again in it.
#[test]
fn the_host_is_left_to_an_istio_cni_that_came_back_while_it_was_listed() {
    let kernel = RecordingKernel::default();
    kernel.set_istio(Place::Host, host_listing());
    let (predecessor, now) = watch::channel(Predecessor::Gone);
    let succession = Succession::new(now);
    predecessor.send_replace(Predecessor::Lives);
    assert!(matches!(succession.take_from_host(&kernel), Ok(OnHost::Needed)));
    assert!(kernel.log().is_empty());
    predecessor.send_replace(Predecessor::Gone);
    assert!(matches!(succession.take_from_host(&kernel), Ok(OnHost::Taken(_))));
    assert!(matches!(succession.take_from_host(&kernel), Ok(OnHost::Nothing)));
}
