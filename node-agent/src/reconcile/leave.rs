//! Out of the mesh: a drain that cuts nothing for a pod that lives on, a clean end for one that does not.

use super::pod::{Grip, PodTask};
use super::sockets;
use crate::kernel::Netns;
use crate::status::Peers;
use sluice_shared::admin::State;
use sluice_shared::enroll::{Overrides, Reason};
use sluice_shared::lower::{self, Step};
use sluice_shared::plan::{RedirectPlan, Stage};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a drain looks whether it is over.
const DRAIN_POLL: Duration = Duration::from_millis(500);
/// How long a pod that leaves waits for its annotation to be gone before its rules go all the same.
const TELL_PEERS_WITHIN: Duration = Duration::from_secs(2);
/// How long ztunnel serves the pod after that, at least: istiod gathers changes (100 ms and more) and pushes them, and a peer
/// that has not heard yet would be refused.
const PEERS_LEARN_WITHIN: Duration = Duration::from_secs(2);

impl PodTask {
    /// Begins to leave: peers are told first (status), then nothing new is captured, while marks, rule and route stay
    /// for what is proxied.
    pub(super) async fn leave(&mut self, reason: Reason) {
        let Grip::Redirected(held) = &self.grip else { return };
        if reason == Reason::Terminal {
            return self.finish_leaving(&reason.to_string()).await;
        }
        let (netns, mut plan) = (Arc::clone(&held.netns), held.plan.clone());
        if !self.tell_peers(&netns, reason).await {
            return;
        }
        if !self.cx.settings.keep_existing {
            return self.finish_leaving(&reason.to_string()).await;
        }
        self.show(State::Draining, format!("{reason}; proxied connections are being waited for"));
        plan.stage = Stage::Drain;
        if let Err(error) = self.replace(&netns, plan).await {
            self.show(State::Draining, format!("{reason}; capture could not be ended yet: {error}"));
            return self.retry_later();
        }
        self.retry_at_once();
        self.begin_drain().await;
        self.drain(reason).await;
    }

    /// Has the annotation taken away before anything changes: peers that go on dialling the pod by HBONE would find nobody.
    /// An API server that is away is not waited for long. `false` when the sandbox's end came first.
    async fn tell_peers(&mut self, netns: &Arc<Netns>, reason: Reason) -> bool {
        self.show(State::Draining, format!("{reason}; peers are being told first"));
        let (status, uid) = (self.cx.status.clone(), self.entry.uid.clone());
        let told = async move { status.withdrawn(&uid, TELL_PEERS_WITHIN).await };
        self.meanwhile(netns, told).await.is_some()
    }

    /// Why ztunnel must go on serving the pod though no proxied connection is left, and until when if that is known.
    fn peers_may_dial(&self) -> Option<(&'static str, Instant)> {
        match self.cx.status.peers(&self.entry.uid) {
            Peers::Unaware => None,
            Peers::MayDial => {
                let later = Instant::now() + DRAIN_POLL;
                Some(("its annotation is still there, and peers go by it", later))
            }
            Peers::ToldAt(since) => {
                let until = since + PEERS_LEARN_WITHIN;
                (Instant::now() < until).then_some(("peers are about to hear of it", until))
            }
        }
    }

    /// Nothing new is captured from now on, so probes need no door.
    async fn begin_drain(&mut self) {
        self.cx.host.dismiss(&self.entry.uid).await;
        if let Grip::Redirected(held) = std::mem::replace(&mut self.grip, Grip::None) {
            let deadline = Instant::now() + self.cx.settings.drain_timeout;
            self.grip = Grip::Draining { held, deadline };
        }
    }

    /// A predecessor of this agent had the pod redirected, and it is not to be in the mesh: what is left of ours there
    /// leaves by a drain of its own.
    pub(super) async fn go_on_leaving(&mut self, reason: Reason) {
        let netns = match self.find_namespace().await {
            Ok(netns) => netns,
            Err(why) => {
                tracing::info!(uid = %self.entry.uid, why, "nothing is left of a pod that had been captured");
                self.remember(false);
                return self.stay_outside(reason).await;
            }
        };
        if !self.tell_peers(&netns, reason).await {
            return;
        }
        let plan = self.plan(&Overrides::default(), Stage::Drain).await;
        let there = Arc::clone(&netns);
        let replaced = match self.cx.kernel.run(move |kernel| kernel.observe(&there)).await {
            Ok(seen) => self.succeed(&netns, plan, &seen).await,
            Err(error) => Err(error),
        };
        if let Err(error) = replaced {
            self.show(State::Draining, format!("{reason}; capture could not be ended yet: {error}"));
            return self.retry_later();
        }
        self.begin_drain().await;
        self.drain(reason).await;
    }

    /// Goes on leaving: over when no proxied connection is left, or the deadline has passed.
    pub(super) async fn drain(&mut self, reason: Reason) {
        let Grip::Draining { held, deadline } = &self.grip else { return };
        let (netns, deadline) = (Arc::clone(&held.netns), *deadline);
        if reason == Reason::Terminal || Instant::now() >= deadline {
            return self.finish_leaving(&reason.to_string()).await;
        }
        // What the rest of the plan depends on may change meanwhile: a new ztunnel's mark must be trusted here too.
        let wanted =
            RedirectPlan { guard: self.cx.trust.guard(), hold: *self.cx.hold.borrow(), ..held.plan.clone() };
        if wanted != held.plan
            && let Err(error) = self.replace(&Arc::clone(&netns), wanted).await
        {
            tracing::warn!(uid = %self.entry.uid, %error, "a leaving pod's rules could not be replaced");
        }
        match self.cx.kernel.run(move |kernel| kernel.sockets(&netns)).await {
            Ok(found) => match sockets::proxied(&found) {
                0 => match self.peers_may_dial() {
                    None => return self.finish_leaving(&reason.to_string()).await,
                    Some((why, until)) => {
                        self.show(State::Draining, format!("{reason}; {why}"));
                        self.wake = Some(until.min(deadline));
                        return;
                    }
                },
                1 => self.show(State::Draining, format!("{reason}; 1 proxied connection is left")),
                left => self.show(State::Draining, format!("{reason}; {left} proxied connections are left")),
            },
            Err(error) => {
                self.show(State::Draining, format!("{reason}; its sockets cannot be listed: {error}"));
            }
        }
        self.wake = Some((Instant::now() + DRAIN_POLL).min(deadline));
    }

    /// The end of leaving: ztunnel lets go, then everything of ours is removed. The pod is known, and can come back.
    async fn finish_leaving(&mut self, reason: &str) {
        // Out of the snapshots first, or the next one would bring it back.
        self.hand(None);
        self.cx.ztunnel.del(&self.entry.uid).await;
        self.acked_by.clear();
        self.cx.host.dismiss(&self.entry.uid).await;
        if let Err(error) = self.remove_rules().await {
            self.show(State::Draining, format!("{reason}; its rules could not be removed: {error}"));
            return self.retry_later();
        }
        self.grip = Grip::None;
        self.unfinished = None;
        self.remember(false);
        self.retry_at_once();
        self.show(State::Outside, reason.to_owned());
    }

    /// The end of the sandbox: ztunnel and the host let go of it, its descriptor is closed, and it is forgotten. What
    /// cannot be removed from the namespace dies with it.
    pub(super) async fn release(&mut self, why: &str) {
        self.cx.succession.forget(&self.entry.uid);
        if !matches!(self.grip, Grip::None) || self.hand(None) {
            self.hand(None);
            self.cx.ztunnel.del(&self.entry.uid).await;
            self.cx.host.dismiss(&self.entry.uid).await;
            if let Err(error) = self.remove_rules().await {
                tracing::debug!(uid = %self.entry.uid, %error, "rules are left to die with their namespace");
            }
        }
        self.entry.showing().status.netns = None;
        self.unfinished = None;
        if let Some(sandbox) = self.sandbox.take() {
            self.released = Some(sandbox.netns);
            self.path_seen = false;
            tracing::debug!(pod = %sandbox.pod, uid = %sandbox.uid, why, "sandbox released");
        }
        if let Err(error) = self.cx.journal.forget(&self.entry.uid) {
            tracing::warn!(uid = %self.entry.uid, %error, "a journal file could not be removed");
        }
        self.grip = Grip::None;
        self.acked_by.clear();
        self.forget_last_facts();
        self.retry_at_once();
    }

    async fn remove_rules(&mut self) -> Result<(), crate::kernel::KernelError> {
        let (Grip::Redirected(held) | Grip::Draining { held, .. }) = &self.grip else { return Ok(()) };
        let netns = Arc::clone(&held.netns);
        if let Some(watch) = &self.cx.watch {
            watch.unfollow(netns.id());
        }
        let ops = lower::lower(self.cx.settings.backend, Step::Remove);
        self.cx.kernel.run(move |kernel| kernel.run(&netns, &ops)).await
    }
}
