//! What a pod's task knows of the pod, and lets others see.

use super::pod::{Grip, PodTask, Redirected};
use crate::journal::Sandbox;
use crate::kernel::Netns;
use crate::zds;
use sluice_shared::admin::{PodStatus, State};
use sluice_shared::enroll::{Overrides, Verdict};
use sluice_shared::facts::{Phase, PodFacts, StringMap};
use sluice_shared::plan::{Older, Stage};
use std::sync::Arc;

impl PodTask {
    /// What the source shows, else what ADD showed: name and addresses, but no labels.
    pub(super) fn known_facts(&self) -> Option<PodFacts> {
        if let Some(facts) = &self.facts {
            return Some(facts.as_ref().clone());
        }
        // A path that only the source named says nothing once the source no longer shows the pod.
        let vouched = |sandbox: &&Sandbox| sandbox.is_vouched_for() || !self.knows_enough();
        let sandbox = self.sandbox.as_ref().filter(vouched)?;
        Some(PodFacts {
            uid: sandbox.uid.clone(),
            name: sandbox.pod.name.clone(),
            namespace: sandbox.pod.namespace.clone(),
            service_account: sandbox.service_account.clone().unwrap_or_else(|| "default".into()),
            labels: StringMap::new(),
            annotations: StringMap::new(),
            host_network: false,
            phase: Phase::Pending,
            ips: sandbox.ips.clone(),
            probe_ports: Vec::new(),
            netns: None,
        })
    }

    /// The pod's addresses: what ADD vouched for, else what the source shows, else what it showed before.
    pub(super) fn ips(&self) -> Vec<std::net::IpAddr> {
        let of_sandbox = self.sandbox.as_ref().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let shown = self.facts.as_ref().map(|facts| facts.ips.clone()).unwrap_or_default();
        let from_source = self.sandbox.as_ref().is_none_or(|sandbox| sandbox.adopted);
        let (first, second) = if from_source { (shown, of_sandbox) } else { (of_sandbox, shown) };
        if first.is_empty() { second } else { first }
    }

    /// The pod as ztunnel is told of it.
    pub(super) fn workload(&self, netns: &Arc<Netns>) -> Option<zds::Workload> {
        let facts = self.known_facts()?;
        Some(zds::Workload {
            uid: self.entry.uid.clone(),
            name: facts.name,
            namespace: facts.namespace,
            service_account: facts.service_account,
            netns: Some(Arc::clone(netns)),
        })
    }

    /// Makes the pod's state seen: registry, log, metrics, the cluster.
    pub(super) fn show(&self, state: State, reason: String) {
        let status = self.put_up(state, reason);
        self.cx.status.stands(&status);
    }

    /// As [`Self::show`], pending, but on this node only: what the cluster reads of the pod is another agent's word.
    pub(super) fn show_here(&self, reason: String) {
        self.put_up(State::Pending, reason);
    }

    fn put_up(&self, state: State, reason: String) -> PodStatus {
        let status = self.describe(state, reason);
        let mut showing = self.entry.showing();
        let before = (showing.status.state, showing.status.reason.clone());
        if before != (status.state, status.reason.clone()) {
            let pod = format!("{}/{}", status.namespace, status.name);
            if status.state == State::Outside && before.0 == State::Outside {
                tracing::debug!(pod, uid = %status.uid, state = %status.state, reason = status.reason, "pod");
            } else {
                tracing::info!(pod, uid = %status.uid, was = %before.0, state = %status.state, reason = status.reason, "pod");
            }
        }
        showing.status = status.clone();
        status
    }

    fn describe(&self, state: State, reason: String) -> PodStatus {
        let facts = self.known_facts();
        let (namespace, name) = match (&facts, &self.sandbox) {
            (Some(facts), _) => (facts.namespace.clone(), facts.name.clone()),
            (None, Some(sandbox)) => (sandbox.pod.namespace.clone(), sandbox.pod.name.clone()),
            (None, None) => (String::new(), String::new()),
        };
        let (because, outside, overrides) = match self.verdict() {
            Verdict::InMesh { because, overrides } => (Some(because), None, overrides),
            Verdict::Outside(reason) => (None, Some(reason), Overrides::default()),
        };
        PodStatus {
            uid: self.entry.uid.clone(),
            namespace,
            name,
            ips: self.ips(),
            state,
            reason,
            because,
            outside,
            overrides,
            netns: self.netns_id(),
            kept_connections: self.grip.kept(),
            drift_repairs: self.drift_repairs,
            checks: Vec::new(),
        }
    }
}

impl Grip {
    fn kept(&self) -> usize {
        match self {
            Self::Redirected(Redirected { plan, .. }) => match &plan.stage {
                Stage::Redirect(Older::Kept(flows)) => flows.len(),
                _ => 0,
            },
            _ => 0,
        }
    }
}
