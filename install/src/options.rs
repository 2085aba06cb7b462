//! Where things are on this node, and what our entry says.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use sluice_shared::cni::{ExemptPod, LogLevel};
use sluice_shared::conflist::{DropIns, Entry, Runtime, Way};
use sluice_shared::contract::{AGENT_SOCKET, RUN_DIR, STATE_DIR};
use sluice_shared::install::{
    CHAINING_FILE, INSTALLATION_FILE, INTENT_FILE, LEASE_FILE, PREDECESSOR_FILE, RUNTIME_FILE,
};
use std::path::PathBuf;

/// The node's directories, as this program sees them.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// The runtime's network configuration
    #[arg(long, env = "SLUICE_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The runtime's CNI plugins
    #[arg(long, env = "SLUICE_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// What survives a reboot: lease, membership
    #[arg(long, env = "SLUICE_HOST_STATE_DIR", value_name = "DIR", default_value = STATE_DIR)]
    pub host_state_dir: PathBuf,
    /// What lives for one boot
    #[arg(long, env = "SLUICE_RUN_DIR", value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// How the installation is to be.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// The plugin to put onto the node
    #[arg(long, env = "SLUICE_PLUGIN", value_name = "FILE", default_value = "/usr/local/bin/sluice-cni")]
    pub plugin: PathBuf,
    /// How to get into the chain: auto, drop-in, in-place or owned
    #[arg(long, env = "SLUICE_WAY", value_name = "WAY", default_value = "auto", value_parser = way)]
    pub way: Chosen,
    /// The node's runtime as its status names it, such as containerd://2.1.4; else the agent says it
    #[arg(long, env = "SLUICE_RUNTIME", value_name = "NAME://VERSION", value_parser = runtime)]
    pub runtime: Option<Runtime>,
    /// The chain that Multus runs after its default network, where it is set up (OpenShift: vendor-cni-chain)
    #[arg(long, env = "SLUICE_AUXILIARY_CHAIN", value_name = "NETWORK")]
    pub auxiliary_chain: Option<String>,
    /// Whether an istio-cni that was chained here is replaced: when the agent sees that it is gone, at once, or never
    #[arg(long, env = "SLUICE_REPLACE_ISTIO_CNI", value_name = "WHEN", default_value = "auto")]
    pub replace_istio_cni: Replace,
    /// How long the plugin holds pods of the mesh back after Sluice has left this node without saying so, in seconds
    #[arg(long, env = "SLUICE_LEASE_HORIZON", value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u64).range(60..))]
    pub lease_horizon: u64,
    /// How long a list of our own waits for the primary's after a reboot, in seconds
    #[arg(long, env = "SLUICE_REBOOT_GRACE", value_name = "SECONDS", default_value_t = 600)]
    pub reboot_grace: u64,
    #[command(flatten)]
    pub entry: EntryOptions,
}

/// What our entry says.
#[derive(Args, Clone, Debug)]
pub struct EntryOptions {
    /// The agent's socket, when it is not /run/sluice/agent.sock
    #[arg(long, env = "SLUICE_AGENT_SOCKET", value_name = "PATH")]
    pub agent_socket: Option<String>,
    /// Where membership.json is for the plugin, when it is not /var/lib/sluice
    #[arg(long, env = "SLUICE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// How long ADD waits for the agent: 1 to 60 (30 when it is not given)
    #[arg(long, env = "SLUICE_TIMEOUT_SECONDS", value_name = "SECONDS")]
    pub timeout_seconds: Option<u64>,
    /// How much the plugin logs: error, warn, info (when it is not given) or debug
    #[arg(long, env = "SLUICE_PLUGIN_LOG_LEVEL", value_name = "LEVEL", value_parser = log_level)]
    pub log_level: Option<LogLevel>,
    /// Pods that start without asking the agent; may be given more than once
    #[arg(long = "exempt-pods", env = "SLUICE_EXEMPT_PODS", value_delimiter = ',',
          value_name = "NAMESPACE/NAME-PREFIX", value_parser = exempt_pods)]
    pub exempt_pods: Vec<ExemptPod>,
}

/// The way that was asked for; `None` for the least invasive one.
#[derive(Clone, Copy, Debug)]
pub struct Chosen(pub Option<Way>);

/// When an istio-cni's entry and files are replaced by ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Replace {
    /// When the agent has seen that istio-cni's own is gone
    Auto,
    /// Whether its agent lives or not
    Always,
    /// Not
    Never,
}

/// What becomes of the plugin's file when its entry is out of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Leftover {
    /// Removed when no pod's cached attachment names it any more: some runtimes delete by what they cached
    Auto,
    /// Left where it is: without an entry nobody runs it
    Keep,
    /// Removed
    Remove,
}

impl Paths {
    pub fn installation(&self) -> PathBuf {
        self.run_dir.join(INSTALLATION_FILE)
    }

    pub fn runtime(&self) -> PathBuf {
        self.run_dir.join(RUNTIME_FILE)
    }

    pub fn predecessor(&self) -> PathBuf {
        self.run_dir.join(PREDECESSOR_FILE)
    }

    pub fn intent(&self) -> PathBuf {
        self.run_dir.join(INTENT_FILE)
    }

    /// Held by the one `sluice-install` that may write.
    pub fn lock(&self) -> PathBuf {
        self.run_dir.join("install.lock")
    }

    pub fn lease(&self) -> PathBuf {
        self.host_state_dir.join(LEASE_FILE)
    }

    pub fn chaining(&self) -> PathBuf {
        self.host_state_dir.join(CHAINING_FILE)
    }
}

impl Wanted {
    /// Where this program asks whether the agent serves: the path is the same inside and outside.
    pub fn socket(&self) -> &str {
        self.entry.agent_socket.as_deref().unwrap_or(AGENT_SOCKET)
    }

    /// What the runtime does with drop-ins, by the option or by what the agent has written down.
    pub fn drop_ins(&self, noted: Option<&Runtime>) -> DropIns {
        self.runtime.as_ref().or(noted).map(Runtime::drop_ins).unwrap_or_default()
    }
}

impl EntryOptions {
    pub fn entry(&self) -> Entry {
        Entry {
            agent_socket: self.agent_socket.clone(),
            state_dir: self.state_dir.clone(),
            timeout_seconds: self.timeout_seconds,
            log_level: self.log_level,
            exempt_pods: self.exempt_pods.clone(),
        }
    }
}

fn way(text: &str) -> anyhow::Result<Chosen> {
    match text {
        "auto" => Ok(Chosen(None)),
        _ => Way::parse(text)
            .map(|way| Chosen(Some(way)))
            .context("it is none of auto, drop-in, in-place and owned"),
    }
}

fn runtime(text: &str) -> anyhow::Result<Runtime> {
    Runtime::parse(text).context("it is not NAME://VERSION")
}

fn log_level(text: &str) -> anyhow::Result<LogLevel> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
    levels
        .into_iter()
        .find(|level| level.as_str() == text)
        .context("it is none of error, warn, info and debug")
}

fn exempt_pods(text: &str) -> anyhow::Result<ExemptPod> {
    match text.split_once('/') {
        Some((namespace, prefix)) if !namespace.is_empty() && !prefix.is_empty() => {
            Ok(ExemptPod { namespace: namespace.to_owned(), name_prefix: prefix.to_owned() })
        }
        _ => bail!("it is not NAMESPACE/NAME-PREFIX"),
    }
}
