//! The probe strategy `snat`: the host's table, kept as it should be.
//!
//! Pods come and go at once, and a commit writes and reads back the whole table. So what the table should say is noted
//! first, and one commit at a time puts in force whatever has been noted until then: the others find theirs done.

use crate::journal::Journal;
use crate::kernel::{Fingerprint, Kernel, KernelError, Pool};
use crate::metrics::{DriftObject, KernelStep, Metrics};
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, Flow, ProbeDoor};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::Mutex;

/// How often the table is written at once when others change rules meanwhile.
pub(super) const WRITES: usize = 3;
/// What it means when the table cannot be removed.
pub(super) const STAYS: &str = "the table on the host, which nothing needs any more, could not be removed: it goes on giving \
                                the kubelet's connections to pods that are in it another source address";

/// The host's table, at work.
pub(super) struct Snat {
    kernel: Arc<Pool>,
    backend: Backend,
    metrics: Metrics,
    source_v4: Ipv4Addr,
    source_v6: Ipv6Addr,
    wanted: std::sync::Mutex<Wanted>,
    /// Locked by whoever commits.
    committed: Mutex<Standing>,
    /// Whether the last commit failed, for those who cannot wait for the next.
    refused: AtomicBool,
    /// Where it is remembered for the agent's next start.
    journal: Option<Journal>,
}

/// What is in force.
enum Standing {
    /// This, by the last commit.
    Committed(Committed),
    /// The last commit failed.
    Unknown,
    /// Nothing, for good: another strategy has taken over.
    Retired,
}

/// What a commit has left.
#[derive(Clone)]
struct Committed {
    /// What the kernel showed right after the commit.
    shown: Fingerprint,
    /// What was committed; `None` when that was by a former run.
    plan: Option<HostPlan>,
}

/// What the table should say.
struct Wanted {
    plan: HostPlan,
    /// Counts the plan's changes.
    revision: u64,
    /// The last revision that a commit included, whether or not it went well: a failed one is the next look's to mend.
    tried: u64,
}

impl Snat {
    /// Installs the table, with the pods that `plan` knows from before a restart, to see whether the host lets it. A table
    /// that is as the journal remembers it is replaced, with no moment without the door.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) async fn start(
        kernel: Arc<Pool>,
        backend: Backend,
        metrics: Metrics,
        plan: HostPlan,
        journal: Option<Journal>,
    ) -> Result<Self, KernelError> {
        let former = journal.as_ref().and_then(Journal::host_table);
        let former = former.map(|shown| Committed { shown, plan: None });
        let committed = Standing::of(write(&kernel, backend, plan.clone(), former).await?);
        committed.remember(journal.as_ref());
        let refused = AtomicBool::new(committed.is_unknown());
        Ok(Self {
            kernel,
            backend,
            metrics,
            source_v4: plan.source_v4,
            source_v6: plan.source_v6,
            wanted: std::sync::Mutex::new(Wanted { plan, revision: 0, tried: 0 }),
            committed: Mutex::new(committed),
            refused,
            journal,
        })
    }

    pub(super) fn door(&self) -> ProbeDoor {
        ProbeDoor::Snat { v4: self.source_v4, v6: self.source_v6 }
    }

    /// The pods that are in the table.
    pub(super) fn members(&self) -> BTreeSet<PodUid> {
        self.wanted().plan.pods.keys().cloned().collect()
    }

    /// Whether the table could not be written when it was last tried.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) async fn admit(&self, uid: &PodUid, ips: &[IpAddr]) {
        self.change(|plan| {
            if plan.pods.get(uid).is_some_and(|known| known == ips) {
                return false;
            }
            // An address has one owner: the pod that has it now.
            for others in plan.pods.values_mut() {
                others.retain(|ip| !ips.contains(ip));
            }
            plan.pods.insert(uid.clone(), ips.to_vec());
            true
        })
        .await;
    }

    pub(super) async fn dismiss(&self, uid: &PodUid) {
        self.change(|plan| plan.pods.remove(uid).is_some()).await;
    }

    /// The agent's own connections that get the source, from now on.
    pub(super) async fn set_trials(&self, trials: BTreeSet<Flow>) {
        self.change(|plan| {
            let changed = plan.trials != trials;
            plan.trials = trials;
            changed
        })
        .await;
    }

    /// Looks whether the table is as committed, and whether `kubelet` is still the kubelet's cgroup: a kubelet that
    /// restarts may get a new one, which the old rule does not match. Puts right what is not.
    pub(super) async fn look(&self, kubelet: Option<CgroupRef>) {
        if let Some(cgroup) = kubelet {
            self.change(|plan| {
                let moved = plan.kubelet != cgroup;
                if moved {
                    tracing::info!(
                        path = cgroup.path,
                        id = cgroup.id,
                        "the kubelet's cgroup is another one now"
                    );
                    plan.kubelet = cgroup;
                }
                moved
            })
            .await;
        }
        let mut committed = self.committed.lock().await;
        if matches!(*committed, Standing::Retired) {
            return;
        }
        let Ok(seen) = self.kernel.run(Kernel::observe_host).await else { return };
        if seen.is_some() && seen == committed.shown() {
            return;
        }
        // A commit that failed before is no drift, and has been told.
        let drifted = committed.shown().is_some();
        if drifted {
            tracing::warn!("the host's table was changed; being put right");
        }
        self.commit(&mut committed).await;
        if drifted && committed.shown().is_some() {
            self.metrics.drift_repaired(DriftObject::HostTable);
        }
    }

    /// Takes the table away. Nothing is written by this one any more, whoever still asks. `false` when the host refuses;
    /// this is told once.
    pub(super) async fn retire(&self) -> bool {
        let mut committed = self.committed.lock().await;
        let again = matches!(std::mem::replace(&mut *committed, Standing::Retired), Standing::Retired);
        let removed = remove(&self.kernel, self.backend).await;
        if let (Err(error), false) = (&removed, again) {
            tracing::warn!(%error, "{STAYS}");
        }
        // Nothing is written any more, so nothing is refused.
        self.refused.store(false, Ordering::Relaxed);
        removed.is_ok()
    }

    /// Notes a change of the plan, and waits until a commit has included it. `change` says whether there is one.
    async fn change(&self, change: impl FnOnce(&mut HostPlan) -> bool) {
        let revision = {
            let mut wanted = self.wanted();
            if change(&mut wanted.plan) {
                wanted.revision += 1;
            } else if wanted.tried >= wanted.revision {
                return;
            }
            wanted.revision
        };
        let mut committed = self.committed.lock().await;
        if self.wanted().tried < revision {
            self.commit(&mut committed).await;
        }
    }

    /// Puts in force whatever is wanted by now.
    async fn commit(&self, committed: &mut Standing) {
        let before = match std::mem::replace(committed, Standing::Unknown) {
            Standing::Committed(before) => Some(before),
            Standing::Unknown => None,
            Standing::Retired => {
                *committed = Standing::Retired;
                return;
            }
        };
        let (plan, revision) = {
            let wanted = self.wanted();
            (wanted.plan.clone(), wanted.revision)
        };
        *committed = match write(&self.kernel, self.backend, plan, before).await {
            Ok(seen) => Standing::of(seen),
            Err(error) => {
                self.metrics.kernel_error(KernelStep::Host);
                // Tried again each second, and told once.
                if !self.refused.load(Ordering::Relaxed) {
                    tracing::error!(%error, "the host's table could not be written: probes of pods that join now are captured; tried again each second");
                }
                Standing::Unknown
            }
        };
        committed.remember(self.journal.as_ref());
        self.refused.store(committed.is_unknown(), Ordering::Relaxed);
        self.wanted().tried = revision;
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn of(committed: Option<Committed>) -> Self {
        committed.map_or(Self::Unknown, Self::Committed)
    }

    fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    fn shown(&self) -> Option<Fingerprint> {
        match self {
            Self::Committed(committed) => Some(committed.shown),
            Self::Unknown | Self::Retired => None,
        }
    }

    /// For the agent's next start.
    fn remember(&self, journal: Option<&Journal>) {
        if let (Some(journal), Some(shown)) = (journal, self.shown())
            && let Err(error) = journal.remember_host_table(shown)
        {
            tracing::warn!(%error, "the host's table will be built anew when the agent restarts");
        }
    }
}

/// What an attempt to take our tables away has come to.
enum Removal {
    /// There was none.
    Needless,
    /// None is left.
    Done,
    /// One is left.
    Partial,
}

/// Takes away whatever table of ours is in the host's namespace, by either backend: a former run's, or of a strategy that
/// is no longer in use.
///
/// # Errors
/// The host's refusal: [`STAYS`].
pub(super) async fn remove(kernel: &Pool, first: Backend) -> Result<(), KernelError> {
    let others = [Backend::Nftables, Backend::Iptables].into_iter().filter(|other| *other != first);
    let mut refused = Ok(());
    for backend in std::iter::once(first).chain(others) {
        let ops = host::lower(backend, HostStep::Remove);
        let removed = kernel.run(move |kernel| {
            // On most nodes there is nothing, and nothing is written on the host.
            if kernel.observe_host()?.is_none() {
                return Ok(Removal::Needless);
            }
            kernel.run_host(&ops)?;
            // The other backend's, perhaps, which this one cannot take away.
            Ok(if kernel.observe_host()?.is_none() { Removal::Done } else { Removal::Partial })
        });
        match removed.await {
            Ok(Removal::Needless) => return Ok(()),
            Ok(Removal::Done) => {
                tracing::info!(%backend, "the host's table, now needless, is removed");
                return Ok(());
            }
            Ok(Removal::Partial) => {}
            Err(error) => refused = Err(error),
        }
    }
    refused
}

/// Writes the table and reads it back. Where it is as we left it (`before`), it is amended, or else replaced; anything
/// else is cleaned up and built anew, which with iptables leaves a moment without the door. `None` when somebody changed
/// it again and again meanwhile, so that nobody can say what is there: the next look is to mend it.
async fn write(
    kernel: &Pool,
    backend: Backend,
    plan: HostPlan,
    before: Option<Committed>,
) -> Result<Option<Committed>, KernelError> {
    let written = move |kernel: &dyn Kernel| {
        if let Some(shown) = before.as_ref().and_then(|before| amend(kernel, backend, &plan, before)) {
            return Ok(Some(Committed { shown, plan: Some(plan) }));
        }
        let before = before.map(|before| before.shown);
        let ours = before.is_some() && kernel.observe_host()? == before;
        let mut step = if ours { HostStep::Replace(&plan) } else { HostStep::Install(&plan) };
        for _ in 0..WRITES {
            if let Some(shown) = kernel.write_host(&host::lower(backend, step))? {
                return Ok(Some(Committed { shown, plan: Some(plan) }));
            }
            tracing::info!("somebody changed rules while the host's table was written; it is written again");
            step = HostStep::Install(&plan);
        }
        Ok(None)
    };
    kernel.run(written).await
}

/// Changes what is different, where that is possible; `None` where the table is to be written whole.
fn amend(kernel: &dyn Kernel, backend: Backend, plan: &HostPlan, before: &Committed) -> Option<Fingerprint> {
    let ops = before.plan.as_ref()?.amended(backend, plan)?;
    kernel.amend_host(before.shown, &ops).unwrap_or_else(|error| {
        tracing::debug!(%error, "the host's table cannot be amended, and is written whole");
        None
    })
}
