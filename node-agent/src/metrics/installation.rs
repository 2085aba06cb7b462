//! How the installation stands, in Prometheus' terms.

use super::labels::{ResultLabel, StateLabel};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use sluice_shared::admin::{LeaseState, LeaseStatus};
use sluice_shared::install::{Installation, State};
use std::sync::atomic::Ordering;

/// The state where no installer has written one in this boot.
const UNKNOWN: &str = "unknown";
/// The lease where there is none.
const NONE: &str = "none";

#[derive(Clone, Default)]
pub(super) struct InstallationMetrics {
    state: Family<StateLabel, Gauge>,
    writes: Counter,
    repairs: Counter,
    undone: Gauge,
    lease: Family<StateLabel, Gauge>,
    lease_age: Gauge,
    taint_removals: Family<ResultLabel, Counter>,
}

impl InstallationMetrics {
    pub(super) fn register(&self, to: &mut Registry) {
        to.register(
            "sluice_install_state",
            "1 for the state of the plugin's installation on this node; chained and fighting mean that it is in the chain",
            self.state.clone(),
        );
        to.register(
            "sluice_install_writes",
            "Times that the installer wrote to the CNI configuration directory, in this boot",
            self.writes.clone(),
        );
        to.register(
            "sluice_install_repairs",
            "Times that the plugin was put back into the chain after others had removed it, in this boot",
            self.repairs.clone(),
        );
        to.register(
            "sluice_install_fight_undone",
            "Times that another program took the plugin out of the chain in the last minute; 0 while none fights",
            self.undone.clone(),
        );
        to.register(
            "sluice_lease_state",
            "1 for the state of the installation's lease; with lapsed or released no pod is held back without an agent",
            self.lease.clone(),
        );
        to.register_with_unit(
            "sluice_lease_age",
            "Time since the installer renewed the lease, in this boot",
            Unit::Seconds,
            self.lease_age.clone(),
        );
        to.register(
            "sluice_taint_removals",
            "Attempts to remove taints from this node, by what became of them",
            self.taint_removals.clone(),
        );
        self.set(None, None);
    }

    pub(super) fn set(&self, installation: Option<&Installation>, lease: Option<&LeaseStatus>) {
        let states = State::ALL.map(State::as_str);
        one_of(&self.state, states, UNKNOWN, installation.map(|found| found.state.as_str()));
        let leases = LeaseState::ALL.map(LeaseState::as_str);
        one_of(&self.lease, leases, NONE, lease.map(|lease| lease.state.as_str()));
        if let Some(found) = installation {
            // They are counted by the installer, and from 0 again after a boot.
            self.writes.inner().store(found.writes, Ordering::Relaxed);
            self.repairs.inner().store(found.repairs, Ordering::Relaxed);
        }
        let undone = installation.and_then(|found| found.fight.as_ref()).map_or(0, |fight| fight.times);
        self.undone.set(undone.try_into().unwrap_or(i64::MAX));
        self.lease_age.set(lease.map_or(0, |lease| lease.age_seconds).try_into().unwrap_or(i64::MAX));
    }

    pub(super) fn taint_removal(&self, result: &'static str) {
        self.taint_removals.get_or_create(&ResultLabel { result }).inc();
    }
}

/// 1 for the state that it is, or for `otherwise`, and 0 for all others.
fn one_of<const N: usize>(
    family: &Family<StateLabel, Gauge>,
    states: [&'static str; N],
    otherwise: &'static str,
    is: Option<&str>,
) {
    for state in states.into_iter().chain([otherwise]) {
        let label = StateLabel { state: state.to_owned() };
        family.get_or_create(&label).set((state == is.unwrap_or(otherwise)).into());
    }
}
