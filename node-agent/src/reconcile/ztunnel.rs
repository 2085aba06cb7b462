//! ztunnel, as pods see it: whose marks are trusted, what a snapshot holds, who has answered, and what becomes of
//! opening SYNs while nobody listens.

use super::Message;
use crate::adopt::cgroup;
use crate::journal::Journal;
use crate::kernel::{HostProc, KernelError, Pool, hostproc};
use crate::workloads::{Registry, Showing};
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
    /// Where it is looked up of which pod a process is.
    host_proc: HostProc,
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
    pub fn new(
        registry: Arc<Registry>,
        trust: Arc<Trust>,
        recalled: watch::Receiver<bool>,
        host_proc: HostProc,
    ) -> Self {
        Self { registry, trust, recalled, host_proc }
    }

    /// What is certainly no ztunnel, though root runs it: a process of a pod that ztunnel itself is to serve, whose marks
    /// would be trusted in every pod; and one that nobody can be asked about any more. Root outside of such pods cannot be
    /// told from ztunnel: it may be run as a pod of any name, or as none.
    fn must_be_possible(&self, peer: &Peer) -> Result<(), String> {
        let ended = || "the process that connected has ended, and another has its connection".to_owned();
        let listed = match peer.pid {
            hostproc::UNKNOWN => return Ok(()),
            hostproc::ENDED => return Err(ended()),
            pid => self.host_proc.cgroups(pid),
        };
        let named = match listed {
            Ok(listed) => cgroup::pods(&listed),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Err(ended());
            }
            Err(error) => {
                tracing::warn!(pid = peer.pid, %error, "cannot tell of which pod a ztunnel is");
                return Ok(());
            }
        };
        // The outermost pod that the node knows counts: a pod can make cgroups of any name below its own.
        match named.iter().find_map(|uid| self.registry.showing(uid)) {
            Some(Showing { status, handed: Some(_) }) => Err(format!(
                "process {} is of the pod {}/{}, which is in the mesh itself",
                peer.pid, status.namespace, status.name
            )),
            _ => Ok(()),
        }
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
    async fn connected(&self, peer: &Peer) -> Result<(), String> {
        let mut recalled = self.recalled.clone();
        if tokio::time::timeout(RECALL_WITHIN, recalled.wait_for(|done| *done)).await.is_err() {
            tracing::warn!(
                "the pods that were here before have not all been looked at; ztunnel's snapshot may lack some"
            );
        }
        self.must_be_possible(peer)?;
        if self.trust.admit(peer).await {
            self.spread_trust().await;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zds;
    use sluice_shared::admin::State;

    const MESHED: &str = "0d7f2a3c-95fb-4d4e-8f2e-2ad2ed1f2a0b";
    const OTHER: &str = "11111111-95fb-4d4e-8f2e-2ad2ed1f2a0b";

    /// What is said of a process with these cgroups, on a node with a pod in the mesh and another one.
    async fn said(pid: i32, cgroups: Option<&str>) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(cgroups) = cgroups {
            std::fs::create_dir(dir.path().join(pid.to_string())).unwrap();
            std::fs::write(dir.path().join(pid.to_string()).join("cgroup"), cgroups).unwrap();
        }
        let registry = Arc::new(Registry::default());
        for uid in [MESHED, OTHER] {
            let uid = PodUid::new(uid).unwrap();
            registry.send(&uid, Message::Look, |entry| {
                let mut showing = entry.showing();
                (showing.status.namespace, showing.status.name) = ("demo".into(), "a".into());
                if uid.as_str() == MESHED {
                    showing.status.state = State::Enabled;
                    showing.handed = Some(zds::Workload {
                        uid: uid.clone(),
                        name: "a".into(),
                        namespace: "demo".into(),
                        service_account: "a".into(),
                        netns: None,
                    });
                }
            });
        }
        let journal = Journal::open(&dir.path().join("run")).unwrap();
        let trust = Arc::new(Trust::anybody(journal, "a test".into()));
        let (_recalled, when_recalled) = watch::channel(true);
        let hooks = ZtunnelHooks::new(registry, trust, when_recalled, HostProc::at(dir.path()));
        hooks.connected(&Peer { connection: 1, pid }).await
    }

    fn below(path: &str) -> String {
        format!("4:memory:/\n0::{path}\n")
    }

    #[tokio::test]
    async fn a_pod_of_the_mesh_is_no_ztunnel() {
        for path in [
            format!("/kubepods/burstable/pod{MESHED}/abc"),
            format!("/../../kubepods/pod{MESHED}/abc"),
            // What it makes below its own cgroup hides it from nobody.
            format!("/kubepods/pod{MESHED}/kubepods/pod{OTHER}/abc"),
        ] {
            let why = said(7, Some(&below(&path))).await.unwrap_err();
            assert_eq!(why, "process 7 is of the pod demo/a, which is in the mesh itself", "{path}");
        }
    }

    #[tokio::test]
    async fn whoever_may_be_a_ztunnel_is_let_in() {
        let unknown = "99999999-95fb-4d4e-8f2e-2ad2ed1f2a0b";
        for path in ["/system.slice/ztunnel.service".to_owned(), "/".to_owned()]
            .into_iter()
            .chain([OTHER, unknown].map(|uid| format!("/kubepods/pod{uid}/abc")))
        {
            assert_eq!(said(7, Some(&below(&path))).await, Ok(()), "{path}");
        }
        assert_eq!(said(hostproc::UNKNOWN, None).await, Ok(()), "a kernel that does not say who it is");
    }

    #[tokio::test]
    async fn nobody_speaks_for_a_process_that_has_ended() {
        for pid in [hostproc::ENDED, 7] {
            assert!(said(pid, None).await.unwrap_err().contains("has ended"));
        }
    }
}
