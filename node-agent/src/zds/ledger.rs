//! Who is connected, what each ztunnel was told, what is still to be said to it, and who waits for an answer.
//!
//! No I/O and no waiting: [`super::link`] asks [`Ledger::next`] what to do, does it, and reports what was answered.
//! An Add goes to the newest ready connection and to every newer one (after its snapshot), a Del to all. What each is
//! told, in which order, is its [`Outbox`]'s.

use super::codec::Answer;
use super::outbox::{Outbox, Standing, Step, same};
use super::{Connection, Peer, PodState, Workload};
use sluice_shared::ids::PodUid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// The state of the hand-over, for all connections.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Oldest first.
    outboxes: Vec<Outbox>,
    waiting: BTreeMap<u64, Waiting>,
    connections: u64,
    tickets: u64,
}

/// An Add that waits for its answer.
#[derive(Debug)]
pub struct Ticket {
    /// For [`Ledger::forget`].
    pub id: u64,
    /// Who answered, and what. Closed without an answer when the pod is deleted meanwhile.
    pub answer: oneshot::Receiver<(Peer, Answer)>,
}

#[derive(Debug)]
struct Waiting {
    workload: Workload,
    /// The connections whose queue it has been put in.
    offered: BTreeSet<u64>,
    /// Whether it went out to any.
    sent: bool,
    answer: oneshot::Sender<(Peer, Answer)>,
}

impl Ledger {
    /// A ztunnel has said hello.
    pub fn connect(&mut self, pid: i32) -> (Peer, Arc<Notify>) {
        self.connections += 1;
        let peer = Peer { connection: self.connections, pid };
        let wake = Arc::new(Notify::new());
        self.outboxes.push(Outbox::new(peer.clone(), Arc::clone(&wake)));
        self.dispatch();
        (peer, wake)
    }

    /// A connection is gone. Whoever waited for it waits for the next newest, which from now on has to serve every pod;
    /// also one whose snapshot is under way may have been passed over for the one that is gone.
    pub fn disconnect(&mut self, connection: u64) {
        self.outboxes.retain(|outbox| outbox.peer().connection != connection);
        for outbox in self.outboxes.iter_mut().filter(|outbox| outbox.peer().connection < connection) {
            outbox.promote();
        }
        self.dispatch();
    }

    /// What this connection does next, if anything; or when to ask again.
    pub fn next(&mut self, connection: u64, now: Instant) -> Result<Step, Option<Instant>> {
        let step = self.outbox(connection).ok_or(None)?.next(now)?;
        if let Step::Add(workload) = &step {
            for waiting in self.waiting.values_mut().filter(|waiting| waiting.is_for(workload)) {
                waiting.sent = true;
            }
        }
        Ok(step)
    }

    /// From now on deletions are remembered until [`Ledger::begin`] or [`Ledger::refresh`] brings the list that is made
    /// meanwhile.
    pub fn collect(&mut self, connection: u64) {
        if let Some(outbox) = self.outbox(connection) {
            outbox.collect();
        }
    }

    /// The snapshot of a new connection.
    pub fn begin(&mut self, connection: u64, list: Vec<Workload>) {
        if let Some(outbox) = self.outbox(connection) {
            outbox.begin(list);
        }
    }

    /// What is wanted at present: offers again what is due, and what a connection that must serve every pod lacks.
    pub fn refresh(&mut self, connection: u64, list: Vec<Workload>, now: Instant) {
        let all = self.newest_ready() == Some(connection);
        if let Some(outbox) = self.outbox(connection) {
            outbox.refresh(list, all, now);
        }
    }

    /// The answer to an Add.
    pub fn answered(&mut self, connection: u64, workload: &Workload, answer: &Answer, now: Instant) {
        let Some(outbox) = self.outbox(connection) else { return };
        if !outbox.answered(workload, answer, now) {
            return;
        }
        let peer = outbox.peer().clone();
        for waiting in extract(&mut self.waiting, |waiting| waiting.is_for(workload)) {
            // A caller that no longer listens has dropped its ticket.
            drop(waiting.answer.send((peer.clone(), answer.clone())));
        }
    }

    /// A Keep is acknowledged: it proves nothing about listeners.
    pub fn kept(&mut self, connection: u64, uid: &PodUid) {
        if let Some(outbox) = self.outbox(connection) {
            outbox.kept(uid);
        }
    }

    /// A Del is answered.
    pub fn gone(&mut self, connection: u64, uid: &PodUid) {
        if let Some(outbox) = self.outbox(connection) {
            outbox.gone(uid);
        }
    }

    /// SnapshotSent is acknowledged. Returns how many pods the connection serves.
    pub fn ready(&mut self, connection: u64) -> usize {
        self.outbox(connection).map_or(0, Outbox::ready)
    }

    /// A pod is to be served. Whoever waits for the same pod in another namespace waits in vain: that sandbox is gone.
    pub fn add(&mut self, workload: Workload) -> Ticket {
        let outdated = |waiting: &Waiting| waiting.workload.uid == workload.uid && !waiting.is_for(&workload);
        drop(extract(&mut self.waiting, outdated));
        self.tickets += 1;
        let id = self.tickets;
        let (sender, answer) = oneshot::channel();
        // Said in its snapshot, most likely: to be told again it would answer in its turn, behind every other pod.
        let newest = self.newest_ready().and_then(|connection| self.outbox(connection));
        if let Some(outbox) = newest.filter(|outbox| outbox.serves(&workload)) {
            drop(sender.send((outbox.peer().clone(), Ok(()))));
            return Ticket { id, answer };
        }
        let waiting = Waiting { workload, offered: BTreeSet::new(), sent: false, answer: sender };
        self.waiting.insert(id, waiting);
        self.dispatch();
        Ticket { id, answer }
    }

    /// Nobody waits for this Add any more; what is queued is still sent. Returns whether it went out to any ztunnel.
    pub fn forget(&mut self, ticket: u64) -> bool {
        self.waiting.remove(&ticket).is_some_and(|waiting| waiting.sent)
    }

    /// A pod is no longer to be served. Each receiver closes when one ztunnel has answered, or is gone.
    pub fn del(&mut self, uid: &PodUid) -> Vec<oneshot::Receiver<()>> {
        drop(extract(&mut self.waiting, |waiting| waiting.workload.uid == *uid));
        self.outboxes.iter_mut().filter_map(|outbox| outbox.del(uid)).collect()
    }

    /// What the connected ztunnels have said of a pod.
    pub fn state(&self, uid: &PodUid) -> PodState {
        let mut state = PodState::default();
        for outbox in self.outboxes.iter().rev() {
            match outbox.standing(uid) {
                Some(Standing::Acked) => state.acked_by.push(outbox.peer().connection),
                Some(Standing::Refused { reason, .. }) if state.last_nack.is_none() => {
                    state.last_nack = Some(reason.clone());
                }
                _ => {}
            }
        }
        state
    }

    /// Who is connected, newest first.
    pub fn connections(&self) -> Vec<Connection> {
        let connection =
            |outbox: &Outbox| Connection { peer: outbox.peer().clone(), ready: outbox.is_ready() };
        self.outboxes.iter().rev().map(connection).collect()
    }

    /// Whether any ztunnel has acknowledged its snapshot.
    pub fn any_ready(&self) -> bool {
        self.newest_ready().is_some()
    }

    fn newest_ready(&self) -> Option<u64> {
        self.outboxes.iter().rev().find(|outbox| outbox.is_ready()).map(|outbox| outbox.peer().connection)
    }

    fn outbox(&mut self, connection: u64) -> Option<&mut Outbox> {
        self.outboxes.iter_mut().find(|outbox| outbox.peer().connection == connection)
    }

    /// Puts every Add that waits into the queues where it belongs and is not yet.
    fn dispatch(&mut self) {
        let newest = self.newest_ready().unwrap_or(0);
        for outbox in self.outboxes.iter_mut().filter(|outbox| outbox.peer().connection >= newest) {
            for waiting in self.waiting.values_mut() {
                if waiting.offered.insert(outbox.peer().connection) {
                    outbox.enqueue(waiting.workload.clone());
                }
            }
        }
    }
}

impl Waiting {
    fn is_for(&self, workload: &Workload) -> bool {
        same(&self.workload, workload)
    }
}

fn extract(waiting: &mut BTreeMap<u64, Waiting>, mut which: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
    let ids: Vec<u64> = waiting.iter().filter(|(_, w)| which(w)).map(|(id, _)| *id).collect();
    ids.iter().filter_map(|id| waiting.remove(id)).collect()
}

#[cfg(test)]
mod tests;
