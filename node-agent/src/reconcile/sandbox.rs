//! A pod's sandbox and facts, over time: remembered, looked for, let go of.

use super::Whereabouts;
use super::pod::{Grip, PodTask};
use crate::journal::Sandbox;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::NetnsId;
use std::sync::Arc;

impl PodTask {
    /// What the source says of the pod. A pod that it no longer shows keeps its last facts as long as its sandbox: judged
    /// by less, one that had opted out could be taken in.
    pub(super) fn learn(&mut self, facts: Option<Box<PodFacts>>) {
        let vouched = self.sandbox.as_ref().is_some_and(Sandbox::is_vouched_for);
        self.facts_are_last = facts.is_none();
        if let (Some(facts), Some(sandbox)) = (&facts, &mut self.sandbox) {
            sandbox.service_account = Some(facts.service_account.clone());
        }
        if facts.is_some() || !vouched {
            self.facts = facts;
        }
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
    /// before any source has spoken: a snapshot without it would tear it down.
    pub(super) async fn recall(&mut self, sandbox: Sandbox) {
        match self.cx.open(&sandbox.path).await {
            Ok(netns) if netns.id() == sandbox.netns => {
                let redirected = sandbox.redirected;
                self.sandbox.get_or_insert(sandbox);
                if redirected {
                    self.hand(self.workload(&Arc::new(netns)));
                }
            }
            // Too many open files, say: the pod is there, and is looked for again.
            Err(error) if sandbox.path.exists() => {
                tracing::warn!(pod = %sandbox.pod, uid = %sandbox.uid, %error, "a pod of the journal cannot be opened yet");
                self.sandbox.get_or_insert(sandbox);
            }
            Ok(_) | Err(_) if self.recall_elsewhere(&sandbox).await => {}
            Ok(_) | Err(_) => {
                tracing::info!(pod = %sandbox.pod, uid = %sandbox.uid, "a pod of the journal is gone");
                self.cx.host.dismiss(&sandbox.uid).await;
                if let Err(error) = self.cx.journal.forget(&sandbox.uid) {
                    tracing::warn!(uid = %sandbox.uid, %error, "a journal file could not be removed");
                }
            }
        }
    }

    /// The path of a captured pod's namespace may have been a process's that has ended, or lead nowhere from here any more,
    /// while the namespace lives on.
    async fn recall_elsewhere(&mut self, sandbox: &Sandbox) -> bool {
        if !sandbox.redirected {
            return false;
        }
        let found = self.seek(sandbox).await.filter(|found| found.netns.id() == sandbox.netns);
        let Some(found) = found else { return false };
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
        match (sandbox.path.exists(), self.path_seen) {
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
