//! A new pod, at the runtime's ADD: its rules come before ztunnel is asked, for nothing of it may reach the wire in
//! plaintext.

use super::handover::Handover;
use super::pod::PodTask;
use super::{Message, Told};
use crate::journal::Sandbox;
use crate::kernel::Netns;
use crate::metrics::AddPhase;
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use sluice_shared::enroll::{Overrides, Verdict};
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::PodRef;
use sluice_shared::plan::{Older, Stage};
use sluice_shared::wire::{Attachment, Reply};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

impl PodTask {
    /// The plugin's ADD: answered when the pod is captured, or outside the mesh.
    pub(super) async fn add(
        &mut self,
        attachment: Attachment,
        netns: OwnedFd,
        told: Told,
        deadline: Instant,
    ) -> Reply {
        let began = Instant::now();
        let netns = match self.cx.kernel.run(move |kernel| kernel.adopt(netns)).await {
            Ok(netns) => Arc::new(netns),
            Err(error) => return refusal(code::WRONG_NETNS, &attachment, &error.to_string()),
        };
        if self.is_secondary(&attachment, &netns) {
            return Reply::Ok {
                outcome: "outside: not the attachment that carries the pod's address".into(),
            };
        }
        if !self.take_sandbox(attachment.clone(), &netns, deadline).await {
            let why = "its network namespace is still held by another pod, which is slow to let go of it";
            return refusal(code::TRY_AGAIN_LATER, &attachment, why);
        }
        let mut why = String::new();
        match told {
            Told::Shown => {}
            Told::Found(facts) => self.learn_on_request(facts),
            Told::Unknown(unknown) => why = format!(" ({unknown})"),
        }
        let verdict = self.knows_enough().then(|| self.verdict());
        self.cx.metrics.add_took(AddPhase::Decide, began.elapsed());
        match verdict {
            Some(Verdict::Outside(reason)) => {
                self.remember(false);
                self.settle().await;
                Reply::Ok { outcome: format!("outside: {reason}") }
            }
            Some(Verdict::InMesh { overrides, because }) => {
                let enrolled = match self.add_behind_predecessor(&netns).await {
                    Some(left) => left.map(|()| "captured by istio-cni, and taken over when that is gone"),
                    None => self.enroll_new(&netns, &overrides, deadline).await.map(|()| "captured"),
                };
                match enrolled {
                    Ok(outcome) => Reply::Ok { outcome: outcome.into() },
                    Err((code, why)) => refusal(code, &attachment, &format!("{why} ({because})")),
                }
            }
            // Nothing that is unknown gets as far as this, but where the plugin itself would let it start.
            None => {
                self.remember(false);
                self.show(
                    State::Pending,
                    format!("started before its membership was known{why}; it is adopted when it is"),
                );
                Reply::Ok { outcome: "outside for now: its membership is not known yet".into() }
            }
        }
    }

    /// A second interface of the same sandbox (Multus) is not what the mesh captures.
    fn is_secondary(&self, attachment: &Attachment, netns: &Netns) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| {
            let ours = sandbox.attachment.as_ref();
            sandbox.netns == netns.id()
                && ours.is_some_and(|id| {
                    id.container_id == attachment.id.container_id && id.ifname != attachment.id.ifname
                })
        })
    }

    /// Makes the new sandbox the pod's, and lets go of what held its namespace, or this pod, before. `false` when that
    /// was not to be had in time.
    async fn take_sandbox(&mut self, attachment: Attachment, netns: &Arc<Netns>, deadline: Instant) -> bool {
        if self.netns_id().is_some_and(|id| id != netns.id()) {
            self.release("a new sandbox took its place").await;
        }
        // ztunnel must never serve one namespace under two uids: it would mix their identities.
        for other in self.cx.registry.holders(netns.id()).into_iter().filter(|uid| *uid != self.entry.uid) {
            let (done, wait) = oneshot::channel();
            if self.cx.registry.send_existing(&other, Message::Yield(netns.id(), done))
                && tokio::time::timeout_at(deadline, wait).await.is_err()
            {
                return false;
            }
        }
        self.released = None;
        self.deleted = false;
        // As in `learn`: an object of another name is not this pod's, though it claims the uid.
        let is_other = |facts: &PodFacts| attachment.pod.as_ref().is_some_and(|pod| *pod != facts.pod_ref());
        if self.facts.as_ref().is_some_and(|facts| is_other(facts)) {
            self.facts = None;
        }
        let service_account = self.facts.as_ref().map(|facts| facts.service_account.clone());
        self.sandbox = Some(Sandbox {
            uid: self.entry.uid.clone(),
            pod: attachment.pod.unwrap_or_else(|| PodRef::new("", "")),
            service_account,
            attachment: Some(attachment.id),
            path: attachment.netns.into(),
            netns: netns.id(),
            ips: attachment.ips,
            adopted: false,
            redirected: false,
        });
        true
    }

    /// Rules, then ztunnel, then the answer.
    async fn enroll_new(
        &mut self,
        netns: &Arc<Netns>,
        overrides: &Overrides,
        deadline: Instant,
    ) -> Result<(), (u32, String)> {
        self.show(State::Pending, "being captured: its rules are written".into());
        let plan = self.plan(overrides, Stage::Redirect(Older::None)).await;
        self.note_membership();
        self.hand(self.workload(netns));
        let began = Instant::now();
        let committed = match self.cx.succession.may_precede_us() {
            true => self.supplant(netns, plan).await,
            false => self.commit(netns, plan, false).await,
        };
        committed.map_err(|error| {
            self.pending(format!("its rules could not be installed: {error}"));
            (code::REDIRECT_FAILED, format!("its rules could not be installed: {error}"))
        })?;
        self.cx.metrics.add_took(AddPhase::Kernel, began.elapsed());
        self.remember(true);
        if Instant::now() >= deadline {
            let why = "the kernel was slow to take its rules, and no time was left to ask ztunnel".to_owned();
            self.pending(why.clone());
            return Err((code::TRY_AGAIN_LATER, why));
        }
        self.show(State::Pending, "being captured: its rules are in, ztunnel is asked".into());
        let began = Instant::now();
        if let Err(error) = self.hand_over(netns, deadline).await {
            self.pending(format!("waiting for ztunnel: {error}"));
            return Err((code::TRY_AGAIN_LATER, format!("it waits for ztunnel: {error}")));
        }
        self.cx.metrics.add_took(AddPhase::Ztunnel, began.elapsed());
        let began = Instant::now();
        self.retry_at_once();
        // The plugin must know, before it is needed, that this namespace holds pods of the mesh. A full disk is said in
        // the log, and is no reason to keep pods from starting.
        let _ = tokio::time::timeout_at(deadline, self.cx.members.settled()).await;
        self.confirm(Handover::Leave).await;
        self.cx.metrics.add_took(AddPhase::Confirm, began.elapsed());
        match self.entry.showing().status.clone() {
            status if status.state == State::Enabled => Ok(()),
            status => Err((code::TRY_AGAIN_LATER, status.reason)),
        }
    }
}

fn refusal(code: u32, attachment: &Attachment, why: &str) -> Reply {
    let pod = attachment.pod.as_ref().map_or_else(|| attachment.id.container_id.clone(), ToString::to_string);
    Reply::Error { code, msg: format!("pod {pod}: {why}; see: sluicectl why {pod}"), details: String::new() }
}
