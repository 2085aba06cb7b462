//! What the agent counts, in Prometheus' terms.
//!
//! `ztunnel_connected` keeps istio-cni's name, since it means the same. The rest is ours (`sluice_…`): istio-cni's
//! `istio_cni_plugin_requests_total` is labelled with HTTP status codes, which our socket does not have.

mod installation;
mod labels;

pub use labels::{AddPhase, DriftObject, KernelStep, SourceKind};

use installation::InstallationMetrics;
use labels::{
    BackendLabel, ObjectLabel, PhaseLabel, ProbesLabel, RequestLabel, ResultLabel, SourceLabel, StateLabel,
    StepLabel,
};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use sluice_shared::admin::{LeaseStatus, State};
use sluice_shared::install::Installation;
use sluice_shared::wire::Reply;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Every metric of the agent. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    add_duration: Family<PhaseLabel, Histogram>,
    pods: Family<StateLabel, Gauge>,
    held_pods: Gauge,
    drift_repairs: Family<ObjectLabel, Counter>,
    kernel_errors: Family<StepLabel, Counter>,
    zds_nacks: Counter,
    source_errors: Family<SourceLabel, Counter>,
    plugin_requests: Family<RequestLabel, Counter>,
    status_patches: Family<ResultLabel, Counter>,
    status_pending: Gauge,
    events: Family<ResultLabel, Counter>,
    ztunnels: Gauge,
    start_to_ready: Gauge<f64, AtomicU64>,
    open_netns_fds: Gauge,
    membership_stale: Gauge,
    backend: Family<BackendLabel, Gauge>,
    probes: Family<ProbesLabel, Gauge>,
    probe_tests: Family<ResultLabel, Counter>,
    installation: InstallationMetrics,
}

impl Metrics {
    /// All at zero. The states of pods are there from the start, so that a rate or an alert has something to go by.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("sluice_build", "The agent's version", build);
        let metrics = Self {
            registry: Arc::default(),
            add_duration: Family::new_with_constructor(add_histogram),
            pods: Family::default(),
            held_pods: Gauge::default(),
            drift_repairs: Family::default(),
            kernel_errors: Family::default(),
            zds_nacks: Counter::default(),
            source_errors: Family::default(),
            plugin_requests: Family::default(),
            status_patches: Family::default(),
            status_pending: Gauge::default(),
            events: Family::default(),
            ztunnels: Gauge::default(),
            start_to_ready: Gauge::default(),
            open_netns_fds: Gauge::default(),
            membership_stale: Gauge::default(),
            backend: Family::default(),
            probes: Family::default(),
            probe_tests: Family::default(),
            installation: InstallationMetrics::default(),
        };
        metrics.register(&mut registry);
        for state in State::ALL {
            metrics.set_pods(state, 0);
        }
        Self { registry: Arc::new(registry), ..metrics }
    }

    fn register(&self, to: &mut Registry) {
        to.register_with_unit(
            "sluice_add_duration",
            "Time that an ADD took, by phase",
            Unit::Seconds,
            self.add_duration.clone(),
        );
        to.register("sluice_pods", "Pods of this node, by state", self.pods.clone());
        to.register(
            "sluice_held_pods",
            "Enrolled pods whose new connections are held, since no ztunnel listens in them",
            self.held_pods.clone(),
        );
        to.register(
            "sluice_drift_repairs",
            "Times that something was found changed and was put right",
            self.drift_repairs.clone(),
        );
        to.register(
            "sluice_kernel_errors",
            "Steps that the kernel refused or failed",
            self.kernel_errors.clone(),
        );
        to.register("sluice_zds_nacks", "Pods that ztunnel refused", self.zds_nacks.clone());
        to.register("sluice_source_errors", "Input that could not be used", self.source_errors.clone());
        to.register(
            "sluice_plugin_requests",
            "Requests of the CNI plugin, by the CNI error code of the answer (0 is success)",
            self.plugin_requests.clone(),
        );
        to.register(
            "sluice_status_patches",
            "Writes of pods' annotations, by what became of them",
            self.status_patches.clone(),
        );
        to.register(
            "sluice_status_pending",
            "Pods whose annotation is not yet what it should be",
            self.status_pending.clone(),
        );
        to.register("sluice_events", "Events on pods, by what became of them", self.events.clone());
        to.register("ztunnel_connected", "Connections to ztunnel", self.ztunnels.clone());
        to.register_with_unit(
            "sluice_start_to_ready",
            "Time from the agent's start until it could serve an ADD; 0 until then",
            Unit::Seconds,
            self.start_to_ready.clone(),
        );
        to.register(
            "sluice_open_netns_fds",
            "Network namespaces that the agent holds open",
            self.open_netns_fds.clone(),
        );
        to.register(
            "sluice_membership_stale",
            "1 while the membership file, by which the plugin goes without an agent, cannot be written",
            self.membership_stale.clone(),
        );
        to.register("sluice_backend_info", "The backend in use", self.backend.clone());
        to.register(
            "sluice_probes_info",
            "The probe strategy in use, and what the last self-test has shown of it",
            self.probes.clone(),
        );
        to.register(
            "sluice_probe_tests",
            "Probe self-tests, by what they have shown",
            self.probe_tests.clone(),
        );
        self.installation.register(to);
    }

    /// An ADD spent this long in this phase.
    pub fn add_took(&self, phase: AddPhase, time: Duration) {
        self.add_duration.get_or_create(&PhaseLabel { phase: phase.label() }).observe(time.as_secs_f64());
    }

    /// So many pods are in this state.
    pub fn set_pods(&self, state: State, count: usize) {
        self.pods.get_or_create(&StateLabel { state: state.to_string() }).set(clamp(count));
    }

    /// So many enrolled pods have no ztunnel listening in them.
    pub fn set_held_pods(&self, count: usize) {
        self.held_pods.set(clamp(count));
    }

    /// Something was found changed and was put right.
    pub fn drift_repaired(&self, object: DriftObject) {
        self.drift_repairs.get_or_create(&ObjectLabel { object: object.label() }).inc();
    }

    /// The kernel refused or failed a step.
    pub fn kernel_error(&self, step: KernelStep) {
        self.kernel_errors.get_or_create(&StepLabel { step: step.label() }).inc();
    }

    /// ztunnel refused a pod.
    pub fn zds_nack(&self) {
        self.zds_nacks.inc();
    }

    /// A source had input that could not be used.
    pub fn source_error(&self, source: SourceKind) {
        self.source_errors.get_or_create(&SourceLabel { source: source.label() }).inc();
    }

    /// A request of the plugin was answered. `verb` is a CNI verb, or `invalid` when it could not be read.
    pub fn plugin_request(&self, verb: &'static str, reply: &Reply) {
        let code = match reply {
            Reply::Ok { .. } => 0,
            Reply::Error { code, .. } => *code,
        };
        self.plugin_requests.get_or_create(&RequestLabel { verb, code }).inc();
    }

    /// A write of a pod's annotation ended so.
    pub fn status_patch(&self, result: &'static str) {
        self.status_patches.get_or_create(&ResultLabel { result }).inc();
    }

    /// So many pods' annotations are not what they should be yet.
    pub fn set_status_pending(&self, count: usize) {
        self.status_pending.set(clamp(count));
    }

    /// An Event ended so.
    pub fn event(&self, result: &'static str) {
        self.events.get_or_create(&ResultLabel { result }).inc();
    }

    /// So many ztunnels are connected.
    pub fn set_ztunnels(&self, count: usize) {
        self.ztunnels.set(clamp(count));
    }

    /// The agent became able to serve an ADD, this long after its start. Only the first call counts.
    pub fn ready_after(&self, time: Duration) {
        if self.start_to_ready.get() == 0.0 {
            self.start_to_ready.set(time.as_secs_f64());
        }
    }

    /// So many network namespaces are held open.
    pub fn set_open_netns_fds(&self, count: usize) {
        self.open_netns_fds.set(clamp(count));
    }

    /// Whether the membership file is an old one, since it cannot be written.
    pub fn set_membership_stale(&self, stale: bool) {
        self.membership_stale.set(stale.into());
    }

    /// This backend is in use; none other is any more.
    pub fn set_backend(&self, kind: impl fmt::Display) {
        self.backend.clear();
        self.backend.get_or_create(&BackendLabel { kind: kind.to_string() }).set(1);
    }

    /// Probes go this way, of which the last self-test has shown so much; there is no other.
    pub fn probes(&self, strategy: &str, tested: &str) {
        let (strategy, tested) = (strategy.to_owned(), tested.to_owned());
        self.probes.clear();
        self.probes.get_or_create(&ProbesLabel { strategy, tested }).set(1);
    }

    /// A probe self-test has shown so.
    pub fn probe_test(&self, result: &'static str) {
        self.probe_tests.get_or_create(&ResultLabel { result }).inc();
    }

    /// The installation stands so.
    pub fn installation(&self, installation: Option<&Installation>, lease: Option<&LeaseStatus>) {
        self.installation.set(installation, lease);
    }

    /// An attempt to remove taints from the node ended so.
    pub fn taint_removal(&self, result: &'static str) {
        self.installation.taint_removal(result);
    }

    /// All of it, in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail; a metric that refuses to be encoded would be a mistake of ours.
        if let Err(e) = text::encode(&mut out, &self.registry) {
            tracing::error!(error = %e, "the metrics could not be encoded");
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// From 0.25 ms (a rule set alone) to 16 s (beyond the plugin's limit), doubling.
fn add_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 17))
}

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
