//! What `sluicectl` asks and the agent answers, over `/run/sluice/admin.sock`: a stream, one JSON document and a
//! newline each way, then the connection ends.

use crate::enroll::{Because, Overrides, Reason};
use crate::ids::{NetnsId, PodUid};
use crate::install::{Holding, Installation, Lease};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The version of these messages.
pub const ADMIN_VERSION: u32 = 1;
/// The longest request taken, in bytes.
pub const MAX_ADMIN_REQUEST: usize = 16 * 1024;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "ask")]
pub enum AdminRequest {
    /// The node and all of its pods.
    Status,
    /// One pod, looked at afresh in the kernel and at ztunnel.
    Why {
        /// `namespace/name`, a bare name if it is unique, or a uid.
        pod: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "answer")]
pub enum AdminReply {
    /// To [`AdminRequest::Status`].
    Status(NodeStatus),
    /// To [`AdminRequest::Why`].
    Why(PodStatus),
    /// It could not be answered.
    Error {
        /// Whether it is the pod that is not known, rather than something that failed.
        #[serde(default)]
        unknown_pod: bool,
        /// Why not, and what to do.
        message: String,
    },
}

/// The node as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// [`ADMIN_VERSION`]
    pub version: u32,
    /// The agent's own version.
    pub agent_version: String,
    /// `nodeName`
    pub node_name: String,
    /// Whether an ADD can be served now.
    pub serving: bool,
    /// Where pods and namespaces come from, and what is wrong there.
    #[serde(default)]
    pub source: SourceStatus,
    /// `nftables` or `iptables`, and why that one.
    pub backend: Choice,
    /// The probe strategy, and why that one.
    pub probes: Choice,
    /// What the self-test has shown of it: `works`, `blocked` or `untested`, and how each strategy that was tried has fared.
    #[serde(default)]
    pub probe_test: Box<Choice>,
    /// The mark guard: `on` or `off`, and why.
    pub mark_guard: Choice,
    /// The drift watch: `events` (seen at once) or `sweep` (seen within a second), and why.
    pub drift_watch: Choice,
    /// How the plugin's installation stands, as the installer has written it in this boot; `None` when it has not.
    #[serde(default)]
    pub installation: Option<Box<Installation>>,
    /// The installation's lease; `None` when there is none.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
    /// The istio-cni that was met on this node: whether it runs, and what was taken over from it.
    #[serde(default)]
    pub predecessor: Option<Choice>,
    /// Every ztunnel that is connected, newest first.
    pub ztunnels: Vec<ZtunnelStatus>,
    /// Every pod that the agent knows.
    pub pods: Vec<PodStatus>,
}

/// Where the agent's knowledge of pods comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `file /etc/sluice/pods.yaml`
    pub from: String,
    /// What is wrong there now: what it said before stays in force.
    pub problem: Option<String>,
}

/// Something that was chosen, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What.
    pub chosen: String,
    /// Why: one line, also for what was tried before and failed.
    pub because: String,
}

/// The lease that the plugin goes by while no agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseStatus {
    /// Whether it holds.
    pub state: LeaseState,
    /// How long ago the installer renewed it, in this boot.
    pub age_seconds: u64,
    /// How long it holds without that.
    pub horizon_seconds: u64,
}

/// Whether a lease holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// Without an agent to ask, pods of the mesh wait.
    Held,
    /// It was given up: nobody waits.
    Released,
    /// It was not renewed for too long: nobody waits.
    Lapsed,
}

/// One connected ztunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZtunnelStatus {
    /// The connection's number, counted from 1 by the agent.
    pub connection: u64,
    /// Its process id, as the agent's pid namespace sees it; 0 when it cannot.
    pub pid: i32,
    /// Whether it has acknowledged its snapshot.
    pub ready: bool,
    /// Its cgroup v2 path, if it could be read.
    pub cgroup: Option<String>,
}

/// How a pod stands, in one word. Only [`State::Enabled`] means captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not in the mesh, by rule.
    Outside,
    /// In the mesh by rule, not captured yet; `reason` says what it waits for. The agent keeps trying.
    Pending,
    /// Its netns holds exactly the planned rules, ztunnel acknowledged it, and ztunnel's sockets listen.
    Enabled,
    /// Leaving: nothing new is captured, proxied connections are being waited for.
    Draining,
    /// What was found in the namespace is not what was planned; it is being put right.
    Drifted,
}

/// One pod as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `metadata.uid`
    pub uid: PodUid,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How it stands.
    pub state: State,
    /// Why, in one line.
    pub reason: String,
    /// The rule that puts it in the mesh.
    pub because: Option<Because>,
    /// The rule that keeps it out.
    pub outside: Option<Reason>,
    /// What its annotations ask for.
    pub overrides: Overrides,
    /// Its network namespace, when the agent knows it.
    pub netns: Option<NetnsId>,
    /// How many connections older than its enrolment keep their path.
    pub kept_connections: usize,
    /// How often its namespace was found changed and was put right.
    pub drift_repairs: u64,
    /// What was looked at, in the order in which a packet would care. Filled for `why`.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

impl State {
    /// Every state, in the order in which a pod goes through them.
    pub const ALL: [Self; 5] = [Self::Outside, Self::Pending, Self::Enabled, Self::Draining, Self::Drifted];
}

impl LeaseStatus {
    /// A lease at `now`, in seconds of the boot `boot`.
    #[must_use]
    pub fn of(lease: &Lease, boot: &str, now: u64) -> Self {
        let state = match lease.holding(boot, now) {
            Holding::Held => LeaseState::Held,
            Holding::Released => LeaseState::Released,
            Holding::Lapsed(_) => LeaseState::Lapsed,
        };
        Self { state, age_seconds: lease.age(boot, now), horizon_seconds: lease.horizon }
    }
}

impl LeaseState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Held, Self::Released, Self::Lapsed];

    /// As in messages and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Released => "released",
            Self::Lapsed => "lapsed",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Outside => "outside",
            Self::Pending => "pending",
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Drifted => "drifted",
        })
    }
}
