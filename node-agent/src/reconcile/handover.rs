//! The hand-over to ztunnel, as one pod's task sees it.

use super::Message;
use super::message::answer_all;
use super::pod::{Grip, PodTask};
use crate::kernel::Netns;
use crate::zds::{self, AddError};
use sluice_shared::plan::RedirectPlan;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pod that ztunnel has not acknowledged may take to be handed over anew.
const HANDOVER: Duration = Duration::from_secs(6);

/// What to do about a pod that no ztunnel has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handover {
    /// Hand it over, if a ztunnel is there.
    Try,
    /// Only say so.
    Leave,
}

impl PodTask {
    /// Hands the pod over to ztunnel and waits for its word.
    pub(super) async fn hand_over(&mut self, netns: &Arc<Netns>, deadline: Instant) -> Result<(), AddError> {
        let Some(workload) = self.workload(netns) else { return Ok(()) };
        let ztunnel = self.cx.ztunnel.clone();
        let answer = async move { ztunnel.add(workload, deadline).await };
        let peer = self.meanwhile(netns, answer).await.ok_or(AddError::Withdrawn)??;
        self.acked_by.insert(peer.connection);
        Ok(())
    }

    /// Waits, and takes meanwhile what cannot: a new ztunnel's marks, and who asks. The sandbox's end ends the wait with
    /// nothing, and is taken in its turn, as is everything else.
    pub(super) async fn meanwhile<T>(
        &mut self,
        netns: &Arc<Netns>,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let mut answer = std::pin::pin!(answer);
        let entry = Arc::clone(&self.entry);
        let ours = self.sandbox.as_ref().and_then(|sandbox| sandbox.attachment.clone());
        let urgent = |message: &Message| matches!(message, Message::Resettle(_) | Message::Inspect(_));
        let over = |message: &Message| match message {
            Message::Del { attachment, .. } => ours.as_ref().is_none_or(|id| *id == attachment.id),
            Message::Yield(wanted, _) => *wanted == netns.id(),
            _ => false,
        };
        let mut changed = false;
        let outcome = loop {
            let message = tokio::select! {
                answer = &mut answer => break Some(answer),
                message = entry.mailbox.first(urgent, over) => message,
            };
            match message {
                Some(Message::Resettle(waiters)) => {
                    self.follow_trust(netns).await;
                    answer_all(waiters);
                    changed = true;
                }
                Some(Message::Inspect(reply)) => drop(reply.send(entry.showing().status.clone())),
                Some(_) | None => break None,
            }
        };
        if changed {
            // Only the trust was followed; whether the pod is wanted at all may be what has changed.
            entry.mailbox.post(Message::Resettle(Vec::new()));
        }
        outcome
    }

    /// Brings guard and hold of the plan in force up to date; the rest of it waits for the step that is under way.
    async fn follow_trust(&mut self, netns: &Arc<Netns>) {
        let Grip::Redirected(held) = &self.grip else { return };
        let (guard, hold) = (self.cx.trust.guard(), *self.cx.hold.borrow());
        let wanted = RedirectPlan { guard, hold, ..held.plan.clone() };
        if wanted != held.plan
            && let Err(error) = self.replace(netns, wanted).await
        {
            tracing::warn!(uid = %self.entry.uid, %error, "a new ztunnel's marks are not trusted in the pod yet");
        }
    }

    /// ztunnel ignores other names for a pod that it serves, and finds no workload by the wrong ones: it lets go first.
    pub(super) async fn rename(&mut self, netns: &Arc<Netns>) {
        let Some(wanted) = self.workload(netns) else { return };
        let handed = self.entry.showing().handed.clone();
        let same = |handed: &zds::Workload| {
            (&handed.name, &handed.namespace, &handed.service_account)
                == (&wanted.name, &wanted.namespace, &wanted.service_account)
        };
        if handed.as_ref().is_none_or(same) {
            return;
        }
        tracing::info!(uid = %self.entry.uid, service_account = wanted.service_account, "the pod is handed over by its right name");
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.service_account = Some(wanted.service_account.clone());
        }
        self.remember(true);
        self.hand(None);
        self.cx.ztunnel.del(&self.entry.uid).await;
        self.acked_by.clear();
        self.hand(Some(wanted));
    }

    /// No connection is known to have acknowledged the pod. One may have all the same; else it is asked, or said why not.
    pub(super) async fn acknowledged(
        &mut self,
        netns: &Arc<Netns>,
        handover: Handover,
    ) -> Result<(), String> {
        let known = self.cx.ztunnel.state(&self.entry.uid);
        if !known.acked_by.is_empty() {
            self.acked_by.extend(known.acked_by);
            return Ok(());
        }
        if let Some(nack) = known.last_nack {
            return Err(format!("ztunnel refused the pod: {nack}"));
        }
        if !*self.cx.ztunnel.any_ready().borrow() {
            return Err(super::join::NO_ZTUNNEL.into());
        }
        if handover == Handover::Leave {
            return Err("waiting for ztunnel: none that is connected has acknowledged the pod".into());
        }
        self.hand(self.workload(netns));
        let result = self.hand_over(netns, Instant::now() + HANDOVER).await;
        result.map_err(|error| format!("waiting for ztunnel: {error}"))
    }
}
