//! A pod's sandbox and facts, over time: remembered, looked for, let go of.

use super::Whereabouts;
use super::pod::{Grip, PodTask};
use crate::adopt::{Stale, Way};
use crate::journal::Sandbox;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::NetnsId;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

impl PodTask {
    /// What the source says of the pod. A pod that it no longer shows keeps its last facts as long as its sandbox: judged
    /// by less, one that had opted out could be taken in.
    pub(super) fn learn(&mut self, facts: Option<Box<PodFacts>>) {
        if facts.as_ref().is_some_and(|facts| self.is_of_another_name(facts)) {
            tracing::warn!(uid = %self.entry.uid, "an object that claims this uid has another name than the pod that runs: passed over");
            return;
        }
        let vouched = self.sandbox.as_ref().is_some_and(Sandbox::is_vouched_for);
        self.facts_are_last = facts.is_none();
        if let (Some(facts), Some(sandbox)) = (&facts, &mut self.sandbox) {
            sandbox.service_account = Some(facts.service_account.clone());
        }
        if facts.is_some() || !vouched {
            self.facts = facts;
        }
    }

    /// Whether an object that goes by the pod's uid is not the pod's: ADD and the runtime say its name, too. Anybody who may
    /// name a node can write an object that claims to stand for a static pod (`kubernetes.io/config.mirror`).
    pub(super) fn is_of_another_name(&self, facts: &PodFacts) -> bool {
        let vouched = self.sandbox.as_ref().filter(|sandbox| sandbox.attachment.is_some());
        vouched.is_some_and(|sandbox| !sandbox.pod.name.is_empty() && sandbox.pod != facts.pod_ref())
    }

    /// What the API server said of the pod when it was asked. It holds no longer than the sandbox, until the source shows
    /// the pod: one that came and went meanwhile may never be shown.
    pub(super) fn learn_on_request(&mut self, facts: Box<PodFacts>) {
        if self.facts.is_some() && !self.facts_are_last {
            return;
        }
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.service_account = Some(facts.service_account.clone());
        }
        self.facts = Some(facts);
        self.facts_are_last = true;
    }

    /// The sandbox is gone: so are facts that nobody shows any more.
    pub(super) fn forget_last_facts(&mut self) {
        if self.facts_are_last {
            self.facts = None;
        }
    }

    /// The journal knows the pod. If it was redirected and its namespace is still there, ztunnel keeps serving it, even
    /// before any source has spoken: a snapshot without it would tear it down. It must be the pod's by more than path and
    /// inode ([`crate::adopt::Finder::open_again`]): both may be those of a pod that came after it.
    pub(super) async fn recall(&mut self, sandbox: Sandbox) {
        match self.open_again(&sandbox).await {
            Ok(netns) => {
                let redirected = sandbox.redirected;
                self.sandbox.get_or_insert(sandbox);
                if redirected {
                    self.hand(self.workload(&Arc::new(netns)));
                }
            }
            // Too many open files, say: the pod is there, and is looked for again.
            Err(error @ Stale::Closed(_)) if sandbox.path.exists() => {
                tracing::warn!(pod = %sandbox.pod, uid = %sandbox.uid, %error, "a pod of the journal cannot be opened yet");
                self.sandbox.get_or_insert(sandbox);
            }
            Err(_) if self.recall_elsewhere(&sandbox).await => {}
            Err(_) => {
                tracing::info!(pod = %sandbox.pod, uid = %sandbox.uid, "a pod of the journal is gone");
                self.cx.host.dismiss(&sandbox.uid).await;
                if let Err(error) = self.cx.journal.forget(&sandbox.uid) {
                    tracing::warn!(uid = %sandbox.uid, %error, "a journal file could not be removed");
                }
            }
        }
    }

    /// The path of a captured pod's namespace may have been a process's that has ended, or lead nowhere from here any more,
    /// while the namespace lives on. An address alone says too little before the source has shown whose it is by now.
    async fn recall_elsewhere(&mut self, sandbox: &Sandbox) -> bool {
        if !sandbox.redirected {
            return false;
        }
        let Some(found) = self.seek(sandbox).await else { return false };
        if found.netns.id() != sandbox.netns || found.way == Way::BindMount {
            return false;
        }
        self.sandbox.get_or_insert(Sandbox { path: found.path, ..sandbox.clone() });
        self.hand(self.workload(&Arc::new(found.netns)));
        true
    }

    /// Where the pod's namespace is said to be.
    pub(super) fn whereabouts(&self) -> Option<Whereabouts> {
        if let Some(sandbox) = &self.sandbox {
            return Some(Whereabouts { path: sandbox.path.clone(), netns: Some(sandbox.netns) });
        }
        let path = self.facts.as_ref()?.netns.as_ref()?;
        Some(Whereabouts { path: path.into(), netns: None })
    }

    pub(super) fn netns_id(&self) -> Option<NetnsId> {
        match &self.grip {
            Grip::Redirected(held) | Grip::Draining { held, .. } => Some(held.netns.id()),
            Grip::None => self.sandbox.as_ref().map(|sandbox| sandbox.netns),
        }
    }

    /// Whether the journal says that rules of ours are in the pod.
    pub(super) fn was_redirected(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.redirected)
    }

    /// Whether the path that led to the sandbox's namespace leads nowhere any more: the runtime has taken it down. Where
    /// the agent cannot see the runtime's paths at all, it never could, and only DEL tells.
    pub(super) fn sandbox_is_gone(&mut self) -> bool {
        let Some(sandbox) = &self.sandbox else { return false };
        // The number of a process may be another's by now; its namespace's inode may not, while the agent holds it.
        let leads_there = |meta: Metadata| {
            let found = NetnsId { dev: meta.dev(), inode: meta.ino() };
            found == sandbox.netns || !self.cx.finder.is_of_a_process(&sandbox.path)
        };
        match (sandbox.path.metadata().is_ok_and(leads_there), self.path_seen) {
            (true, _) => self.path_seen = true,
            (false, true) => return true,
            (false, false) => {}
        }
        false
    }

    /// Writes the journal, if the pod can be found again.
    pub(super) fn remember(&mut self, redirected: bool) {
        let Some(sandbox) = &mut self.sandbox else { return };
        sandbox.redirected = redirected;
        if let Err(error) = self.cx.journal.remember(sandbox) {
            tracing::error!(pod = %sandbox.pod, uid = %sandbox.uid, %error,
                "the journal cannot be written: after a restart of the agent this pod is found by its next event only");
        }
    }
}
