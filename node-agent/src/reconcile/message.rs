//! What pods' tasks are told.

use crate::journal::Sandbox;
use sluice_shared::admin::PodStatus;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::NetnsId;
use sluice_shared::wire::{Attachment, AttachmentId, Reply};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What an ADD brings along about its pod.
#[derive(Debug)]
pub enum Told {
    /// Nothing: the source shows the pod, or shows nothing that an ADD could wait for.
    Shown,
    /// The API server was asked, and this is the pod.
    Found(Box<PodFacts>),
    /// It was asked, and the pod stays unknown: why.
    Unknown(String),
}

/// What a pod's task is told. Tasks take them one by one; which of them wait is the [`Mailbox`](super::Mailbox)'s.
pub enum Message {
    /// The source shows the pod, or no longer does.
    Facts(Option<Box<PodFacts>>),
    /// What was remembered of the pod from before a restart. Answered when it is part of ztunnel's snapshot, or found
    /// not to be there any more.
    Remembered(Sandbox, oneshot::Sender<()>),
    /// The source has shown everything that was there at the start; what concerns the pod is before this in its mailbox.
    Synced,
    /// Something that the pod's plan depends on has changed. Each is answered when the pod has acted on it.
    Resettle(Vec<oneshot::Sender<()>>),
    /// The plugin: a sandbox was made.
    Add {
        /// Which.
        attachment: Attachment,
        /// Its namespace, as handed over.
        netns: OwnedFd,
        /// What is known of the pod beyond what its task has been told.
        told: Told,
        /// When the answer must be there.
        deadline: Instant,
        /// Where it goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The plugin: a sandbox goes away.
    Del {
        /// Which.
        attachment: Attachment,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The plugin: is what ADD did still there?
    Check {
        /// Which sandbox.
        attachment: Attachment,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The runtime's list of valid attachments: forget the pod's if it is not among them.
    Retain(Arc<BTreeSet<AttachmentId>>),
    /// Something in the pod's namespace may have changed.
    Look,
    /// A ztunnel answered for the pod.
    Answered {
        /// Which connection.
        connection: u64,
        /// What it said.
        answer: Result<(), String>,
    },
    /// A ztunnel's connection is gone.
    Disconnected(u64),
    /// Another pod has been handed this namespace: let go of it, and say so when it is done.
    Yield(NetnsId, oneshot::Sender<()>),
    /// There is a reason to doubt a namespace that was found without the runtime's word: another pod shows an address of
    /// this one's, or the runtime has something to say now.
    Doubt,
    /// `sluicectl why`: look afresh, and tell.
    Inspect(oneshot::Sender<PodStatus>),
}

/// Says that it is done to whoever still waits for it.
pub(super) fn answer_all(waiters: Vec<oneshot::Sender<()>>) {
    for waiter in waiters {
        let _ = waiter.send(());
    }
}
