//! Is it so? The planned rules, rule and route are in the namespace, ztunnel acknowledged it, its sockets listen: only
//! then is a pod `enabled`. What has drifted is put right in one transaction.

use super::handover::Handover;
use super::pod::{Grip, PodTask};
use super::sockets;
use crate::kernel::Observation;
use crate::metrics::{DriftObject, KernelStep};
use sluice_shared::admin::{Check, PodStatus, State};
use sluice_shared::contract::{
    ANNOTATION_REDIRECTION, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND,
};
use sluice_shared::enroll::{Overrides, Verdict};
use sluice_shared::lower::{self, Step};
use sluice_shared::plan::{Older, RedirectPlan, Stage};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a pod that keeps older connections looks which of them are left.
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// How long ztunnel's listeners may be missing, with ztunnel connected, before it is told of the pod anew: it may be
/// about to answer.
const LISTENERS_MISSING: Duration = Duration::from_millis(500);
/// How long `lo` may be down, and the local route gone with it, before that is drift: a runtime that ends a sandbox takes
/// it down first, and DEL follows.
const LOOPBACK_DOWN: Duration = Duration::from_millis(500);
/// The least time between two repairs of one pod: somebody in it who takes rules away in a loop must not keep the agent
/// from the others.
const REPAIR_PAUSE: Duration = Duration::from_millis(200);

impl PodTask {
    /// A redirected pod that is to stay so: its plan, and what ztunnel knows of it, follow what they depend on.
    pub(super) async fn keep(&mut self, overrides: &Overrides) {
        if let Err(error) = self.narrow().await {
            return self.unfinished(format!("its older connections could not be listed: {error}"));
        }
        let Grip::Redirected(held) = &self.grip else { return };
        let (netns, in_force) = (Arc::clone(&held.netns), held.plan.clone());
        let wanted = self.plan(overrides, in_force.stage.clone()).await;
        if wanted != in_force
            && let Err(error) = self.replace(&netns, wanted).await
        {
            self.cx.metrics.kernel_error(KernelStep::Replace);
            return self.unfinished(format!("its rules could not be replaced: {error}"));
        }
        self.unfinished = None;
        self.rename(&netns).await;
        self.confirm(Handover::Try).await;
    }

    /// Looks, and says what the pod is.
    pub(super) async fn confirm(&mut self, handover: Handover) {
        let (Grip::Redirected(held), Verdict::InMesh { .. }) = (&self.grip, self.verdict()) else { return };
        let netns = Arc::clone(&held.netns);
        let (looked_at, before) = (Arc::clone(&netns), held.seen.clone());
        let seen = match self.cx.kernel.run(move |kernel| kernel.observe_since(&looked_at, &before)).await {
            Ok(seen) => seen,
            Err(error) => {
                self.cx.metrics.kernel_error(KernelStep::Observe);
                return self.pending(format!("its namespace cannot be looked at: {error}"));
            }
        };
        if let Grip::Redirected(held) = &mut self.grip {
            held.seen = seen.clone();
        }
        if let Some((object, what)) = self.drift(&seen) {
            if self.may_be_ending(&seen, object) {
                return;
            }
            return self.repair(object, what).await;
        }
        self.loopback_down_since = None;
        if let Some(why) = &self.unfinished {
            return self.show(State::Pending, why.clone());
        }
        if self.acked_by.is_empty()
            && let Err(why) = self.acknowledged(&netns, handover).await
        {
            return self.pending(why);
        }
        let missing = self.missing_listeners(&seen);
        if !missing.is_empty() {
            return self.revive_listeners(&missing).await;
        }
        self.listeners_missing_since = None;
        if let Grip::Redirected(held) = &self.grip {
            self.cx.host.admit(&self.entry.uid, &self.ips(), &held.plan.probe).await;
        }
        self.retry_at_once();
        self.show(State::Enabled, captured(&seen));
    }

    /// Something may have changed in the namespace: look, and put right what has.
    pub(super) async fn look(&mut self) {
        if self.sandbox_is_gone() && !self.lives_on().await {
            self.release("its namespace is gone, though no DEL was seen").await;
            return self.settle().await;
        }
        self.seek_confirmation();
        match &self.grip {
            Grip::None => {}
            Grip::Redirected(_) => {
                self.prune().await;
                self.confirm(Handover::Leave).await;
            }
            Grip::Draining { .. } => {
                self.mend_drain().await;
                self.settle().await;
            }
        }
    }

    /// A leaving pod's marks, rule and route are still what its proxied connections live on.
    async fn mend_drain(&mut self) {
        let Grip::Draining { held, .. } = &self.grip else { return };
        let (netns, plan, before) = (Arc::clone(&held.netns), held.plan.clone(), held.seen.clone());
        let looked_at = Arc::clone(&netns);
        let seen = self.cx.kernel.run(move |kernel| kernel.observe_since(&looked_at, &before)).await;
        let Ok(Some((object, what))) = seen.map(|seen| self.drift(&seen)) else { return };
        let ops = lower::lower(self.cx.settings.backend, Step::Repair(&plan));
        match self.apply(&netns, plan, ops).await {
            Ok(()) => self.count_repair(object, what),
            Err(error) => tracing::warn!(uid = %self.entry.uid, what, %error, "drift could not be put right"),
        }
    }

    fn count_repair(&mut self, object: DriftObject, what: &str) {
        self.drift_repairs += 1;
        self.cx.metrics.drift_repaired(object);
        tracing::warn!(uid = %self.entry.uid, what, "drift put right");
    }

    /// What of ours is not as it was committed, if anything.
    fn drift(&self, seen: &Observation) -> Option<(DriftObject, &'static str)> {
        let (Grip::Redirected(held) | Grip::Draining { held, .. }) = &self.grip else { return None };
        match (seen.rules, held.committed) {
            (None, _) => Some((DriftObject::Rules, "its rules are gone")),
            (Some(found), Some(committed)) if found != committed => {
                Some((DriftObject::Rules, "its rules were changed"))
            }
            (Some(_), None) => {
                Some((DriftObject::Rules, "its rules were changed while they were being written"))
            }
            _ if !seen.policy_rule => Some((DriftObject::PolicyRule, "its policy rule is gone")),
            _ if !seen.local_route => Some((DriftObject::Route, "its local route is gone")),
            _ => None,
        }
    }

    /// Whether what is missing may be gone because the runtime has begun to end the sandbox. Looks again soon.
    fn may_be_ending(&mut self, seen: &Observation, object: DriftObject) -> bool {
        if object != DriftObject::Route || seen.loopback {
            self.loopback_down_since = None;
            return false;
        }
        let since = *self.loopback_down_since.get_or_insert_with(Instant::now);
        let left = LOOPBACK_DOWN.saturating_sub(since.elapsed());
        self.wake = Some(Instant::now() + left);
        !left.is_zero()
    }

    /// Puts everything back, in one transaction. Connections that slipped past meanwhile are not kept: they are the
    /// ones that the mesh must not let through.
    async fn repair(&mut self, object: DriftObject, what: &str) {
        let Grip::Redirected(held) = &self.grip else { return };
        self.show(State::Drifted, format!("{what}; being put right"));
        if let Some(last) = self.repaired.filter(|last| last.elapsed() < REPAIR_PAUSE) {
            self.wake = Some(last + REPAIR_PAUSE);
            return;
        }
        self.repaired = Some(Instant::now());
        let (netns, plan) = (Arc::clone(&held.netns), held.plan.clone());
        let ops = lower::lower(self.cx.settings.backend, Step::Repair(&plan));
        match self.apply(&netns, plan, ops).await {
            Ok(()) => {
                self.count_repair(object, what);
                // The next look says whether it holds.
                self.wake = Some(Instant::now());
            }
            Err(error) => {
                self.cx.metrics.kernel_error(KernelStep::Replace);
                self.show(State::Drifted, format!("{what}; it could not be put right: {error}"));
                self.retry_later();
            }
        }
    }

    fn missing_listeners(&self, seen: &Observation) -> Vec<u16> {
        let dns = matches!(&self.grip, Grip::Redirected(held) if held.plan.capture_dns);
        let needed =
            [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE].into_iter().chain(dns.then_some(PORT_DNS_PROXY));
        needed.filter(|port| !seen.listening.contains(port)).collect()
    }

    /// ztunnel said that it listens, and does not: it is told of the pod anew. A repeated Add of the same namespace
    /// does nothing there, so Del goes first.
    async fn revive_listeners(&mut self, missing: &[u16]) {
        let since = *self.listeners_missing_since.get_or_insert_with(Instant::now);
        self.show(State::Pending, format!("ztunnel does not listen on {missing:?} in the pod"));
        if since.elapsed() < LISTENERS_MISSING {
            self.wake = Some(Instant::now() + LISTENERS_MISSING / 2);
            return;
        }
        self.listeners_missing_since = None;
        let Grip::Redirected(held) = &self.grip else { return };
        let netns = Arc::clone(&held.netns);
        tracing::warn!(uid = %self.entry.uid, ?missing, "ztunnel's listeners are gone; handing the pod over anew");
        self.hand(None);
        self.cx.ztunnel.del(&self.entry.uid).await;
        self.acked_by.clear();
        self.hand(self.workload(&netns));
        match self.hand_over(&netns, Instant::now() + Duration::from_secs(2)).await {
            Ok(()) => {
                self.drift_repairs += 1;
                self.cx.metrics.drift_repaired(DriftObject::Listeners);
                self.wake = Some(Instant::now());
            }
            Err(error) => self.pending(format!("waiting for ztunnel: {error}")),
        }
    }

    fn kept(&self) -> Option<&std::collections::BTreeSet<sluice_shared::plan::Flow>> {
        match &self.grip {
            Grip::Redirected(held) => match &held.plan.stage {
                Stage::Redirect(Older::Kept(flows)) => Some(flows),
                _ => None,
            },
            _ => None,
        }
    }

    /// Lets go of the kept connections whose sockets are gone: a tuple that stays could one day be reused.
    async fn prune(&mut self) {
        if self.pruned.is_some_and(|last| last.elapsed() < PRUNE_EVERY) {
            return;
        }
        let Some(kept) = self.kept().cloned() else { return };
        self.pruned = Some(Instant::now());
        let Grip::Redirected(held) = &self.grip else { return };
        let (netns, plan) = (Arc::clone(&held.netns), held.plan.clone());
        let listed = Arc::clone(&netns);
        let Ok(found) = self.cx.kernel.run(move |kernel| kernel.sockets(&listed)).await else { return };
        let open = sockets::still_open(&kept, &found);
        if open.len() == kept.len() {
            return;
        }
        let older = if open.is_empty() { Older::None } else { Older::Kept(open) };
        let plan = RedirectPlan { stage: Stage::Redirect(older), ..plan };
        if let Err(error) = self.replace(&netns, plan).await {
            tracing::warn!(uid = %self.entry.uid, %error, "ended connections could not be taken out of the kept set");
        }
    }

    /// `sluicectl why`: everything is looked at afresh, in the order in which a packet would care.
    pub(super) async fn inspect(&mut self) -> PodStatus {
        self.look().await;
        let mut checks = vec![self.membership_check(), self.namespace_check()];
        if let Grip::Redirected(held) | Grip::Draining { held, .. } = &self.grip {
            let (netns, plan) = (Arc::clone(&held.netns), held.plan.clone());
            match self.cx.kernel.run(move |kernel| kernel.observe(&netns)).await {
                Ok(seen) => checks.extend(self.kernel_checks(&seen, &plan)),
                Err(error) => checks.push(check("namespace can be looked at", false, error.to_string())),
            }
            checks.push(self.ztunnel_check());
        }
        checks.extend(self.annotation_check());
        let mut status = self.entry.showing().status.clone();
        status.checks = checks;
        status
    }

    fn membership_check(&self) -> Check {
        match self.verdict() {
            Verdict::InMesh { because, overrides } => {
                let warnings = overrides.warnings.join("; ");
                let detail =
                    if warnings.is_empty() { because.to_string() } else { format!("{because}; {warnings}") };
                check("in the mesh", warnings.is_empty(), detail)
            }
            Verdict::Outside(reason) => check("outside the mesh", true, reason.to_string()),
        }
    }

    fn namespace_check(&self) -> Check {
        match (self.netns_id(), self.whereabouts()) {
            (Some(id), Some(at)) => {
                check("network namespace known", true, format!("{id} at {}", at.path.display()))
            }
            (None, Some(at)) => {
                check("network namespace known", true, format!("named by the source: {}", at.path.display()))
            }
            _ if self.facts.as_ref().is_some_and(|facts| facts.host_network) => {
                check("network namespace", true, "the host's, in which nothing is ever redirected".into())
            }
            _ => {
                let why = "no ADD was seen for this pod, and it has not been found";
                check("network namespace known", false, why.into())
            }
        }
    }

    fn kernel_checks(&self, seen: &Observation, plan: &RedirectPlan) -> Vec<Check> {
        let drift = self.drift(seen);
        let rules = drift.filter(|(object, _)| *object == DriftObject::Rules);
        let missing = self.missing_listeners(seen);
        let mut checks = vec![
            check(
                "rules as planned",
                rules.is_none(),
                rules.map_or_else(|| describe_plan(plan), |(_, what)| what.to_owned()),
            ),
            check("return path", seen.policy_rule && seen.local_route, {
                let there = |there: bool| if there { "there" } else { "missing" };
                format!("policy rule {}, local route {}", there(seen.policy_rule), there(seen.local_route))
            }),
            check(
                "ztunnel listens in the pod",
                missing.is_empty(),
                match missing.as_slice() {
                    [] => format!("on {:?}", seen.listening),
                    missing => format!("not on {missing:?}"),
                },
            ),
        ];
        if !seen.foreign_nat.is_empty() {
            checks.push(check(
                "no foreign address translation",
                false,
                format!(
                    "tables {} translate addresses in the pod and may take packets before ours",
                    seen.foreign_nat.join(", ")
                ),
            ));
        }
        checks
    }

    /// What istiod goes by; nothing where there is no API server.
    fn annotation_check(&self) -> Option<Check> {
        let (ok, what) = self.cx.status.explain(&self.entry.uid)?;
        Some(check("annotation as it should be", ok, format!("{ANNOTATION_REDIRECTION}: {what}")))
    }

    fn ztunnel_check(&self) -> Check {
        let connections: Vec<String> = self.acked_by.iter().map(|number| format!("#{number}")).collect();
        if connections.is_empty() {
            check("ztunnel acknowledged the pod", false, "no connected ztunnel has".into())
        } else {
            check("ztunnel acknowledged the pod", true, format!("by connection {}", connections.join(", ")))
        }
    }
}

/// What `enabled` means here. Somebody else's translation in the pod (docker in docker has one) does not end it, but
/// may get at packets first, and is said wherever the pod is shown.
fn captured(seen: &Observation) -> String {
    match seen.foreign_nat.as_slice() {
        [] => "captured".into(),
        tables => format!(
            "captured, but for what {} in the pod may translate before our rules see it",
            tables.join(", ")
        ),
    }
}

fn check(name: &str, ok: bool, detail: String) -> Check {
    Check { name: name.to_owned(), ok, detail }
}

fn describe_plan(plan: &RedirectPlan) -> String {
    let stage = match &plan.stage {
        Stage::Drain => "leaving: nothing new is captured".to_owned(),
        Stage::Redirect(Older::Kept(flows)) => format!("captured, but for {} older connections", flows.len()),
        Stage::Redirect(Older::None | Older::AnyMidStream) => "captured".to_owned(),
    };
    let inbound = if plan.capture_inbound { "inbound, " } else { "" };
    let dns = if plan.capture_dns { ", DNS" } else { "" };
    format!("{stage} ({inbound}outbound{dns})")
}
