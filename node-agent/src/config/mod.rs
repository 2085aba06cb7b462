//! The agent's configuration: one table of keys, read from defaults, a YAML file, the environment and flags.
//!
//! Two levels: [`RawConfig`] is exactly what was written, each value with its origin; [`Config`] is what the rest of the
//! agent sees: resolved, checked, typed.

mod args;
mod env;
mod keys;
mod print;
mod raw;
mod resolve;
mod value;

use crate::yaml::Mistake;
pub use args::{Invocation, Mode};
pub use env::{Env, ProcessEnv};
pub use print::{in_force, reference};
pub use raw::{Origin, RawConfig, Setting};
use sluice_shared::enroll::{EnablementSelector, EnrollPolicy};
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::membership::WhenAgentUnavailable;
use sluice_shared::plan::RedirectConfig;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration in force: every value resolved and checked. What each key means is in `docs/config.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `source`, `kubeconfig` and `podsFile`
    pub source: Source,
    /// `nodeName`
    pub node_name: String,
    /// `namespace`, `daemonset`, `podName` and `podUid`
    pub own: Own,
    /// `nodeTaints`
    pub node_taints: Vec<String>,
    /// `agentSocket`
    pub agent_socket: PathBuf,
    /// `adminSocket`
    pub admin_socket: PathBuf,
    /// `zdsSocket`
    pub zds_socket: PathBuf,
    /// `stateDir`
    pub state_dir: PathBuf,
    /// `runDir`
    pub run_dir: PathBuf,
    /// `backend`
    pub backend: BackendChoice,
    /// `probes`
    pub probes: ProbesChoice,
    /// `probeSourceV4`
    pub probe_source_v4: Ipv4Addr,
    /// `probeSourceV6`
    pub probe_source_v6: Ipv6Addr,
    /// `ipv6`
    pub ipv6: bool,
    /// `dnsCapture`
    pub dns_capture: bool,
    /// `excludeNamespaces`
    pub exclude_namespaces: BTreeSet<String>,
    /// `enablementSelectors`
    pub enablement_selectors: Vec<EnablementSelector>,
    /// `whenAgentUnavailable`
    pub when_agent_unavailable: WhenAgentUnavailable,
    /// `metricsAddress`; `None` is off.
    pub metrics_address: Option<SocketAddr>,
    /// `existingConnections`
    pub existing_connections: ExistingConnections,
    /// `drainTimeoutSeconds`
    pub drain_timeout: Duration,
    /// `holdTimeoutSeconds`; `None` holds for ever.
    pub hold_timeout: Option<Duration>,
    /// `addTimeoutSeconds`; below the plugin's own limit, so that the agent's answer arrives first.
    pub add_timeout: Duration,
    /// `hostProc`
    pub host_proc: PathBuf,
    /// `hostNetns`, or what follows from `hostProc`.
    pub host_netns: PathBuf,
    /// `kubeletCgroup`
    pub kubelet_cgroup: KubeletCgroup,
    /// `markGuard`
    pub mark_guard: MarkGuardChoice,
    /// `criSocket`: the sockets that are tried, in order; empty is off.
    pub cri_sockets: Vec<PathBuf>,
    /// `netnsDirs`
    pub netns_dirs: Vec<PathBuf>,
    /// `kernelThreads`, with 0 already replaced by the number of CPUs.
    pub kernel_threads: NonZeroUsize,
    /// `logFormat`
    pub log_format: LogFormat,
    /// `logLevel`: a filter that `tracing_subscriber::EnvFilter` has parsed.
    pub log_level: String,
}

/// Where pods and namespaces come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Kubernetes {
        /// The way to it; `None` is the service account of the agent's pod.
        kubeconfig: Option<PathBuf>,
    },
    /// A YAML file of pods and namespaces, watched.
    File(PathBuf),
}

/// Who the agent is in the cluster, as far as it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Its DaemonSet.
    pub daemon_set: Option<DaemonSetRef>,
    /// Its pod.
    pub pod: Option<(PodRef, PodUid)>,
}

/// A DaemonSet by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSetRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Which backend to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The first that this kernel takes: nftables, then iptables.
    Auto,
    /// nftables, or fail at start.
    Nftables,
    /// iptables, or fail at start.
    Iptables,
}

/// How the kubelet's probes are to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbesChoice {
    /// The first that works here: snat, then source.
    Auto,
    /// A secret in the SYN, or what `Auto` takes where that does not work.
    Cookie,
    /// The host's table, or fail at start.
    Snat,
    /// The node's own addresses, to declared probe ports.
    Source,
    /// They do not.
    None,
}

/// What becomes of a connection that is older than its pod's enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingConnections {
    /// It keeps its path until it ends.
    Keep,
    /// It is cut, so that the application opens it again through the mesh.
    Reset,
}

/// Where the kubelet runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeletCgroup {
    /// To be found from the running processes.
    Auto,
    /// This cgroup v2 directory, below the hierarchy's root: `/system.slice/kubelet.service`.
    Path(PathBuf),
}

/// Whether ztunnel's mark is trusted only on ztunnel's own sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkGuardChoice {
    /// Where a cgroup v2 hierarchy allows it.
    Auto,
    /// Never.
    Off,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with the configuration: it ends the agent at start, with exit code 64 (`EX_USAGE`, sysexits.h).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML, or has a key that does not exist.
    #[error("{}: {mistake}", path.display())]
    Yaml {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        mistake: Mistake,
    },
    /// A value is not one that its key takes.
    #[error("{place}; allowed: {allowed}")]
    Invalid {
        /// Where it is, which key, what is wrong.
        place: String,
        /// What the key takes.
        allowed: String,
    },
    /// A value is right by itself, and cannot be used here.
    #[error("{origin}: {key}: {why}")]
    Refused {
        /// Where it is.
        origin: Origin,
        /// Which key.
        key: String,
        /// Why not, and what to do.
        why: String,
    },
}

impl Config {
    /// The node's rules for membership.
    #[must_use]
    pub fn enroll_policy(&self) -> EnrollPolicy {
        EnrollPolicy {
            exclude_namespaces: self.exclude_namespaces.clone(),
            selectors: self.enablement_selectors.clone(),
        }
    }

    /// The node's part of every plan.
    #[must_use]
    pub fn redirect_config(&self) -> RedirectConfig {
        RedirectConfig { dns_capture: self.dns_capture, ipv6: self.ipv6 }
    }
}
