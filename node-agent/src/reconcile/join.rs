//! A pod that runs already, into the mesh: its rules come after ztunnel's word, for until ztunnel listens in it, its
//! connections keep the path they have. (A new pod: [`super::add`].)

use super::handover::Handover;
use super::pod::{Grip, PodTask, Redirected};
use super::sockets;
use crate::kernel::{KernelError, Netns, Observation};
use crate::metrics::KernelStep;
use sluice_shared::enroll::Overrides;
use sluice_shared::istio;
use sluice_shared::lower::{self, Backend, Step};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{self, Flow, Older, RedirectPlan, Stage};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Why a pod waits, when nothing else is missing.
pub(super) const NO_ZTUNNEL: &str = "waiting for ztunnel: none is connected";
/// How long a running pod's hand-over may take before it is tried again; the pod works meanwhile.
const LIVE_HANDOVER: Duration = Duration::from_secs(6);

impl PodTask {
    /// Makes sure that the plugin, with no agent to ask, will know that this namespace holds pods of the mesh.
    pub(super) fn note_membership(&self) {
        if let Some(facts) = self.known_facts() {
            self.cx.members.holds_a_pod(&facts.namespace);
        }
    }

    /// A pod that runs, and is to be in the mesh.
    pub(super) async fn join(&mut self, overrides: &Overrides) {
        self.note_membership();
        if self.lacks_only_ztunnel() {
            return self.pending(NO_ZTUNNEL.into());
        }
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

    /// Whether the pod has been looked at, and only a ztunnel is missing. Until there is one another look would find
    /// nothing new, and on a full node that starts every pod would look several times before the first one is captured.
    fn lacks_only_ztunnel(&self) -> bool {
        let looked_at = self.lacks_ztunnel.is_some() && self.lacks_ztunnel == self.netns_id();
        looked_at && !*self.cx.ztunnel.any_ready().borrow() && !self.cx.succession.may_precede_us()
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
            self.lacks_ztunnel = Some(netns.id());
            return Err(NO_ZTUNNEL.into());
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
        let door = self.cx.host.door(&self.entry.uid, &self.ips(), &ports).await;
        let (guard, hold) = (self.cx.trust.guard(), *self.cx.hold.borrow());
        plan::redirect(overrides, &self.cx.settings.redirect, stage, door, guard, hold)
    }

    /// Puts a plan in force in a namespace that has none, and takes note of what the kernel then shows.
    pub(super) async fn commit(
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
