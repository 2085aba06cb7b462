//! Why the pod ends: SIGTERM looks the same for an upgrade and for an uninstall, so whoever knows writes it down.
//!
//! The agent knows, by asking for its own DaemonSet when it is told to end ([`verdict`]); an operator knows. The
//! installer goes by the file, and with no file, or one that it does not understand, it leaves everything in place:
//! the lease makes that harmless.

use super::INSTALL_VERSION;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// [`INSTALL_VERSION`]
    pub version: u32,
    /// What shall become of the installation.
    pub wanted: Wanted,
    /// Who says so, and why, for the log.
    pub why: String,
}

/// What shall become of the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// It stays: an upgrade, a restart, a drain of the node.
    Stay,
    /// It goes: an uninstall, or the node is no longer one of ours.
    Leave,
}

/// What the API server said to a GET of the agent's own DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonSet {
    /// It is there.
    Here {
        /// It has a deletionTimestamp.
        deleting: bool,
        /// Its node selector and affinity match this node.
        selects_node: bool,
    },
    /// It is not there, or has another UID: somebody has installed anew.
    Gone,
    /// The agent may not ask any more (401, 403).
    Forbidden,
    /// No answer, or one that says nothing.
    Unknown,
}

/// What the agent knows when it is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// The answer now.
    pub daemon_set: DaemonSet,
    /// Whether the agent could ask before: what was never allowed proves nothing.
    pub could_ask: bool,
}

impl Intent {
    /// An intent of this version.
    #[must_use]
    pub fn new(wanted: Wanted, why: impl Into<String>) -> Self {
        Self { version: INSTALL_VERSION, wanted, why: why.into() }
    }

    /// Reads the file's bytes; `None` when they are no intent.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let intent: Self = serde_json::from_slice(bytes).ok()?;
        (intent.version == INSTALL_VERSION).then_some(intent)
    }
}

/// What an agent that is told to end makes of its own DaemonSet. What is not known means "stay".
#[must_use]
pub fn verdict(fate: Fate) -> Intent {
    use DaemonSet::{Forbidden, Gone, Here, Unknown};
    let (wanted, why) = match (fate.daemon_set, fate.could_ask) {
        (Gone, _) => (Wanted::Leave, "the DaemonSet is gone: uninstalled"),
        (Here { deleting: true, .. }, _) => (Wanted::Leave, "the DaemonSet is being deleted: uninstalled"),
        (Here { selects_node: false, .. }, _) => (Wanted::Leave, "the DaemonSet no longer selects this node"),
        (Forbidden, true) => {
            (Wanted::Leave, "the agent's account may no longer read its DaemonSet, as it could: uninstalled")
        }
        (Here { .. }, _) => (Wanted::Stay, "the DaemonSet still wants this node: an upgrade or a restart"),
        (Forbidden, false) => (Wanted::Stay, "the agent was never allowed to read its DaemonSet"),
        (Unknown, _) => (Wanted::Stay, "the API server does not say what becomes of the DaemonSet"),
    };
    Intent::new(wanted, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_set_tells_an_upgrade_from_an_uninstall() {
        use DaemonSet::{Forbidden, Gone, Here, Unknown};
        let here = |deleting, selects_node| Here { deleting, selects_node };
        let table = [
            (here(false, true), true, Wanted::Stay),
            (here(true, true), true, Wanted::Leave),
            (here(false, false), true, Wanted::Leave),
            (Gone, true, Wanted::Leave),
            (Gone, false, Wanted::Leave),
            (Forbidden, true, Wanted::Leave),
            (Forbidden, false, Wanted::Stay),
            (Unknown, true, Wanted::Stay),
            (Unknown, false, Wanted::Stay),
        ];
        for (daemon_set, could_ask, wanted) in table {
            assert_eq!(verdict(Fate { daemon_set, could_ask }).wanted, wanted, "{daemon_set:?} {could_ask}");
        }
    }

    #[test]
    fn it_is_read_back_and_garbage_is_no_intent() {
        let intent = Intent::new(Wanted::Leave, "by hand");
        assert_eq!(Intent::parse(&serde_json::to_vec(&intent).unwrap()), Some(intent));
        for garbage in [&b""[..], b"{}", br#"{"version":2,"wanted":"leave","why":""}"#] {
            assert_eq!(Intent::parse(garbage), None);
        }
    }
}
