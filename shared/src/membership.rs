//! `/var/lib/sluice/membership.json`: what lets the plugin decide with no agent to ask.
//!
//! The agent writes it (temporary file, fsync, rename, fsync of the directory) whenever it changes; the plugin only
//! reads it. It names namespaces, not pods, since a pod's labels are not in what a runtime tells a plugin.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format's version. A file of another version counts as absent.
pub const MEMBERSHIP_VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// [`MEMBERSHIP_VERSION`]
    pub version: u32,
    /// What to do in a namespace that is not simply in or out.
    #[serde(default)]
    pub when_agent_unavailable: WhenAgentUnavailable,
    /// Every namespace that the agent knows, or that ever held an enrolled pod.
    #[serde(default)]
    pub namespaces: BTreeMap<String, Standing>,
}

/// How a namespace stands to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its pods are in the mesh, unless they opt out.
    In,
    /// Its pods are outside, unless they opt in; none ever was in.
    Out,
    /// Its pods are outside by rule, but it has held enrolled pods.
    Held,
}

/// What happens to a pod whose membership is not known while no agent answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAgentUnavailable {
    /// Fail closed in namespaces that ever held enrolled pods; let the others pass, to be adopted later.
    #[default]
    Auto,
    /// Every pod that is not known to be outside waits for the agent.
    FailClosed,
    /// Only pods of namespaces that are in the mesh wait for the agent.
    Pass,
}

/// What the plugin does with no agent to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The pod starts, outside the mesh for now.
    Pass(&'static str),
    /// The pod must wait (CNI code 11).
    Wait(&'static str),
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            version: MEMBERSHIP_VERSION,
            when_agent_unavailable: WhenAgentUnavailable::Auto,
            namespaces: BTreeMap::new(),
        }
    }
}

/// Decides for a pod of `namespace` with no agent to ask. `membership` is `None` when the file is absent: the agent
/// has then never served on this node, so nothing can be in the mesh yet.
#[must_use]
pub fn without_agent(membership: Option<&Membership>, namespace: &str) -> Fallback {
    use WhenAgentUnavailable::{Auto, FailClosed, Pass};
    let Some(membership) = membership else {
        return Fallback::Pass("no agent has served on this node yet");
    };
    match (membership.namespaces.get(namespace), membership.when_agent_unavailable) {
        (Some(Standing::In), _) => Fallback::Wait("its namespace is in the mesh"),
        (Some(Standing::Out), _) => Fallback::Pass("its namespace is outside the mesh"),
        (Some(Standing::Held), Auto | FailClosed) => {
            Fallback::Wait("its namespace has held pods of the mesh")
        }
        (Some(Standing::Held), Pass) => Fallback::Pass("its namespace is outside the mesh by its labels"),
        (None, FailClosed) => {
            Fallback::Wait("its namespace is not known, and whenAgentUnavailable is fail-closed")
        }
        (None, Auto | Pass) => Fallback::Pass("its namespace is not known to be in the mesh"),
    }
}
