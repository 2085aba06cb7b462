//! `/var/lib/sluice/membership.json`: what lets the plugin decide with no agent to ask.
//!
//! The agent writes it (temporary file, fsync, rename, fsync of the directory) whenever it changes; the plugin only
//! reads it. It names namespaces, not pods, since a pod's labels are not in what a runtime tells a plugin.
//!
//! A file that is there and cannot be read is not the same as no file: it proves that the agent has served here, so
//! any namespace might be in the mesh, and the plugin fails closed ([`with_unreadable_file`]).

use crate::ids::PodRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format's version. A file of another version counts as one that cannot be read.
pub const MEMBERSHIP_VERSION: u32 = 1;
/// The longest file that is read, in bytes: room for some 20,000 namespaces.
pub const MAX_MEMBERSHIP_FILE: usize = 4 * 1024 * 1024;
/// Pods that no mesh may hold back, by namespace and the start of their name, since they are what the mesh is made
/// of: our agent and ztunnel. The netconf's `exemptPods` adds to them.
pub const EXEMPT_PODS: [(&str, &str); 5] = [
    ("sluice-system", "sluice-agent-"),
    ("kube-system", "sluice-agent-"),
    ("istio-system", "sluice-agent-"),
    ("istio-system", "ztunnel-"),
    ("kube-system", "ztunnel-"),
];
/// The namespace that is outside the mesh even when nothing at all is known.
const SYSTEM_NAMESPACE: &str = "kube-system";

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

/// Why the file could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Not JSON, or not what the agent writes.
    #[error("it is not what the agent writes: {0}")]
    Garbage(String),
    /// Written by an agent of another time.
    #[error("it has version {0}, and this plugin reads version {MEMBERSHIP_VERSION}")]
    Version(u32),
    /// Longer than [`MAX_MEMBERSHIP_FILE`].
    #[error("it is longer than {MAX_MEMBERSHIP_FILE} bytes")]
    TooLong,
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

impl Membership {
    /// Reads the file's bytes.
    ///
    /// # Errors
    /// When they are not a membership file of our version; see [`with_unreadable_file`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MembershipError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if bytes.len() > MAX_MEMBERSHIP_FILE {
            return Err(MembershipError::TooLong);
        }
        let garbage = |e: serde_json::Error| MembershipError::Garbage(e.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(garbage)?;
        if version != MEMBERSHIP_VERSION {
            return Err(MembershipError::Version(version));
        }
        serde_json::from_slice(bytes).map_err(garbage)
    }

    /// Whether `namespace` is known to be outside, and to have held no pod of the mesh.
    #[must_use]
    pub fn is_outside(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace) == Some(&Standing::Out)
    }
}

/// Whether a pod is one of [`EXEMPT_PODS`].
#[must_use]
pub fn is_exempt(pod: &PodRef) -> bool {
    EXEMPT_PODS.iter().any(|(namespace, prefix)| pod.namespace == *namespace && pod.name.starts_with(prefix))
}

/// Decides for a pod of `namespace` with no agent to ask and a membership file that is there and cannot be read.
#[must_use]
pub fn with_unreadable_file(namespace: &str) -> Fallback {
    if namespace == SYSTEM_NAMESPACE {
        Fallback::Pass("its namespace is kube-system")
    } else {
        Fallback::Wait("what is in the mesh cannot be read, so its namespace may be")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(when: WhenAgentUnavailable) -> Membership {
        let namespaces = [("in", Standing::In), ("out", Standing::Out), ("held", Standing::Held)];
        Membership {
            when_agent_unavailable: when,
            namespaces: namespaces.map(|(name, standing)| (name.to_owned(), standing)).into(),
            ..Membership::default()
        }
    }

    #[test]
    fn without_an_agent_by_namespace_and_choice() {
        use WhenAgentUnavailable::{Auto, FailClosed, Pass};
        let table = [
            ("in", Auto, true),
            ("in", FailClosed, true),
            ("in", Pass, true),
            ("out", Auto, false),
            ("out", FailClosed, false),
            ("out", Pass, false),
            ("held", Auto, true),
            ("held", FailClosed, true),
            ("held", Pass, false),
            ("new", Auto, false),
            ("new", FailClosed, true),
            ("new", Pass, false),
        ];
        for (namespace, when, waits) in table {
            let fallback = without_agent(Some(&membership(when)), namespace);
            assert_eq!(matches!(fallback, Fallback::Wait(_)), waits, "{namespace} {when:?}: {fallback:?}");
        }
        assert!(matches!(without_agent(None, "in"), Fallback::Pass(_)));
    }

    #[test]
    fn a_file_that_cannot_be_read_fails_closed() {
        assert!(matches!(with_unreadable_file("shop"), Fallback::Wait(_)));
        assert!(matches!(with_unreadable_file("kube-system"), Fallback::Pass(_)));
    }

    #[test]
    fn the_file_is_read_back_and_garbage_is_named() {
        let written = serde_json::to_vec(&membership(WhenAgentUnavailable::Pass)).unwrap();
        assert_eq!(Membership::parse(&written), Ok(membership(WhenAgentUnavailable::Pass)));
        assert_eq!(
            Membership::parse(br#"{"version":2,"namespaces":["other shape"]}"#),
            Err(MembershipError::Version(2))
        );
        for garbage in
            [&b""[..], b"{", b"null", b"[]", b"\0\0\0\0", br#"{"version":1,"namespaces":{"a":"maybe"}}"#]
        {
            let result = Membership::parse(garbage);
            assert!(matches!(result, Err(MembershipError::Garbage(_))), "{garbage:?}: {result:?}");
        }
        assert_eq!(Membership::parse(&vec![b' '; MAX_MEMBERSHIP_FILE + 1]), Err(MembershipError::TooLong));
    }

    #[test]
    fn only_the_meshs_own_pods_are_exempt() {
        assert!(is_exempt(&PodRef::new("istio-system", "ztunnel-x7k2p")));
        assert!(is_exempt(&PodRef::new("sluice-system", "sluice-agent-abcde")));
        assert!(!is_exempt(&PodRef::new("shop", "ztunnel-x7k2p")));
        assert!(!is_exempt(&PodRef::new("istio-system", "istiod-0")));
    }
}
