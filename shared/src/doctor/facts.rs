//! What is gathered on a node: facts, with no judgement.

use super::policy::NetworkPolicy;
use crate::admin::NodeStatus;
use crate::conflist::{Directory, Runtime};
use std::collections::{BTreeMap, BTreeSet};

/// A fact, or why it is not known.
pub type Look<T> = Result<T, Unlooked>;

/// Why something was not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlooked {
    /// Why.
    pub why: String,
    /// What to do so that it is.
    pub how: String,
    /// Whether it needs the API server, which this run was not told how to reach.
    pub not_asked_for: bool,
}

/// All that was gathered.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The runtime's configuration directory.
    pub cni: Look<CniFacts>,
    /// The plugin's file in the runtime's directory of plugins.
    pub plugin: Look<PluginFile>,
    /// What the kernel did when it was asked to, in a network namespace made for the purpose.
    pub kernel: Look<KernelTrials>,
    /// The BPF programs of the node.
    pub bpf: Look<BpfFacts>,
    /// Sysctls of the host's network namespace, by their dotted names; what this kernel does not have is not in it. Of
    /// interfaces those are there by which pods' traffic may come in.
    pub sysctls: Look<BTreeMap<String, String>>,
    /// The names of the host's interfaces.
    pub interfaces: Look<BTreeSet<String>>,
    /// How cgroup v2 is mounted.
    pub cgroup: Look<CgroupTree>,
    /// Limits on inotify.
    pub limits: Look<Limits>,
    /// Sockets and directories that tell of another mesh, of those that were looked for.
    pub traces: Look<Vec<String>>,
    /// The files by which our own parts tell each other things.
    pub notes: Look<Notes>,
    /// The agent.
    pub agent: Agent,
    /// What the API server said.
    pub cluster: Look<Cluster>,
}

/// The runtime's configuration directory.
#[derive(Clone, Debug)]
pub struct CniFacts {
    /// Where it is on the node.
    pub path: String,
    /// The preset of the chart that has it, or its plugins, there; `None` for the usual places.
    pub platform: Option<&'static str>,
    /// What is in it.
    pub directory: Directory,
    /// Why it cannot be written; `None` when it can, as far as that can be told without writing.
    pub not_writable: Option<String>,
}

/// The plugin's file.
#[derive(Clone, Debug, Default)]
pub struct PluginFile {
    /// The directory of plugins on the node.
    pub directory: String,
    /// Why there is no such directory, or it cannot be written.
    pub not_writable: Option<String>,
    /// Whether nothing in it can be executed (`noexec`).
    pub noexec: bool,
    /// The mode of the plugin's file (`st_mode`, with its kind); `None` when there is none.
    pub mode: Option<u32>,
    /// Whether it has the same bytes as the plugin that came with this program; `None` when it cannot be compared.
    pub current: Option<bool>,
    /// Plugins of other meshes that are there.
    pub others: Vec<String>,
}

/// One thing that the kernel was asked to do; `Err` has its words.
pub type Trial = Result<(), String>;

/// What the kernel did.
#[derive(Clone, Debug)]
pub struct KernelTrials {
    /// Its release.
    pub release: String,
    /// The whole plan, by nftables.
    pub nftables: Trial,
    /// The whole plan, by iptables; not tried where nftables works.
    pub iptables: Trial,
    /// The plan without IPv6, by nftables; tried when the whole one failed.
    pub nftables_v4: Option<Trial>,
    /// The plan with rules that tell sockets by their cgroup, by the backend that works.
    pub mark_guard: Look<Trial>,
    /// Sockets that have addresses of others (`IP_TRANSPARENT`), IPv4.
    pub transparent_v4: Trial,
    /// The same, IPv6.
    pub transparent_v6: Trial,
}

/// The BPF programs of the node.
#[derive(Clone, Debug)]
pub struct BpfFacts {
    /// Whether the kernel takes the program of the probe strategy `cookie`.
    pub cookies: Trial,
    /// The programs that are loaded.
    pub programs: Vec<BpfProgram>,
}

/// A BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfProgram {
    /// The kernel's id.
    pub id: u32,
    /// `enum bpf_prog_type` (include/uapi/linux/bpf.h).
    pub kind: u32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
}

/// How cgroup v2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupTree {
    /// At this place, and nothing else.
    Unified(String),
    /// At this place, beside the controllers of v1.
    Hybrid(String),
    /// Nowhere.
    Absent,
}

/// Limits on inotify.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `fs.inotify.max_user_instances`; `None` where a namespace hides it.
    pub inotify_instances: Option<u64>,
    /// Whether one more instance can be had now.
    pub inotify_now: Look<Trial>,
}

/// The files by which our own parts tell each other things.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// This boot, as the kernel names it.
    pub boot: String,
    /// Seconds since this boot began.
    pub uptime: u64,
    /// Each that is there.
    pub files: Vec<Note>,
}

/// One of those files.
#[derive(Clone, Debug)]
pub struct Note {
    /// Which.
    pub kind: NoteKind,
    /// Where it is.
    pub path: String,
    /// What it says, or why it cannot be read.
    pub bytes: Result<Vec<u8>, String>,
}

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// `runtime.json`
    Runtime,
    /// `intent.json`
    Intent,
    /// `install.json`
    Installation,
    /// `lease.json`
    Lease,
    /// `membership.json`
    Membership,
}

/// The agent.
#[derive(Clone, Debug)]
pub enum Agent {
    /// It answered.
    Answers(Box<NodeStatus>),
    /// Its socket is not there.
    Absent {
        /// Where it was looked for.
        socket: String,
    },
    /// Whoever asks may not.
    Forbidden {
        /// The socket.
        socket: String,
    },
    /// Its socket is there, and it did not answer.
    Silent {
        /// The socket.
        socket: String,
        /// Why.
        why: String,
    },
}

/// What the API server said.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The names of all namespaces, and whether their label puts them into the mesh.
    pub namespaces: Look<BTreeMap<String, bool>>,
    /// Every NetworkPolicy.
    pub policies: Look<Vec<NetworkPolicy>>,
    /// Every DaemonSet.
    pub daemon_sets: Look<Vec<DaemonSet>>,
    /// The ConfigMap `kube-system/cilium-config`; `None` when there is none.
    pub cilium: Look<Option<BTreeMap<String, String>>>,
    /// How many seconds this node's clock is ahead of the API server's.
    pub clock_ahead: Look<i64>,
}

/// A DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonSet {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The variables of all of its containers that have a plain value.
    pub env: BTreeMap<String, String>,
}

impl Unlooked {
    /// Something on this node.
    #[must_use]
    pub fn new(why: impl Into<String>, how: impl Into<String>) -> Self {
        Self { why: why.into(), how: how.into(), not_asked_for: false }
    }

    /// Something of the API server's, which nobody said how to reach.
    #[must_use]
    pub fn no_cluster() -> Self {
        Self {
            why: "it is in the API server, which this run was not told how to reach".to_owned(),
            how: "give --kubeconfig FILE, or --in-cluster in a pod whose account may read it".to_owned(),
            not_asked_for: true,
        }
    }
}

impl Facts {
    /// One of the API server's answers, with the reason that is nearest where there is none.
    pub(super) fn of_cluster<T>(&self, part: impl Fn(&Cluster) -> &Look<T>) -> Result<&T, &Unlooked> {
        self.cluster.as_ref().and_then(|cluster| part(cluster).as_ref())
    }

    pub(super) fn note(&self, kind: NoteKind) -> Option<&Note> {
        self.notes.as_ref().ok()?.files.iter().find(|note| note.kind == kind)
    }

    /// The runtime that the agent has written down.
    pub(super) fn runtime(&self) -> Option<Runtime> {
        serde_json::from_slice(self.note(NoteKind::Runtime)?.bytes.as_ref().ok()?).ok()
    }

    /// The agent's answer.
    pub(super) fn answer(&self) -> Option<&NodeStatus> {
        match &self.agent {
            Agent::Answers(status) => Some(status),
            Agent::Absent { .. } | Agent::Forbidden { .. } | Agent::Silent { .. } => None,
        }
    }
}

impl NoteKind {
    /// The file's name.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Runtime => crate::install::RUNTIME_FILE,
            Self::Intent => crate::install::INTENT_FILE,
            Self::Installation => crate::install::INSTALLATION_FILE,
            Self::Lease => crate::install::LEASE_FILE,
            Self::Membership => crate::contract::MEMBERSHIP_FILE,
        }
    }
}
