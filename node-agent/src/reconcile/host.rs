//! How the kubelet's probes get into captured pods on this node, and the host's table where that needs one. The strategy
//! `cookie` is in `cookies`.
//!
//! A strategy is chosen once, by trying; a host that refuses rules (EPERM) is an answer, not an error.
//!
//! Pods come and go at once, and a commit writes and reads back the whole table. So what the table should say is noted
//! first, and one commit at a time puts in force whatever has been noted until then: the others find theirs done.

mod cookies;

use crate::journal::Journal;
use crate::kernel::{Fingerprint, Kernel, KernelError, Pool};
use crate::metrics::{DriftObject, KernelStep, Metrics};
use cookies::Cookies;
use sluice_shared::admin::Choice;
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, ProbeDoor};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::Mutex;

/// How often the table is written at once when others change rules meanwhile.
const WRITES: usize = 3;

/// The node's probe strategy, at work.
pub struct HostTable {
    kernel: Arc<Pool>,
    backend: Backend,
    metrics: Metrics,
    choice: Choice,
    strategy: Strategy,
}

enum Strategy {
    /// Nothing passes.
    None,
    /// By the node's own addresses.
    Source,
    /// By the host's table.
    Snat(Box<Snat>),
    /// By a secret in the opening SYN.
    Cookie(Box<Cookies>),
}

struct Snat {
    source_v4: Ipv4Addr,
    source_v6: Ipv6Addr,
    wanted: std::sync::Mutex<Wanted>,
    /// The last commit; `None` when that failed. Locked by whoever commits.
    committed: Mutex<Option<Committed>>,
    /// Where it is remembered for the agent's next start.
    journal: Option<Journal>,
}

/// What is in force.
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

impl HostTable {
    /// No probe passes.
    #[must_use]
    pub fn closed(kernel: Arc<Pool>, backend: Backend, metrics: Metrics, because: &str) -> Self {
        let choice = Choice { chosen: "none".into(), because: because.into() };
        Self { kernel, backend, metrics, choice, strategy: Strategy::None }
    }

    /// Probes pass by the node's own addresses, to declared probe ports.
    #[must_use]
    pub fn source(kernel: Arc<Pool>, backend: Backend, metrics: Metrics, because: &str) -> Self {
        let choice = Choice { chosen: "source".into(), because: because.into() };
        Self { kernel, backend, metrics, choice, strategy: Strategy::Source }
    }

    /// Probes pass by the source that the host's table gives to the kubelet's connections. The table is installed, with
    /// the pods that `plan` knows from before a restart, to see whether the host lets it. A table that is as the journal
    /// remembers it is replaced, with no moment without the door.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn snat(
        kernel: Arc<Pool>,
        backend: Backend,
        metrics: Metrics,
        plan: HostPlan,
        journal: Option<Journal>,
        because: &str,
    ) -> Result<Self, KernelError> {
        let former = journal.as_ref().and_then(Journal::host_table);
        let former = former.map(|shown| Committed { shown, plan: None });
        let committed = write(&kernel, backend, plan.clone(), former).await?;
        remember(journal.as_ref(), committed.as_ref());
        let because = format!("{because}; the kubelet is the cgroup /{}", plan.kubelet.path);
        let choice = Choice { chosen: "snat".into(), because };
        let snat = Snat {
            source_v4: plan.source_v4,
            source_v6: plan.source_v6,
            wanted: std::sync::Mutex::new(Wanted { plan, revision: 0, tried: 0 }),
            committed: Mutex::new(committed),
            journal,
        };
        Ok(Self { kernel, backend, metrics, choice, strategy: Strategy::Snat(Box::new(snat)) })
    }

    /// Probes pass by a cookie in their opening SYN, which a program on the kubelet's cgroup writes. `pods` are those of a
    /// former run that are still captured: their cookies stay in force.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn cookie(
        kernel: Arc<Pool>,
        metrics: Metrics,
        journal: Option<Journal>,
        kubelet: CgroupRef,
        pods: BTreeMap<PodUid, Vec<IpAddr>>,
        because: &str,
    ) -> Result<Self, KernelError> {
        let pool = Arc::clone(&kernel);
        let cookies = Cookies::start(pool, metrics.clone(), journal, kubelet, pods, because).await?;
        let (choice, strategy) = (cookies.choice(), Strategy::Cookie(Box::new(cookies)));
        // iptables has no way to compare one.
        Ok(Self { kernel, backend: Backend::Nftables, metrics, choice, strategy })
    }

    /// What was chosen, and why, and what is wrong with it now.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match &self.strategy {
            Strategy::Cookie(cookies) => cookies.choice(),
            _ => self.choice.clone(),
        }
    }

    /// The door in a pod's own rules.
    pub async fn door(&self, uid: &PodUid, ips: &[IpAddr], probe_ports: &[u16]) -> ProbeDoor {
        match &self.strategy {
            Strategy::None => ProbeDoor::Closed,
            Strategy::Snat(snat) => ProbeDoor::Snat { v4: snat.source_v4, v6: snat.source_v6 },
            Strategy::Source | Strategy::Cookie(_) if probe_ports.is_empty() => ProbeDoor::Closed,
            Strategy::Cookie(cookies) => cookies.door(uid, self.sources(ips).await, probe_ports).await,
            Strategy::Source => {
                let (addresses, ports) = (self.sources(ips).await, probe_ports.iter().copied().collect());
                ProbeDoor::Source { addresses, ports }
            }
        }
    }

    /// Where the node's own connections to a pod come from.
    async fn sources(&self, ips: &[IpAddr]) -> BTreeSet<IpAddr> {
        let ips = ips.to_vec();
        let sources = self
            .kernel
            .run(move |kernel| Ok(ips.iter().filter_map(|ip| kernel.host_source_for(*ip).ok()).collect()));
        sources.await.unwrap_or_default()
    }

    /// The pod is captured, with this door in its rules: its probes pass from now on.
    pub async fn admit(&self, uid: &PodUid, ips: &[IpAddr], door: &ProbeDoor) {
        if let Strategy::Cookie(cookies) = &self.strategy {
            return cookies.admit(uid, ips, door).await;
        }
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

    /// The pod is gone, or no longer captured.
    pub async fn dismiss(&self, uid: &PodUid) {
        if let Strategy::Cookie(cookies) = &self.strategy {
            return cookies.dismiss(uid).await;
        }
        self.change(|plan| plan.pods.remove(uid).is_some()).await;
    }

    /// The pods whose door is another one from now on, though nothing has happened to them.
    pub async fn turn(&self) -> Vec<PodUid> {
        match &self.strategy {
            Strategy::Cookie(cookies) => cookies.turn().await,
            _ => Vec::new(),
        }
    }

    /// Looks whether the table is as committed, and whether `kubelet` is still the kubelet's cgroup: a kubelet that
    /// restarts may get a new one, which the old rule does not match. Puts right what is not.
    pub async fn look(&self, kubelet: Option<CgroupRef>) {
        if let (Strategy::Cookie(cookies), Some(kubelet)) = (&self.strategy, &kubelet) {
            return cookies.look(kubelet.clone()).await;
        }
        let Strategy::Snat(snat) = &self.strategy else { return };
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
        let mut committed = snat.committed.lock().await;
        let Ok(seen) = self.kernel.run(crate::kernel::Kernel::observe_host).await else { return };
        if seen.is_some() && seen == committed.as_ref().map(|committed| committed.shown) {
            return;
        }
        // A commit that failed before is no drift, and has been told.
        let drifted = committed.is_some();
        if drifted {
            tracing::warn!("the host's table was changed; being put right");
        }
        self.commit(snat, &mut committed).await;
        if drifted && committed.is_some() {
            self.metrics.drift_repaired(DriftObject::HostTable);
        }
    }

    /// Takes away whatever table of ours is in the host's namespace, by either backend: a former run's, whose strategy
    /// is no longer in use. A host that refuses is told of, and no error.
    pub async fn remove(&self) {
        let others =
            [Backend::Nftables, Backend::Iptables].into_iter().filter(|other| *other != self.backend);
        for backend in std::iter::once(self.backend).chain(others) {
            let ops = host::lower(backend, HostStep::Remove);
            let removed = self.kernel.run(move |kernel| {
                // On most nodes there is nothing, and nothing is written on the host.
                let there = kernel.observe_host()?.is_some();
                if there { kernel.run_host(&ops).map(|()| true) } else { Ok(false) }
            });
            match removed.await {
                Ok(true) => tracing::info!(%backend, "a former run's table on the host is removed"),
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, %backend,
                    "a former run's table on the host could not be removed: it goes on giving the kubelet's connections \
                     to pods that were captured then another source address"),
            }
        }
    }

    /// Notes a change of the plan, and waits until a commit has included it. `change` says whether there is one.
    async fn change(&self, change: impl FnOnce(&mut HostPlan) -> bool) {
        let Strategy::Snat(snat) = &self.strategy else { return };
        let revision = {
            let mut wanted = snat.wanted();
            if change(&mut wanted.plan) {
                wanted.revision += 1;
            } else if wanted.tried >= wanted.revision {
                return;
            }
            wanted.revision
        };
        let mut committed = snat.committed.lock().await;
        if snat.wanted().tried < revision {
            self.commit(snat, &mut committed).await;
        }
    }

    /// Puts in force whatever is wanted by now.
    async fn commit(&self, snat: &Snat, committed: &mut Option<Committed>) {
        let (plan, revision) = {
            let wanted = snat.wanted();
            (wanted.plan.clone(), wanted.revision)
        };
        *committed = match write(&self.kernel, self.backend, plan, committed.take()).await {
            Ok(seen) => seen,
            Err(error) => {
                self.metrics.kernel_error(KernelStep::Host);
                tracing::error!(%error, "the host's table could not be written: kubelet probes of new pods are captured; tried again within a second");
                None
            }
        };
        remember(snat.journal.as_ref(), committed.as_ref());
        snat.wanted().tried = revision;
    }
}

impl Snat {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the agent's next start.
fn remember(journal: Option<&Journal>, committed: Option<&Committed>) {
    if let (Some(journal), Some(committed)) = (journal, committed)
        && let Err(error) = journal.remember_host_table(committed.shown)
    {
        tracing::warn!(%error, "the host's table will be built anew when the agent restarts");
    }
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

#[cfg(test)]
mod tests;
