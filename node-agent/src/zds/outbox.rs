//! What one ztunnel was told, what it said, and what is still to be said to it. No I/O.
//!
//! The order is: the snapshot, SnapshotSent once, then the queue. A Del takes back an Add that has not been sent;
//! nothing that was deleted comes back from a list made before.

use super::codec::Answer;
use super::{Peer, Workload};
use sluice_shared::ids::{NetnsId, PodUid};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long after a refusal a pod is offered again; doubled for each refusal that follows.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two offers.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What a connection does next.
#[derive(Debug)]
pub enum Step {
    /// Send Add, report to [`super::ledger::Ledger::answered`].
    Add(Workload),
    /// Send Keep, report to [`super::ledger::Ledger::kept`].
    Keep(PodUid),
    /// Send Del, report to [`super::ledger::Ledger::gone`], then drop the waiters.
    Del(PodUid, Vec<oneshot::Sender<()>>),
    /// Send Del for a pod whose namespace another pod is about to get there; report to [`super::ledger::Ledger::gone`].
    Evict(PodUid),
    /// Nothing is sent for this pod, as its namespace is another pod's in the same snapshot. It is offered when that
    /// pod is gone.
    Refuse(PodUid, String),
    /// Send SnapshotSent, report to [`super::ledger::Ledger::ready`].
    SnapshotSent,
    /// Take a list of what is wanted between [`super::ledger::Ledger::collect`] and [`super::ledger::Ledger::refresh`].
    Refresh,
}

/// One connection's side of the ledger.
#[derive(Debug)]
pub struct Outbox {
    peer: Peer,
    phase: Phase,
    /// What remains of the snapshot.
    snapshot: VecDeque<Workload>,
    /// What comes after it.
    queue: VecDeque<Work>,
    pods: HashMap<PodUid, Pod>,
    /// Deleted while a list of what is wanted is being made: not to be taken from that list.
    deleted: HashSet<PodUid>,
    collecting: bool,
    /// It may have become the one that must serve every pod.
    promoted: bool,
    wake: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has said hello; its snapshot has not been taken.
    Greeted,
    /// Its snapshot is being told.
    Snapshot,
    /// SnapshotSent went out. It goes out once in a connection's life.
    Closing,
    Ready,
}

#[derive(Debug)]
enum Work {
    Add(Workload),
    Del(PodUid, Vec<oneshot::Sender<()>>),
}

/// What one ztunnel was told of one pod, and what it said.
#[derive(Debug)]
struct Pod {
    netns: Option<NetnsId>,
    standing: Standing,
}

/// Where a pod stands with one ztunnel.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was told; the answer is outstanding.
    Asked,
    /// It goes on if it was served before, which nobody says.
    Kept,
    /// It is served.
    Acked,
    /// It is refused, and offered again.
    Refused {
        /// ztunnel's words.
        reason: String,
        /// Since the last offer.
        pause: Duration,
        /// When.
        again: Instant,
    },
}

impl Outbox {
    /// A ztunnel that has said hello.
    pub fn new(peer: Peer, wake: Arc<Notify>) -> Self {
        Self {
            peer,
            phase: Phase::Greeted,
            snapshot: VecDeque::new(),
            queue: VecDeque::new(),
            pods: HashMap::new(),
            deleted: HashSet::new(),
            collecting: true,
            promoted: false,
            wake,
        }
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether the snapshot is acknowledged.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// What is next, if anything; or when to ask again.
    pub fn next(&mut self, now: Instant) -> Result<Step, Option<Instant>> {
        match self.phase {
            Phase::Greeted | Phase::Closing => Err(None),
            Phase::Snapshot => Ok(self.next_of_snapshot(now)),
            Phase::Ready => self.next_of_queue(now),
        }
    }

    fn next_of_snapshot(&mut self, now: Instant) -> Step {
        let Some(workload) = self.snapshot.pop_front() else {
            self.phase = Phase::Closing;
            return Step::SnapshotSent;
        };
        let Some(netns) = &workload.netns else { return Step::Keep(workload.uid) };
        if let Some(other) = self.occupant(netns.id(), &workload.uid) {
            let why = format!("its namespace {} is already that of pod {other}", netns.id());
            let standing = Standing::refused(&why, RETRY_FIRST, now);
            self.pods.insert(workload.uid.clone(), Pod { netns: None, standing });
            return Step::Refuse(workload.uid, why);
        }
        self.asked(&workload);
        Step::Add(workload)
    }

    fn next_of_queue(&mut self, now: Instant) -> Result<Step, Option<Instant>> {
        if let Some(Work::Add(workload)) = self.queue.front()
            && let Some(netns) = &workload.netns
            && let Some(other) = self.occupant(netns.id(), &workload.uid)
        {
            self.leaving(&other);
            return Ok(Step::Evict(other));
        }
        match self.queue.pop_front() {
            Some(Work::Add(workload)) => {
                self.asked(&workload);
                return Ok(Step::Add(workload));
            }
            Some(Work::Del(uid, waiters)) => {
                self.leaving(&uid);
                return Ok(Step::Del(uid, waiters));
            }
            None => {}
        }
        let again = self.pods.values().filter_map(|pod| match pod.standing {
            Standing::Refused { again, .. } => Some(again),
            _ => None,
        });
        match again.min() {
            _ if self.promoted => Ok(Step::Refresh),
            Some(due) if due <= now => Ok(Step::Refresh),
            later => Err(later),
        }
    }

    /// The other pod that this ztunnel serves, or tries to, in that namespace. Two at once would share its
    /// connections between two identities.
    fn occupant(&self, netns: NetnsId, uid: &PodUid) -> Option<PodUid> {
        let other = self.pods.iter().find(|(other, pod)| *other != uid && pod.netns == Some(netns));
        other.map(|(other, _)| other.clone())
    }

    /// From the moment a Del goes out the pod counts as served no more.
    fn leaving(&mut self, uid: &PodUid) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.standing = Standing::Asked;
        }
    }

    fn asked(&mut self, workload: &Workload) {
        let netns = workload.netns.as_ref().map(|netns| netns.id());
        let pod = self.pods.entry(workload.uid.clone()).or_insert(Pod { netns, standing: Standing::Asked });
        // An Add for the namespace where it is served already changes nothing until it is answered.
        if pod.netns != netns || pod.standing == Standing::Kept {
            *pod = Pod { netns, standing: Standing::Asked };
        }
    }

    /// The answer to an Add. Returns whether it answers whoever waits for this pod in this namespace: not when a Del is
    /// queued, for then they wait for the Add behind it.
    pub fn answered(&mut self, workload: &Workload, answer: &Answer, now: Instant) -> bool {
        if let Some(pod) = self.pods.get_mut(&workload.uid) {
            pod.standing = match answer {
                Ok(()) => Standing::Acked,
                Err(reason) => {
                    let pause = match pod.standing {
                        Standing::Refused { pause, .. } => pause,
                        _ => RETRY_FIRST,
                    };
                    Standing::refused(reason, pause, now)
                }
            };
        }
        let is_del = |work: &Work| matches!(work, Work::Del(..));
        if self.queue.iter().any(|work| is_del(work) && work.uid() == &workload.uid) {
            return false;
        }
        self.queue.retain(|work| !matches!(work, Work::Add(queued) if same(queued, workload)));
        true
    }

    /// A Keep is acknowledged.
    pub fn kept(&mut self, uid: &PodUid) {
        self.pods.insert(uid.clone(), Pod { netns: None, standing: Standing::Kept });
    }

    /// A Del is answered.
    pub fn gone(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }

    /// SnapshotSent is acknowledged. Returns how many pods were named in it.
    pub fn ready(&mut self) -> usize {
        self.phase = Phase::Ready;
        self.pods.len()
    }

    /// Where a pod stands.
    pub fn standing(&self, uid: &PodUid) -> Option<&Standing> {
        self.pods.get(uid).map(|pod| &pod.standing)
    }

    /// Whether this ztunnel has said that it serves the pod in this namespace, and nothing about the pod is on its way.
    pub fn serves(&self, workload: &Workload) -> bool {
        let netns = workload.netns.as_ref().map(|netns| netns.id());
        let acked = |pod: &Pod| pod.netns == netns && pod.standing == Standing::Acked;
        self.pods.get(&workload.uid).is_some_and(acked)
            && self.queue.iter().all(|work| work.uid() != &workload.uid)
    }

    /// A newer connection is gone, so that this one may have to serve what only that one was told.
    pub fn promote(&mut self) {
        self.promoted = true;
        self.wake.notify_one();
    }

    /// A list of what is wanted is about to be made; from now on deletions are remembered until it is here.
    pub fn collect(&mut self) {
        self.collecting = true;
    }

    /// The list for the snapshot is here.
    pub fn begin(&mut self, list: Vec<Workload>) {
        self.snapshot = self.collected(list).into();
        self.phase = Phase::Snapshot;
    }

    /// Queues an Add, in place of one that is queued for the same pod.
    pub fn enqueue(&mut self, workload: Workload) {
        self.queue.retain(|work| !matches!(work, Work::Add(queued) if queued.uid == workload.uid));
        self.queue.push_back(Work::Add(workload));
        self.wake.notify_one();
    }

    /// Queues a Del, and takes back what has not been said of the pod. The receiver closes when it is answered; there is
    /// none when this ztunnel was told nothing yet, and will not be told of this pod.
    pub fn del(&mut self, uid: &PodUid) -> Option<oneshot::Receiver<()>> {
        self.queue.retain(|work| !matches!(work, Work::Add(workload) if workload.uid == *uid));
        self.snapshot.retain(|workload| workload.uid != *uid);
        if self.collecting {
            self.deleted.insert(uid.clone());
        }
        if self.phase == Phase::Greeted {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let queued = self.queue.iter_mut().find_map(|work| match work {
            Work::Del(queued, waiters) if queued == uid => Some(waiters),
            _ => None,
        });
        match queued {
            Some(waiters) => waiters.push(sender),
            None => self.queue.push_back(Work::Del(uid.clone(), vec![sender])),
        }
        self.wake.notify_one();
        Some(receiver)
    }

    /// A list of what is wanted, less what was deleted while it was made.
    fn collected(&mut self, mut list: Vec<Workload>) -> Vec<Workload> {
        self.collecting = false;
        let deleted = std::mem::take(&mut self.deleted);
        list.retain(|workload| !deleted.contains(&workload.uid));
        list
    }

    /// The list is here: offers again what is due, with a longer pause each time, and what this lacks if it has to serve
    /// `all`.
    pub fn refresh(&mut self, list: Vec<Workload>, all: bool, now: Instant) {
        let list = self.collected(list);
        self.promoted = false;
        let owners = self.owners(&list);
        for workload in list {
            let Some(netns) = workload.netns.as_ref().map(|netns| netns.id()) else { continue };
            let wanted = match self.pods.get(&workload.uid) {
                Some(Pod { standing: Standing::Refused { again, .. }, .. }) if *again <= now => true,
                Some(pod) if pod.netns == Some(netns) => false,
                _ => all,
            };
            let owned = owners.get(&netns) == Some(&workload.uid);
            // What was queued while the list was made is newer than the list.
            let queued = self.queue.iter().any(|work| work.uid() == &workload.uid);
            if wanted && owned && !queued {
                self.enqueue(workload);
            }
        }
        // Also those that are wanted no more, whose Del is still to come: they must not ask for a list again at once.
        for pod in self.pods.values_mut() {
            if let Standing::Refused { pause, again, .. } = &mut pod.standing
                && *again <= now
            {
                *pause = (*pause * 2).min(RETRY_MAX);
                *again = now + *pause;
            }
        }
    }

    /// Whose each namespace is: that of the pod that is served there, if the list still says so, else of the first that
    /// the list names.
    fn owners(&self, list: &[Workload]) -> HashMap<NetnsId, PodUid> {
        let mut owners = HashMap::new();
        for workload in list {
            let Some(netns) = workload.netns.as_ref().map(|netns| netns.id()) else { continue };
            let is_there = self.pods.get(&workload.uid).is_some_and(|pod| pod.netns == Some(netns));
            if is_there || !owners.contains_key(&netns) {
                owners.insert(netns, workload.uid.clone());
            }
        }
        owners
    }
}

impl Standing {
    fn refused(reason: &str, pause: Duration, now: Instant) -> Self {
        Self::Refused { reason: reason.to_owned(), pause, again: now + pause }
    }
}

impl Work {
    fn uid(&self) -> &PodUid {
        match self {
            Self::Add(workload) => &workload.uid,
            Self::Del(uid, _) => uid,
        }
    }
}

/// Whether an answer for one is an answer for the other: ztunnel ignores whatever else differs.
pub fn same(a: &Workload, b: &Workload) -> bool {
    let netns = |workload: &Workload| workload.netns.as_ref().map(|netns| netns.id());
    a.uid == b.uid && netns(a) == netns(b)
}
