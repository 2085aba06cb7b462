//! Where events come from. Nothing here decides: sources say what they saw, as one type, and the reconciler acts.

pub mod cni;
pub mod file;
pub mod kubernetes;

use sluice_shared::facts::{NamespaceFacts, PodFacts};
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::wire::{Reply, Verb};
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What is wrong with a source right now, in one line; `None` when nothing is.
pub type Problem = Option<String>;

/// Something that a source saw.
#[derive(Debug)]
pub enum Event {
    /// A pod of this node is there, or changed.
    Pod(Box<PodFacts>),
    /// A pod of this node is gone.
    PodGone(PodUid),
    /// A namespace is there, or changed.
    Namespace(NamespaceFacts),
    /// A namespace is gone.
    NamespaceGone(String),
    /// Everything that was there at the start has been said. Until then a pod or namespace that has not been shown is
    /// unknown, not absent.
    Synced,
    /// The plugin asks.
    Cni(CniCall),
}

/// A request of the plugin that waits for its answer.
#[derive(Debug)]
pub struct CniCall {
    /// What is asked.
    pub verb: Verb,
    /// The netns that came along: always for ADD, maybe for CHECK. Not yet checked to be a netns.
    pub netns: Option<OwnedFd>,
    /// Where the answer goes. Dropping it makes the caller answer with an internal error.
    pub reply: oneshot::Sender<Reply>,
}

/// Where a single pod can be asked for.
#[derive(Clone)]
pub enum Lookup {
    /// Nowhere: what the source does not show is not there.
    Nothing,
    /// The API server.
    Api(kubernetes::PodLookup),
}

/// What became of a look-up.
#[derive(Debug)]
pub enum Answer {
    /// The pod.
    Found(Box<PodFacts>),
    /// It is not there any more, and why that is known.
    Gone(String),
    /// It is not known whether it is, and why.
    Unknown(String),
}

impl Lookup {
    /// Asks once for a pod, until the deadline at most. With a uid, only the pod of that uid is the one.
    pub async fn find(&self, pod: &PodRef, uid: Option<&PodUid>, deadline: Instant) -> Answer {
        match self {
            Self::Nothing => Answer::Unknown("there is nobody to ask".to_owned()),
            Self::Api(pods) => pods.find(pod, uid, deadline).await,
        }
    }
}
