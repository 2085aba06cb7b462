//! What the agent counts, in Prometheus' terms.
//!
//! `ztunnel_connected` keeps istio-cni's name, since it means the same. The rest is ours (`sluice_…`): istio-cni's
//! `istio_cni_plugin_requests_total` is labelled with HTTP status codes, which our socket does not have.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use sluice_shared::admin::State;
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
}

/// A part of an ADD's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddPhase {
    /// Waiting for another step on the same pod to end, or for the API server where its watch has not shown the pod yet.
    Queue,
    /// Finding out what the pod is and whether it is in the mesh.
    Decide,
    /// Writing rule, route and rule set.
    Kernel,
    /// From the hand-over until ztunnel's ack.
    Ztunnel,
    /// The last look at what is in force, with the host's table made to know the pod.
    Confirm,
    /// All of it, from the request's arrival (at the agent's start, from when the source has spoken) to the answer.
    Total,
}

/// What was found changed, and was put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DriftObject {
    /// A pod's rule set.
    Rules,
    /// A pod's policy rule.
    PolicyRule,
    /// A pod's local route.
    Route,
    /// The host's table.
    HostTable,
    /// ztunnel's listeners in a pod.
    Listeners,
}

/// Where the kernel refused or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelStep {
    /// Putting a pod's plan in force.
    Enroll,
    /// Replacing it.
    Replace,
    /// Taking it away.
    Remove,
    /// Looking at what is there.
    Observe,
    /// The host's table.
    Host,
    /// Opening a pod's network namespace.
    Netns,
}

/// Which source made an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// The pods file: it could not be read, or has a mistake.
    File,
    /// The plugin's socket: a message that breaks the protocol, or a caller that is not root.
    Cni,
    /// The API server: a request that failed, or an object that could not be used.
    Kubernetes,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectLabel {
    object: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    verb: &'static str,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    kind: String,
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

impl AddPhase {
    const fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Decide => "decide",
            Self::Kernel => "kernel",
            Self::Ztunnel => "ztunnel",
            Self::Confirm => "confirm",
            Self::Total => "total",
        }
    }
}

impl DriftObject {
    const fn label(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::PolicyRule => "policy_rule",
            Self::Route => "route",
            Self::HostTable => "host_table",
            Self::Listeners => "listeners",
        }
    }
}

impl KernelStep {
    const fn label(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Replace => "replace",
            Self::Remove => "remove",
            Self::Observe => "observe",
            Self::Host => "host",
            Self::Netns => "netns",
        }
    }
}

impl SourceKind {
    const fn label(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cni => "cni",
            Self::Kubernetes => "kubernetes",
        }
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
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_name() {
        let metrics = Metrics::new();
        metrics.add_took(AddPhase::Kernel, Duration::from_millis(1));
        metrics.set_pods(State::Enabled, 3);
        metrics.set_held_pods(1);
        metrics.drift_repaired(DriftObject::PolicyRule);
        metrics.kernel_error(KernelStep::Enroll);
        metrics.zds_nack();
        metrics.source_error(SourceKind::File);
        metrics.plugin_request("ADD", &Reply::Ok { outcome: "captured".to_owned() });
        metrics.status_patch("ok");
        metrics.set_status_pending(5);
        metrics.event("withheld");
        metrics.set_ztunnels(2);
        metrics.ready_after(Duration::from_millis(1500));
        metrics.ready_after(Duration::from_secs(99));
        metrics.set_open_netns_fds(4);
        metrics.set_membership_stale(true);
        metrics.set_backend("iptables");
        metrics.set_backend("nftables");
        let text = metrics.render();
        for line in [
            "sluice_add_duration_seconds_bucket{le=\"0.001\",phase=\"kernel\"} 1",
            "sluice_pods{state=\"enabled\"} 3",
            "sluice_pods{state=\"drifted\"} 0",
            "sluice_held_pods 1",
            "sluice_drift_repairs_total{object=\"policy_rule\"} 1",
            "sluice_kernel_errors_total{step=\"enroll\"} 1",
            "sluice_zds_nacks_total 1",
            "sluice_source_errors_total{source=\"file\"} 1",
            "sluice_plugin_requests_total{verb=\"ADD\",code=\"0\"} 1",
            "sluice_status_patches_total{result=\"ok\"} 1",
            "sluice_status_pending 5",
            "sluice_events_total{result=\"withheld\"} 1",
            "ztunnel_connected 2",
            "sluice_start_to_ready_seconds 1.5",
            "sluice_open_netns_fds 4",
            "sluice_membership_stale 1",
            "sluice_backend_info{kind=\"nftables\"} 1",
            concat!("sluice_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("kind=\"iptables\""), "the backend before is still there:\n{text}");
    }
}
