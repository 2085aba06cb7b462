//! Into the mesh: a new pod at ADD, and a pod that was running already.
//!
//! A new pod's rules come before ztunnel is asked: nothing of it may reach the wire in plaintext. A running pod's come
//! after: until ztunnel listens in it, its connections keep the path they have.

use super::handover::Handover;
use super::pod::{Grip, PodTask, Redirected};
use super::{Message, Told, sockets};
use crate::journal::Sandbox;
use crate::kernel::{KernelError, Netns, Observation};
use crate::metrics::{AddPhase, KernelStep};
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use sluice_shared::enroll::{Overrides, Verdict};
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::PodRef;
use sluice_shared::istio;
use sluice_shared::lower::{self, Backend, Step};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{self, Flow, Older, RedirectPlan, Stage};
use sluice_shared::wire::{Attachment, Reply};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a running pod's hand-over may take before it is tried again; the pod works meanwhile.
const LIVE_HANDOVER: Duration = Duration::from_secs(6);

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

    /// Makes sure that the plugin, with no agent to ask, will know that this namespace holds pods of the mesh.
    fn note_membership(&self) {
        if let Some(facts) = self.known_facts() {
            self.cx.members.holds_a_pod(&facts.namespace);
        }
    }

    /// A pod that runs, and is to be in the mesh.
    pub(super) async fn join(&mut self, overrides: &Overrides) {
        self.note_membership();
        let netns = match self.find_namespace().await {
            Ok(netns) => netns,
            Err(why) => return self.pending_behind_predecessor(why),
        };
        let seen = {
            let netns = Arc::clone(&netns);
            self.cx
                .kernel
                .run(move |kernel| {
                    let seen = kernel.observe(&netns)?;
                    let kept =
                        if seen.rules.is_some() { kernel.kept_flows(&netns)? } else { Default::default() };
                    let remains = istio::recognise(&kernel.istio(&netns)?, istio::Place::Pod);
                    Ok((seen, kept, remains))
                })
                .await
        };
        if let Ok((seen, _, remains)) = &seen
            && seen.rules.is_none()
            && self.is_left_to_predecessor(remains)
        {
            return;
        }
        let result = match seen {
            Ok((seen, kept, remains)) if seen.rules.is_some() => {
                match self.reclaim(&netns, overrides, &seen, kept).await {
                    Ok(()) if !remains.is_empty() => self.finish_succession(&netns).await,
                    done => done,
                }
            }
            Ok((_, _, remains)) if !remains.is_empty() => self.take_over(&netns, overrides).await,
            Ok(_) => self.enroll_live(&netns, overrides).await,
            Err(error) => Err(format!("its namespace cannot be looked at: {error}")),
        };
        match result {
            Ok(()) => {
                self.unfinished = None;
                self.remember(true);
                self.confirm(Handover::Try).await;
            }
            Err(why) if matches!(self.grip, Grip::None) => self.pending(why),
            Err(why) => self.unfinished(why),
        }
    }

    /// Rules of ours are there already: a predecessor of this agent put them in. They are replaced, in one
    /// transaction, by today's, and keep the connections that they kept. One that ended in the middle of enrolling the pod
    /// had not got as far as the journal, nor to saying which those are: then they are listed now, and so they are when
    /// it had the other backend, whose programs may not be here to read them.
    async fn reclaim(
        &mut self,
        netns: &Arc<Netns>,
        overrides: &Overrides,
        seen: &Observation,
        kept: BTreeSet<Flow>,
    ) -> Result<(), String> {
        self.hand(self.workload(netns));
        let finished = self.sandbox.as_ref().is_some_and(|sandbox| sandbox.redirected);
        let older = match finished && self.former_backend(seen).is_none() {
            true if kept.is_empty() => Older::None,
            true => Older::Kept(kept),
            false => Older::AnyMidStream,
        };
        let plan = self.plan(overrides, Stage::Redirect(older)).await;
        self.succeed(netns, plan, seen)
            .await
            .map_err(|error| format!("its rules could not be renewed: {error}"))?;
        self.follow(netns);
        self.narrow().await.map_err(|error| format!("its older connections could not be listed: {error}"))
    }

    /// ztunnel first, then the rules, then the rules narrowed to the connections that were there.
    async fn enroll_live(&mut self, netns: &Arc<Netns>, overrides: &Overrides) -> Result<(), String> {
        self.hand(self.workload(netns));
        if !*self.cx.ztunnel.any_ready().borrow() {
            // The snapshot of the next one has the pod, and its answer is what goes on here.
            return Err("waiting for ztunnel: none is connected".into());
        }
        self.hand_over(netns, Instant::now() + LIVE_HANDOVER)
            .await
            .map_err(|error| format!("waiting for ztunnel: {error}"))?;
        let older = if self.cx.settings.keep_existing { Older::AnyMidStream } else { Older::None };
        let plan = self.plan(overrides, Stage::Redirect(older)).await;
        self.commit(netns, plan, true)
            .await
            .map_err(|error| format!("its rules could not be installed: {error}"))?;
        self.narrow().await.map_err(|error| format!("its older connections could not be listed: {error}"))
    }

    /// Right after the commit of a running pod's rules: from "any mid-stream packet keeps its path" to exactly the
    /// connections that were there.
    pub(super) async fn narrow(&mut self) -> Result<(), KernelError> {
        let Grip::Redirected(held) = &self.grip else { return Ok(()) };
        if held.plan.stage != Stage::Redirect(Older::AnyMidStream) {
            return Ok(());
        }
        let (netns, mut plan) = (Arc::clone(&held.netns), held.plan.clone());
        let listed = Arc::clone(&netns);
        let found = self.cx.kernel.run(move |kernel| kernel.sockets(&listed)).await?;
        let kept = sockets::older_flows(&found);
        tracing::info!(uid = %self.entry.uid, connections = kept.len(), "older connections keep their path");
        plan.stage = Stage::Redirect(if kept.is_empty() { Older::None } else { Older::Kept(kept) });
        self.replace(&netns, plan).await
    }

    /// The plan for the pod as things stand.
    pub(super) async fn plan(&self, overrides: &Overrides, stage: Stage) -> RedirectPlan {
        let ports = self.facts.as_ref().map(|facts| facts.probe_ports.clone()).unwrap_or_default();
        let door = self.cx.host.door(&self.ips(), &ports).await;
        let (guard, hold) = (self.cx.trust.guard(), *self.cx.hold.borrow());
        plan::redirect(overrides, &self.cx.settings.redirect, stage, door, guard, hold)
    }

    /// Puts a plan in force in a namespace that has none, and takes note of what the kernel then shows.
    async fn commit(
        &mut self,
        netns: &Arc<Netns>,
        plan: RedirectPlan,
        live: bool,
    ) -> Result<(), KernelError> {
        let ops = lower::lower(self.cx.settings.backend, Step::Enroll { plan: &plan, live });
        self.apply(netns, plan, ops).await?;
        self.follow(netns);
        Ok(())
    }

    /// Has the drift watch listen to the namespace; where it cannot, the sweep still looks.
    pub(super) fn follow(&self, netns: &Netns) {
        if let Some(watch) = &self.cx.watch
            && let Err(error) = watch.follow(netns)
        {
            tracing::warn!(uid = %self.entry.uid, %error, "changes in the pod are seen by the sweep only");
        }
    }

    /// Puts another plan in the place of the one in force, in one transaction.
    pub(super) async fn replace(
        &mut self,
        netns: &Arc<Netns>,
        plan: RedirectPlan,
    ) -> Result<(), KernelError> {
        let ops = lower::lower(self.cx.settings.backend, Step::Replace(&plan));
        self.apply(netns, plan, ops).await
    }

    /// Puts a plan in the place of a predecessor's, by whichever backend that was: the rules of another one go when ours
    /// are in force.
    pub(super) async fn succeed(
        &mut self,
        netns: &Arc<Netns>,
        plan: RedirectPlan,
        seen: &Observation,
    ) -> Result<(), KernelError> {
        let Some(former) = self.former_backend(seen) else { return self.replace(netns, plan).await };
        let backend = self.cx.settings.backend;
        tracing::info!(uid = %self.entry.uid, %former, %backend, "a pod's rules change their backend");
        let mut ops = lower::lower(backend, Step::Enroll { plan: &plan, live: false });
        ops.extend(lower::lower(former, Step::GiveWay));
        self.apply(netns, plan, ops).await
    }

    /// The backend other than ours that wrote rules here.
    fn former_backend(&self, seen: &Observation) -> Option<Backend> {
        seen.written_by.iter().copied().find(|backend| *backend != self.cx.settings.backend)
    }

    pub(super) async fn apply(
        &mut self,
        netns: &Arc<Netns>,
        plan: RedirectPlan,
        ops: Vec<KernelOp>,
    ) -> Result<(), KernelError> {
        let there = Arc::clone(netns);
        let seen = self
            .cx
            .kernel
            .run(move |kernel| kernel.apply(&there, &ops))
            .await
            .inspect_err(|_| self.cx.metrics.kernel_error(KernelStep::Enroll))?;
        self.hold(netns, plan, seen);
        Ok(())
    }

    /// A plan is in force, and this is what the kernel showed right after its commit.
    pub(super) fn hold(&mut self, netns: &Arc<Netns>, plan: RedirectPlan, seen: Observation) {
        let held = Redirected { netns: Arc::clone(netns), plan, committed: seen.rules, seen };
        match &mut self.grip {
            Grip::Draining { held: draining, .. } if held.plan.stage == Stage::Drain => *draining = held,
            _ => self.grip = Grip::Redirected(held),
        }
    }

    /// A pod that was leaving, and is wanted again: what is direct now stays direct, what begins is captured.
    pub(super) async fn rejoin(&mut self, overrides: &Overrides) {
        let Grip::Draining { held, .. } = &self.grip else { return };
        let netns = Arc::clone(&held.netns);
        let listed = Arc::clone(&netns);
        let result = match self.cx.kernel.run(move |kernel| kernel.sockets(&listed)).await {
            Ok(found) => {
                let older = Older::Kept(sockets::older_flows(&found));
                let plan = self.plan(overrides, Stage::Redirect(older)).await;
                self.replace(&netns, plan).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.confirm(Handover::Try).await,
            Err(error) => self.unfinished(format!("its rules could not be put back: {error}")),
        }
    }
}

fn refusal(code: u32, attachment: &Attachment, why: &str) -> Reply {
    let pod = attachment.pod.as_ref().map_or_else(|| attachment.id.container_id.clone(), ToString::to_string);
    Reply::Error { code, msg: format!("pod {pod}: {why}; see: sluicectl why {pod}"), details: String::new() }
}
