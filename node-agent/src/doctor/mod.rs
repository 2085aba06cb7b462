//! `sluicectl doctor`: gathers what `shared::doctor` judges, and puts its report into words. It works where no agent runs.
//!
//! Everything is read: files of the node below one root, /proc, and lists of the API server. What the kernel can do is
//! behind [`Examiner`].

mod cluster;
mod cni;
mod date;
mod files;
mod node;
mod render;
mod root;

pub use render::render;
pub use root::Root;

use crate::kernel::Examiner;
use sluice_shared::contract::{RUN_DIR, STATE_DIR};
use sluice_shared::doctor::{Agent, Facts};
use std::path::PathBuf;

/// Where things are, and what may be asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's root directory and its /proc.
    pub root: Root,
    /// The runtime's configuration, on the node; `None` looks in the usual places.
    pub conf_dir: Option<PathBuf>,
    /// The runtime's plugins, on the node; `None` is what goes with the configuration's place.
    pub bin_dir: Option<PathBuf>,
    /// What lives for one boot, on the node.
    pub run_dir: PathBuf,
    /// What survives boots, on the node.
    pub state_dir: PathBuf,
    /// The plugin of this release, beside this program.
    pub plugin: PathBuf,
    /// How to reach the API server.
    pub api_server: ApiServer,
}

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiServer {
    /// Not at all: nobody said how.
    Unasked,
    /// By the current context of this file.
    Kubeconfig(PathBuf),
    /// By the service account that is mounted here.
    InCluster,
}

impl Options {
    /// The usual places on this node, with no API server.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            root,
            conf_dir: None,
            bin_dir: None,
            run_dir: RUN_DIR.into(),
            state_dir: STATE_DIR.into(),
            plugin: "/usr/local/bin/sluice-cni".into(),
            api_server: ApiServer::Unasked,
        }
    }
}

/// Looks at everything. `agent` is what became of asking it.
pub async fn gather(options: &Options, examiner: &impl Examiner, agent: Agent) -> Facts {
    let root = &options.root;
    let (cni, plugin) = cni::look(options);
    Facts {
        cni,
        plugin,
        kernel: examiner.trials(),
        bpf: examiner.bpf(),
        sysctls: node::sysctls(root),
        interfaces: node::interfaces(root),
        cgroup: node::cgroup(root),
        limits: node::limits(root, examiner.inotify()),
        traces: Ok(node::traces(root)),
        notes: node::notes(options),
        agent,
        cluster: cluster::ask(&options.api_server).await,
    }
}
