//! Where events come from. Nothing here decides: sources say what they saw, as one type, and the reconciler acts.

pub mod cni;
pub mod file;

use sluice_shared::facts::{NamespaceFacts, PodFacts};
use sluice_shared::ids::PodUid;
use sluice_shared::wire::{Reply, Verb};
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;

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
