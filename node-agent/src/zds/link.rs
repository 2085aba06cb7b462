//! One connection's life: hello, the agent's preparations, the snapshot, then whatever the ledger says is next.

use super::codec::Request;
use super::conn::{Lockstep, Lost};
use super::ledger::Ledger;
use super::outbox::Step;
use super::{Hooks, Peer, Workload};
use sluice_shared::ids::PodUid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// What the handle and all connections share.
#[derive(Debug)]
pub struct Shared {
    ledger: Mutex<Ledger>,
    any_ready: watch::Sender<bool>,
}

/// A connection in the ledger; it leaves when this is dropped, whichever way its task ends.
struct Link<H: Hooks> {
    shared: Arc<Shared>,
    hooks: Arc<H>,
    peer: Peer,
    wake: Arc<Notify>,
}

/// Serves a connection until it ends. It counts as connected from its hello on.
pub async fn run<H: Hooks>(shared: Arc<Shared>, hooks: Arc<H>, pid: i32, mut lockstep: Lockstep) {
    if let Err(lost) = lockstep.hello().await {
        return warn!(pid, "a connection on ztunnel's socket ended before its hello: {lost}");
    }
    let link = Link::new(shared, hooks, pid);
    let connection = link.peer.connection;
    info!(connection, pid, "ztunnel connected");
    match link.serve(&mut lockstep).await {
        Lost::Closed => info!(connection, pid, "ztunnel closed the connection; its proxies go on"),
        lost => warn!(connection, pid, "dropped a ztunnel's connection: {lost}; it will connect again"),
    }
}

impl Shared {
    pub fn new() -> Self {
        Self { ledger: Mutex::default(), any_ready: watch::Sender::new(false) }
    }

    /// The ledger, whose every method leaves it whole: a panic elsewhere does not spoil it.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn any_ready(&self) -> watch::Receiver<bool> {
        self.any_ready.subscribe()
    }

    fn update_ready(&self) {
        self.any_ready.send_if_modified(|ready| {
            let now = self.ledger().any_ready();
            std::mem::replace(ready, now) != now
        });
    }
}

impl<H: Hooks> Link<H> {
    fn new(shared: Arc<Shared>, hooks: Arc<H>, pid: i32) -> Self {
        let (peer, wake) = shared.ledger().connect(pid);
        Self { shared, hooks, peer, wake }
    }

    async fn serve(&self, lockstep: &mut Lockstep) -> Lost {
        tokio::select! {
            lost = lockstep.ended() => return lost,
            admitted = self.hooks.connected(&self.peer) => {
                if let Err(why) = admitted {
                    return Lost::TurnedAway(why);
                }
            }
        }
        let begun = Instant::now();
        let list = self.hooks.snapshot();
        self.shared.ledger().begin(self.peer.connection, list);
        loop {
            let step = tokio::select! {
                biased;
                lost = lockstep.ended() => return lost,
                step = self.next() => step,
            };
            if let Err(lost) = self.take(step, lockstep, begun).await {
                return lost;
            }
        }
    }

    /// Waits for something to do. Cancel-safe: a step is handed out only as the last act.
    async fn next(&self) -> Step {
        loop {
            let again = match self.shared.ledger().next(self.peer.connection, Instant::now()) {
                Ok(step) => return step,
                Err(again) => again,
            };
            let due = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // It stores a wake-up that came since the ledger was asked.
                () = self.wake.notified() => {}
                () = due => {}
            }
        }
    }

    async fn take(&self, step: Step, lockstep: &mut Lockstep, begun: Instant) -> Result<(), Lost> {
        let connection = self.peer.connection;
        match step {
            Step::Add(workload) => self.add(&workload, lockstep).await?,
            Step::Keep(uid) => {
                if let Err(reason) = lockstep.exchange(Request::Keep(&uid)).await? {
                    warn!(connection, %uid, "ztunnel refused to keep a pod: {reason}");
                } else {
                    self.shared.ledger().kept(connection, &uid);
                }
            }
            Step::Del(uid, waiters) => {
                self.del(&uid, lockstep).await?;
                drop(waiters);
            }
            Step::Evict(uid) => {
                warn!(connection, %uid, "this pod's namespace is given to another pod; ztunnel lets go of it first");
                self.del(&uid, lockstep).await?;
            }
            Step::Refuse(uid, why) => self.report(&uid, Err(why)),
            Step::SnapshotSent => {
                if let Err(reason) = lockstep.exchange(Request::SnapshotSent).await? {
                    return Err(Lost::Protocol(format!("ztunnel refused the snapshot's end: {reason}")));
                }
                let pods = self.shared.ledger().ready(connection);
                self.shared.update_ready();
                let took_ms = begun.elapsed().as_millis();
                info!(connection, pid = self.peer.pid, pods, took_ms, "ztunnel has its snapshot");
                self.hooks.ready(&self.peer);
            }
            Step::Refresh => {
                self.shared.ledger().collect(connection);
                let list = self.hooks.snapshot();
                self.shared.ledger().refresh(connection, list, Instant::now());
            }
        }
        Ok(())
    }

    /// The workload, and with it our hold on the namespace, ends with the answer.
    async fn add(&self, workload: &Workload, lockstep: &mut Lockstep) -> Result<(), Lost> {
        let answer = lockstep.exchange(Request::Add(workload)).await?;
        self.shared.ledger().answered(self.peer.connection, workload, &answer, Instant::now());
        self.report(&workload.uid, answer);
        Ok(())
    }

    async fn del(&self, uid: &PodUid, lockstep: &mut Lockstep) -> Result<(), Lost> {
        if let Err(reason) = lockstep.exchange(Request::Del(uid)).await? {
            warn!(connection = self.peer.connection, %uid, "ztunnel refused to let go of a pod: {reason}");
        }
        self.shared.ledger().gone(self.peer.connection, uid);
        Ok(())
    }

    fn report(&self, uid: &PodUid, answer: Result<(), String>) {
        let connection = self.peer.connection;
        match &answer {
            Ok(()) => debug!(connection, %uid, "ztunnel serves the pod"),
            Err(reason) => warn!(connection, %uid, "ztunnel refused the pod: {reason}"),
        }
        self.hooks.answered(&self.peer, uid, answer);
    }
}

impl<H: Hooks> Drop for Link<H> {
    fn drop(&mut self) {
        self.shared.ledger().disconnect(self.peer.connection);
        self.shared.update_ready();
        self.hooks.disconnected(&self.peer);
    }
}
