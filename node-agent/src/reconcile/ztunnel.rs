//! ztunnel, as pods see it: whose marks are trusted, what a snapshot holds, who has answered, and what becomes of
//! opening SYNs while nobody listens.

use super::Message;
use crate::journal::Journal;
use crate::kernel::{KernelError, Pool};
use crate::workloads::Registry;
use crate::zds::{Hooks, Peer, Workload};
use sluice_shared::admin::Choice;
use sluice_shared::ids::PodUid;
use sluice_shared::plan::{CgroupRef, Hold, MarkGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long all pods together may take to trust a new ztunnel before its snapshot begins anyway.
const TRUST_WITHIN: Duration = Duration::from_secs(5);
/// How long a ztunnel waits for the pods that were there before this agent, before its snapshot begins anyway. It serves
/// those that it has meanwhile.
const RECALL_WITHIN: Duration = Duration::from_secs(20);

/// Whose sockets may carry ztunnel's mark on this node.
pub struct Trust {
    /// Where cgroups are looked up; `None` while the guard is off for good.
    kernel: Option<Arc<Pool>>,
    journal: Journal,
    state: Mutex<Trusted>,
}

struct Trusted {
    guard: MarkGuard,
    because: String,
    /// The cgroup of each connected ztunnel.
    by_connection: BTreeMap<u64, CgroupRef>,
}

/// What the ZDS server asks of the rest of the agent.
pub struct ZtunnelHooks {
    registry: Arc<Registry>,
    trust: Arc<Trust>,
    /// Whether the pods of the journal have been looked at, and so are in the snapshot.
    recalled: watch::Receiver<bool>,
}

impl Trust {
    /// The guard is on: marks are trusted by cgroup, to begin with those that this boot trusted before.
    #[must_use]
    pub fn by_cgroup(kernel: Arc<Pool>, journal: Journal) -> Self {
        let known = journal.guard();
        let because = match known.len() {
            0 => "no ztunnel has connected yet: nobody's mark is trusted".to_owned(),
            _ => "remembered from before the agent's restart".to_owned(),
        };
        let state = Trusted { guard: MarkGuard::Cgroups(known), because, by_connection: BTreeMap::new() };
        Self { kernel: Some(kernel), journal, state: Mutex::new(state) }
    }

    /// The guard is off: anybody's mark is trusted.
    #[must_use]
    pub fn anybody(journal: Journal, because: String) -> Self {
        let state = Trusted { guard: MarkGuard::Off, because, by_connection: BTreeMap::new() };
        Self { kernel: None, journal, state: Mutex::new(state) }
    }

    /// What goes into every plan.
    #[must_use]
    pub fn guard(&self) -> MarkGuard {
        self.lock().guard.clone()
    }

    /// `on` or `off`, and why.
    #[must_use]
    pub fn choice(&self) -> Choice {
        let state = self.lock();
        let chosen = if state.guard == MarkGuard::Off { "off" } else { "on" };
        Choice { chosen: chosen.into(), because: state.because.clone() }
    }

    /// The cgroup of a connected ztunnel.
    #[must_use]
    pub fn cgroup_of(&self, connection: u64) -> Option<CgroupRef> {
        self.lock().by_connection.get(&connection).cloned()
    }

    /// A ztunnel has connected. Says whether plans change by it.
    async fn admit(&self, peer: &Peer) -> bool {
        let Some(kernel) = &self.kernel else { return false };
        let before = self.guard();
        let known = match &before {
            MarkGuard::Cgroups(known) => known.clone(),
            MarkGuard::Off => BTreeSet::new(),
        };
        let pid = peer.pid;
        // A ztunnel that drains after its connection has closed still needs its mark: a cgroup is trusted until it no
        // longer exists. While the guard is off, it comes back on with the first one known.
        let found = kernel.run(move |kernel| {
            let cgroup = kernel.cgroup_of(pid)?;
            let alive = |known: &CgroupRef| kernel.cgroup_at(&known.path).is_ok_and(|now| now.id == known.id);
            Ok((cgroup, known.into_iter().filter(alive).collect::<BTreeSet<_>>()))
        });
        let found = found.await;
        let mut state = self.lock();
        match found {
            Ok((cgroup, mut trusted)) => {
                state.by_connection.insert(peer.connection, cgroup);
                trusted.extend(state.by_connection.values().cloned());
                if let Err(error) = self.journal.remember_guard(&trusted) {
                    tracing::warn!(%error, "the trusted cgroups cannot be remembered over a restart of the agent");
                }
                let paths: Vec<String> = trusted.iter().map(|cgroup| format!("/{}", cgroup.path)).collect();
                state.because = format!("marks are trusted from ztunnel's cgroups: {}", paths.join(", "));
                state.guard = MarkGuard::Cgroups(trusted);
            }
            // One that is dead already sends nothing: no reason to trust anybody.
            Err(error @ KernelError::NoProcess(_)) => {
                tracing::info!(pid, %error, "a ztunnel died before its cgroup was read");
            }
            Err(error) => state.open(&format!("ztunnel's cgroup (pid {pid}) is not to be had: {error}")),
        }
        state.guard != before
    }

    fn forget(&self, peer: &Peer) {
        self.lock().by_connection.remove(&peer.connection);
    }

    fn lock(&self) -> MutexGuard<'_, Trusted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trusted {
    /// A guard that would lock out ztunnel itself is worse than none.
    fn open(&mut self, because: &str) {
        tracing::warn!(because, "the mark guard is off");
        self.guard = MarkGuard::Off;
        because.clone_into(&mut self.because);
    }
}

impl ZtunnelHooks {
    /// Joins the ZDS server to the pods.
    #[must_use]
    pub fn new(registry: Arc<Registry>, trust: Arc<Trust>, recalled: watch::Receiver<bool>) -> Self {
        Self { registry, trust, recalled }
    }

    /// Has every pod's rules trust the new ztunnel.
    async fn spread_trust(&self) {
        let mut waits = Vec::new();
        self.registry.broadcast(|| {
            let (done, wait) = oneshot::channel();
            waits.push(wait);
            Message::Resettle(vec![done])
        });
        let all = async {
            for wait in waits {
                let _ = wait.await;
            }
        };
        if tokio::time::timeout(TRUST_WITHIN, all).await.is_err() {
            tracing::warn!("not every pod trusts the new ztunnel yet; its snapshot begins");
        }
    }
}

impl Hooks for ZtunnelHooks {
    async fn connected(&self, peer: &Peer) {
        let mut recalled = self.recalled.clone();
        if tokio::time::timeout(RECALL_WITHIN, recalled.wait_for(|done| *done)).await.is_err() {
            tracing::warn!(
                "the pods that were here before have not all been looked at; ztunnel's snapshot may lack some"
            );
        }
        if self.trust.admit(peer).await {
            self.spread_trust().await;
        }
    }

    fn snapshot(&self) -> Vec<Workload> {
        self.registry.showings().into_iter().filter_map(|showing| showing.handed).collect()
    }

    fn answered(&self, peer: &Peer, uid: &PodUid, answer: Result<(), String>) {
        let message = Message::Answered { connection: peer.connection, answer };
        self.registry.send_existing(uid, message);
    }

    fn ready(&self, peer: &Peer) {
        tracing::info!(connection = peer.connection, pid = peer.pid, "ztunnel has its snapshot");
    }

    fn disconnected(&self, peer: &Peer) {
        self.trust.forget(peer);
        self.registry.broadcast(|| Message::Disconnected(peer.connection));
    }
}

/// Decides, for all pods, whether opening SYNs to absent listeners are held or refused: held while a ztunnel is ready or
/// was until a moment ago, refused when none has been for `patience` (never, if `None`).
pub async fn keep_hold(
    mut any_ready: watch::Receiver<bool>,
    patience: Option<Duration>,
    hold: watch::Sender<Hold>,
    registry: Arc<Registry>,
) {
    let set = |wanted: Hold| {
        let changed = hold.send_if_modified(|hold| std::mem::replace(hold, wanted) != wanted);
        if changed {
            tracing::info!(?wanted, "opening SYNs to absent listeners");
            registry.broadcast(|| Message::Resettle(Vec::new()));
        }
    };
    loop {
        if *any_ready.borrow_and_update() {
            set(Hold::Drop);
            if any_ready.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Some(patience) = patience
            && tokio::time::timeout(patience, any_ready.wait_for(|ready| *ready)).await.is_err()
        {
            set(Hold::Reject);
        }
        if any_ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
    }
}
