//! The messages on our own sockets. One `SOCK_SEQPACKET` message is one JSON document; the netns travels beside an
//! `ADD` as exactly one descriptor in `SCM_RIGHTS`.
//!
//! Plugin and agent are upgraded apart, so every message carries [`WIRE_VERSION`], unknown fields are ignored, and a
//! field is only ever added with a default. A change of meaning raises the version.

use crate::ids::{PodRef, PodUid};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The version of the plugin-to-agent messages. The agent answers [`Reply::Error`] to any other.
pub const WIRE_VERSION: u32 = 1;
/// The outcome of STATUS by which the agent says that an ADD can be served; with any other, it is still starting.
pub const SERVING: &str = "serving";
/// The longest message taken from or sent on the agent's socket, in bytes. A prevResult is never sent, only the
/// addresses in it, so a real message has a few hundred.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What the plugin asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`WIRE_VERSION`]
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub verb: Verb,
}

/// The CNI verbs that concern the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "verb")]
pub enum Verb {
    /// A sandbox was made; the netns descriptor comes along. Answered when the pod is captured, or outside the mesh.
    Add(Attachment),
    /// A sandbox goes away. No descriptor.
    Del(Attachment),
    /// Is what ADD did still there? The netns descriptor may come along.
    Check(Attachment),
    /// Only these attachments (container id, interface) are valid; forget the others that came by ADD.
    Gc {
        /// The list that the runtime gave.
        valid: Vec<AttachmentId>,
    },
    /// Can an ADD be served?
    Status,
    /// A line for the agent's log, best effort, not answered.
    Log {
        /// `error`, `warn`, `info` or `debug`.
        level: String,
        /// One line.
        message: String,
    },
}

/// One attachment of one sandbox, as the runtime described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// `CNI_NETNS`; empty when the runtime gave none (a repeated DEL).
    #[serde(default)]
    pub netns: String,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME`; `None` outside Kubernetes.
    #[serde(default)]
    pub pod: Option<PodRef>,
    /// `K8S_POD_UID`, which older runtimes do not give.
    #[serde(default)]
    pub uid: Option<PodUid>,
    /// The pod's addresses, from prevResult.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// What names an attachment in the CNI spec.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

/// The agent's one answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "result")]
pub enum Reply {
    /// Done.
    Ok {
        /// What was done, in words for a log: `captured`, `outside: …`.
        outcome: String,
    },
    /// Not done: becomes a CNI error.
    Error {
        /// A CNI error code ([`crate::cni::code`]).
        code: u32,
        /// The first line: what waits for what, and which command explains it.
        msg: String,
        /// More, for a log.
        #[serde(default)]
        details: String,
    },
}
