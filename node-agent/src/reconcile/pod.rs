//! One pod's task: it alone changes anything about the pod, one step at a time.
//!
//! What the pod *should* be follows from facts by `enroll::decide`; what it *is* is its [`Grip`]. Every message ends in
//! [`PodTask::settle`], which takes the one step that leads from the one to the other. A step that fails leaves the
//! pod `pending` with the reason, and is tried again.

use super::message::answer_all;
use super::{Context, Message};
use crate::journal::Sandbox;
use crate::kernel::{Fingerprint, Netns, Observation};
use crate::metrics::AddPhase;
use crate::source::Lookup;
use crate::workloads::Entry;
use crate::zds;
use sluice_shared::admin::State;
use sluice_shared::enroll::{self, Reason, Verdict};
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::NetnsId;
use sluice_shared::plan::RedirectPlan;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The first wait before a failed step is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A pod and its task.
pub(super) struct PodTask {
    pub(super) cx: Arc<Context>,
    pub(super) entry: Arc<Entry>,
    /// Whether everything that the source showed at the start has come through this mailbox: the shared flag is set while
    /// it may still be on its way.
    pub(super) told_all: bool,
    /// What the source shows, or showed last.
    pub(super) facts: Option<Box<PodFacts>>,
    /// Whether the source shows the pod no longer. Its facts hold until its sandbox goes: containers may still run.
    pub(super) facts_are_last: bool,
    /// How to reach the namespace, as ADD vouched for it or as the source's path was verified.
    pub(super) sandbox: Option<Sandbox>,
    /// What of ours is in the namespace.
    pub(super) grip: Grip,
    /// Why the plan in force is not yet the wanted one, if a step towards it failed.
    pub(super) unfinished: Option<String>,
    /// The namespace that DEL let go of. A path that the source names may lead to it for a while; it is not taken back.
    pub(super) released: Option<NetnsId>,
    /// Whether the runtime has said that the pod's sandbox is no more. Its address may be another pod's by now, so only
    /// an ADD, or the runtime's own word, gives it a namespace again.
    pub(super) deleted: bool,
    /// When the runtime was last asked about a namespace that was found without its word.
    pub(super) asked: Option<Instant>,
    /// The namespace that was looked at, had nothing of anybody's in it, and lacks only a ztunnel.
    pub(super) lacks_ztunnel: Option<NetnsId>,
    /// The connections whose ztunnel acknowledged the pod.
    pub(super) acked_by: BTreeSet<u64>,
    pub(super) drift_repairs: u64,
    /// Whether the sandbox's path has been seen to exist.
    pub(super) path_seen: bool,
    pub(super) repaired: Option<Instant>,
    pub(super) pruned: Option<Instant>,
    /// Since when `lo` of its namespace is down.
    pub(super) loopback_down_since: Option<Instant>,
    /// Since when ztunnel, though connected, has not listened in the pod.
    pub(super) listeners_missing_since: Option<Instant>,
    /// When to look again by itself, if at all.
    pub(super) wake: Option<Instant>,
    retry: Duration,
}

/// What of ours is in the pod's namespace.
pub(super) enum Grip {
    /// Nothing.
    None,
    /// Its traffic is redirected.
    Redirected(Redirected),
    /// It is leaving.
    Draining {
        /// What is still there.
        held: Redirected,
        /// When it stops waiting for proxied connections.
        deadline: Instant,
    },
}

/// A namespace with our rules in it.
pub(super) struct Redirected {
    pub(super) netns: Arc<Netns>,
    /// The plan in force.
    pub(super) plan: RedirectPlan,
    /// What the kernel showed right after the plan was committed.
    pub(super) committed: Option<Fingerprint>,
    /// What it showed last.
    pub(super) seen: Observation,
}

impl PodTask {
    pub(super) fn new(cx: Arc<Context>, entry: Arc<Entry>) -> Self {
        let told_all = *cx.synced.borrow();
        Self {
            cx,
            entry,
            told_all,
            facts: None,
            facts_are_last: false,
            sandbox: None,
            grip: Grip::None,
            unfinished: None,
            released: None,
            deleted: false,
            asked: None,
            lacks_ztunnel: None,
            acked_by: BTreeSet::new(),
            drift_repairs: 0,
            path_seen: false,
            repaired: None,
            pruned: None,
            loopback_down_since: None,
            listeners_missing_since: None,
            wake: None,
            retry: RETRY_MIN,
        }
    }

    /// Takes messages until nothing is left to know or to do about the pod.
    pub(super) async fn run(mut self) {
        loop {
            let forget = || self.cx.status.forget(&self.entry.uid);
            if self.is_over() && self.cx.registry.retire(&self.entry, forget) {
                return;
            }
            let wake = self.wake;
            let sleep = async move {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let entry = Arc::clone(&self.entry);
            tokio::select! {
                message = entry.mailbox.next() => self.take(message).await,
                () = sleep => {
                    self.wake = None;
                    self.settle().await;
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.facts.is_none() && self.sandbox.is_none() && matches!(self.grip, Grip::None)
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Facts(facts) => {
                self.learn(facts);
                self.leave_replaced_sandbox().await;
                self.retry_at_once();
                self.settle().await;
            }
            Message::Remembered(sandbox, done) => {
                self.recall(sandbox).await;
                let _ = done.send(());
                self.settle().await;
            }
            Message::Synced => {
                self.told_all = true;
                self.retry_at_once();
                self.settle().await;
            }
            Message::Resettle(waiters) => {
                self.retry_at_once();
                self.settle().await;
                answer_all(waiters);
            }
            // Whoever no longer waits has given its sandbox up.
            Message::Add { reply, .. } if reply.is_closed() => {}
            Message::Add { attachment, netns, told, deadline, reply } => {
                // The deadline was set when it was asked for.
                let asked = deadline - self.cx.settings.add_timeout;
                self.cx.metrics.add_took(AddPhase::Queue, asked.elapsed());
                let answer = self.add(attachment, netns, told, deadline).await;
                self.cx.metrics.add_took(AddPhase::Total, asked.elapsed());
                let _ = reply.send(answer);
            }
            Message::Del { attachment, reply } => self.del(&attachment, reply).await,
            Message::Check { attachment, reply } => self.check(&attachment, reply).await,
            Message::Retain(valid) => {
                let ours = self.sandbox.as_ref().and_then(|sandbox| sandbox.attachment.as_ref());
                if ours.is_some_and(|id| !valid.contains(id)) {
                    self.release("its attachment is no longer valid (GC)").await;
                    self.deleted = true;
                    self.settle().await;
                }
            }
            Message::Look => self.look().await,
            Message::Answered { connection, answer } => self.answered(connection, answer).await,
            Message::Disconnected(connection) => {
                if self.acked_by.remove(&connection) && self.acked_by.is_empty() {
                    self.settle().await;
                }
            }
            Message::Yield(netns, done) => {
                if self.netns_id() == Some(netns) {
                    self.release("its namespace belongs to another pod now").await;
                    self.settle().await;
                }
                let _ = done.send(());
            }
            Message::Doubt => self.doubt().await,
            Message::Inspect(reply) => {
                let status = self.inspect().await;
                let _ = reply.send(status);
            }
        }
    }

    /// Takes the one step from what the pod is to what it should be.
    pub(super) async fn settle(&mut self) {
        match (&self.grip, self.verdict()) {
            // What has not been said yet is unknown, not absent: nothing is undone before everything is known.
            (Grip::None, _) if !self.knows_enough() => {
                self.show(State::Pending, self.what_is_missing().into());
            }
            (Grip::None, Verdict::InMesh { overrides, .. }) => self.join(&overrides).await,
            (Grip::None, Verdict::Outside(reason)) if self.was_redirected() => {
                self.go_on_leaving(reason).await;
            }
            (Grip::None, Verdict::Outside(reason)) => self.stay_outside(reason).await,
            (Grip::Redirected(_), Verdict::InMesh { overrides, .. }) => self.keep(&overrides).await,
            (Grip::Redirected(_), Verdict::Outside(_)) if !self.knows_enough() => {}
            (Grip::Redirected(_), Verdict::Outside(reason)) => self.leave(reason).await,
            (Grip::Draining { .. }, Verdict::InMesh { overrides, .. }) => self.rejoin(&overrides).await,
            (Grip::Draining { .. }, Verdict::Outside(reason)) => self.drain(reason).await,
        }
    }

    /// Whether the pod can be judged: the source shows it, or has shown everything there is. To an API server a pod or a
    /// namespace that it has not shown may still be on its way.
    pub(super) fn knows_enough(&self) -> bool {
        let shown = |namespace: &str| self.cx.namespace(namespace).is_some();
        match (&self.facts, &self.cx.lookup, &self.sandbox) {
            (Some(facts), Lookup::Nothing, _) => self.told_all || shown(&facts.namespace),
            (Some(facts), Lookup::Api(_), _) => self.cx.can_judge(&facts.namespace, true),
            // What is remembered of it is whole only with the service account.
            (None, Lookup::Api(_), Some(sandbox)) => {
                self.told_all && self.cx.can_judge(&sandbox.pod.namespace, sandbox.service_account.is_some())
            }
            (None, _, _) => self.told_all,
        }
    }

    fn what_is_missing(&self) -> &'static str {
        match &self.facts {
            _ if !self.told_all => "waiting for the source's first complete list",
            Some(_) => "waiting for its namespace, which the API server has not shown yet",
            None => "the API server has not shown it yet",
        }
    }

    /// What the pod should be.
    pub(super) fn verdict(&self) -> Verdict {
        match self.known_facts() {
            Some(facts) => {
                let namespace = self.cx.namespace(&facts.namespace);
                enroll::decide(&facts, namespace.as_ref(), &self.cx.settings.policy)
            }
            None => Verdict::Outside(Reason::Unknown),
        }
    }

    pub(super) async fn stay_outside(&mut self, reason: Reason) {
        // It may have been offered to ztunnel while it was wanted.
        if self.hand(None) {
            self.cx.ztunnel.del(&self.entry.uid).await;
        }
        self.retry_at_once();
        // A path that only the source named is nobody's once the source shows the pod no longer.
        if self.facts.is_none() && self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_vouched_for()) {
            self.release("the source no longer shows it").await;
        }
        self.show(State::Outside, reason.to_string());
    }

    async fn answered(&mut self, connection: u64, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                self.acked_by.insert(connection);
                self.retry_at_once();
                self.settle().await;
            }
            Err(why) => {
                self.acked_by.remove(&connection);
                self.cx.metrics.zds_nack();
                if !matches!(self.grip, Grip::None) && self.acked_by.is_empty() {
                    self.show(State::Pending, format!("ztunnel refused the pod: {why}"));
                }
            }
        }
    }

    /// Says what ztunnel's snapshots hold for the pod from now on. Returns whether that was something before.
    pub(super) fn hand(&self, workload: Option<zds::Workload>) -> bool {
        std::mem::replace(&mut self.entry.showing().handed, workload).is_some()
    }

    /// Tries again later, each time twice as late. A time that is set already stands: the sweep, which fails each second
    /// for the same reason, must not put it off.
    pub(super) fn retry_later(&mut self) {
        let now = Instant::now();
        if self.wake.is_none_or(|at| at <= now) {
            self.wake = Some(now + self.retry);
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
    }

    /// Something has changed: the next failure waits the shortest time again.
    pub(super) fn retry_at_once(&mut self) {
        self.retry = RETRY_MIN;
        self.wake = None;
    }

    /// A step towards the wanted plan failed: until it succeeds the pod is not what it should be, whatever is in force.
    pub(super) fn unfinished(&mut self, why: String) {
        self.unfinished = Some(why.clone());
        self.pending(why);
    }

    /// Not captured, and why; tried again later.
    pub(super) fn pending(&mut self, reason: String) {
        self.show(State::Pending, reason);
        self.retry_later();
    }
}

impl Drop for PodTask {
    fn drop(&mut self) {
        self.entry.mailbox.close();
    }
}
