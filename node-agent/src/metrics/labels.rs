//! What metrics are told apart by.

use prometheus_client::encoding::EncodeLabelSet;

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
    /// The program on the kubelet's cgroup, for the probe strategy `cookie`.
    CookieProgram,
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
pub(super) struct PhaseLabel {
    pub(super) phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabel {
    pub(super) state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ObjectLabel {
    pub(super) object: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StepLabel {
    pub(super) step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabel {
    pub(super) source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabel {
    pub(super) verb: &'static str,
    pub(super) code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ProbesLabel {
    pub(super) strategy: String,
    pub(super) tested: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BackendLabel {
    pub(super) kind: String,
}

impl AddPhase {
    pub(super) const fn label(self) -> &'static str {
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
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::PolicyRule => "policy_rule",
            Self::Route => "route",
            Self::HostTable => "host_table",
            Self::CookieProgram => "cookie_program",
            Self::Listeners => "listeners",
        }
    }
}

impl KernelStep {
    pub(super) const fn label(self) -> &'static str {
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
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cni => "cni",
            Self::Kubernetes => "kubernetes",
        }
    }
}
