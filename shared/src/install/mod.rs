//! What the installer, the agent and the plugin tell each other by files.
//!
//! | file | written by | read by |
//! |---|---|---|
//! | `/run/sluice/install.json` ([`Installation`]) | installer | agent (Event, metric), `sluice-install status` |
//! | `/run/sluice/runtime.json` ([`Runtime`](crate::conflist::Runtime)) | agent | installer |
//! | `/run/sluice/predecessor.json` ([`PredecessorNote`]) | agent | installer |
//! | `/run/sluice/intent.json` ([`Intent`]) | agent, operator | installer |
//! | `/var/lib/sluice/lease.json` ([`Lease`]) | installer | plugin |
//! | `/var/lib/sluice/chained.json` ([`Chaining`]) | installer | installer, after a restart or reboot |
//!
//! Programs of two versions meet here during an upgrade: unknown keys are ignored, and a file that is not understood
//! counts as absent, but for the lease, where it counts as held.

mod intent;
mod lease;

pub use intent::{DaemonSet, Fate, Intent, Wanted, verdict};
pub use lease::{Holding, LEASE_LENGTH, Lease};

use crate::conflist::Way;
use serde::{Deserialize, Serialize};

/// The installer's state, in the run directory.
pub const INSTALLATION_FILE: &str = "install.json";
/// The runtime that the agent found, in the run directory.
pub const RUNTIME_FILE: &str = "runtime.json";
/// Whether the istio-cni that was here is gone, in the run directory.
pub const PREDECESSOR_FILE: &str = "predecessor.json";
/// What shall become of the installation, in the run directory.
pub const INTENT_FILE: &str = "intent.json";
/// The lease, in the state directory.
pub const LEASE_FILE: &str = "lease.json";
/// The note that we are in the chain, in the state directory.
pub const CHAINING_FILE: &str = "chained.json";
/// The version of all of these.
pub const INSTALL_VERSION: u32 = 1;
/// The longest of them that is read, in bytes.
pub const MAX_INSTALL_FILE: usize = 64 * 1024;

/// How it stands with the installation on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installation {
    /// [`INSTALL_VERSION`]
    pub version: u32,
    /// The boot that this is about, as `/proc/sys/kernel/random/boot_id` has it.
    pub boot: String,
    /// The state, for programs.
    pub state: State,
    /// The same in words: what is waited for, or what went wrong.
    pub message: String,
    /// The configuration directory.
    pub directory: String,
    /// How our entry is in the chain.
    #[serde(default)]
    pub way: Option<Way>,
    /// Why that way.
    #[serde(default)]
    pub why: String,
    /// The file that our entry is in, below the directory.
    #[serde(default)]
    pub file: Option<String>,
    /// The primary's file.
    #[serde(default)]
    pub primary: Option<String>,
    /// Whether the primary's file was seen in this boot.
    #[serde(default)]
    pub primary_seen: bool,
    /// How often the directory was written in this boot.
    #[serde(default)]
    pub writes: u64,
    /// How often our entry was put back after others had removed it, in this boot.
    #[serde(default)]
    pub repairs: u64,
    /// What is left of an istio-cni in the directory, in words.
    #[serde(default)]
    pub istio: Vec<String>,
    /// The fight that is on.
    #[serde(default)]
    pub fight: Option<Fought>,
    /// Seconds since 1970.
    pub updated: u64,
}

/// The installation's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Our entry is in the chain.
    Chained,
    /// Our entry is in the chain, and somebody takes it out again and again.
    Fighting,
    /// Something is waited for: the primary, the agent, a writer that has not finished.
    Waiting,
    /// The node refuses: a read-only directory, a full disk.
    Blocked,
    /// Nothing of ours is left, and nothing is put back.
    Removed,
}

/// A program that undoes what we write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fought {
    /// The file that is fought over, below the directory.
    pub file: String,
    /// How often our entry was undone in the last minute.
    pub times: u64,
    /// Seconds since the first of those.
    pub seconds: u64,
    /// Who it may be, in words.
    pub suspect: String,
}

/// What the agent sees of an istio-cni on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PredecessorNote {
    /// [`INSTALL_VERSION`]
    pub version: u32,
    /// Whether there is none, or none any more: its entry may then be replaced.
    pub gone: bool,
}

/// The note that our entry is in the chain, or is about to be: whoever finds it need not wait for the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chaining {
    /// [`INSTALL_VERSION`]
    pub version: u32,
    /// How.
    pub way: Way,
}

impl Installation {
    /// The same once everything of ours is off the node.
    #[must_use]
    pub fn removed(self) -> Self {
        let message = "uninstalled from this node".to_owned();
        Self { state: State::Removed, message, way: None, file: None, fight: None, ..self }
    }
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Chained, Self::Fighting, Self::Waiting, Self::Blocked, Self::Removed];

    /// Whether our entry is in the chain. In a fight it is, most of the time.
    #[must_use]
    pub fn is_chained(self) -> bool {
        matches!(self, Self::Chained | Self::Fighting)
    }

    /// As in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chained => "chained",
            Self::Fighting => "fighting",
            Self::Waiting => "waiting",
            Self::Blocked => "blocked",
            Self::Removed => "removed",
        }
    }
}
