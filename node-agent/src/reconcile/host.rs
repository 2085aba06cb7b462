//! How the kubelet's probes get into captured pods on this node, and the host's table where that needs one.
//!
//! A strategy is chosen once, by trying; a host that refuses rules (EPERM) is an answer, not an error.

use crate::kernel::{Fingerprint, KernelError, Pool};
use crate::metrics::{DriftObject, KernelStep, Metrics};
use sluice_shared::admin::Choice;
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, ProbeDoor};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Mutex;

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
    Snat(Box<Mutex<Snat>>),
}

struct Snat {
    plan: HostPlan,
    /// What the kernel showed after the last commit; `None` when that failed.
    committed: Option<Fingerprint>,
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

    /// Probes pass by the source that the host's table gives to the kubelet's connections. The table is installed,
    /// empty of pods, to see whether the host lets it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn snat(
        kernel: Arc<Pool>,
        backend: Backend,
        metrics: Metrics,
        plan: HostPlan,
        because: &str,
    ) -> Result<Self, KernelError> {
        let committed = install(&kernel, backend, &plan).await?;
        let because = format!("{because}; the kubelet is the cgroup /{}", plan.kubelet.path);
        let choice = Choice { chosen: "snat".into(), because };
        let strategy = Strategy::Snat(Box::new(Mutex::new(Snat { plan, committed })));
        Ok(Self { kernel, backend, metrics, choice, strategy })
    }

    /// What was chosen, and why.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The door in a pod's own rules.
    pub async fn door(&self, ips: &[IpAddr], probe_ports: &[u16]) -> ProbeDoor {
        match &self.strategy {
            Strategy::None => ProbeDoor::Closed,
            Strategy::Snat(snat) => {
                let snat = snat.lock().await;
                ProbeDoor::Snat { v4: snat.plan.source_v4, v6: snat.plan.source_v6 }
            }
            Strategy::Source if probe_ports.is_empty() => ProbeDoor::Closed,
            Strategy::Source => {
                let ips = ips.to_vec();
                let sources = self.kernel.run(move |kernel| {
                    Ok(ips.iter().filter_map(|ip| kernel.host_source_for(*ip).ok()).collect::<BTreeSet<_>>())
                });
                let addresses = sources.await.unwrap_or_default();
                ProbeDoor::Source { addresses, ports: probe_ports.iter().copied().collect() }
            }
        }
    }

    /// The pod is captured: its probes pass from now on.
    pub async fn admit(&self, uid: &PodUid, ips: &[IpAddr]) {
        let Strategy::Snat(snat) = &self.strategy else { return };
        let mut snat = snat.lock().await;
        if snat.plan.pods.get(uid).is_some_and(|known| known == ips) && snat.committed.is_some() {
            return;
        }
        // An address has one owner: the pod that has it now.
        for others in snat.plan.pods.values_mut() {
            others.retain(|ip| !ips.contains(ip));
        }
        snat.plan.pods.insert(uid.clone(), ips.to_vec());
        self.commit(&mut snat).await;
    }

    /// The pod is gone, or no longer captured.
    pub async fn dismiss(&self, uid: &PodUid) {
        let Strategy::Snat(snat) = &self.strategy else { return };
        let mut snat = snat.lock().await;
        if snat.plan.pods.remove(uid).is_some() {
            self.commit(&mut snat).await;
        }
    }

    /// Looks whether the table is as committed, and whether `kubelet` is still the kubelet's cgroup: a kubelet that
    /// restarts may get a new one, which the old rule does not match. Puts right what is not.
    pub async fn look(&self, kubelet: Option<CgroupRef>) {
        let Strategy::Snat(snat) = &self.strategy else { return };
        let mut snat = snat.lock().await;
        let moved = kubelet.filter(|cgroup| *cgroup != snat.plan.kubelet);
        if let Some(cgroup) = moved {
            tracing::info!(path = cgroup.path, id = cgroup.id, "the kubelet's cgroup is another one now");
            snat.plan.kubelet = cgroup;
            self.commit(&mut snat).await;
            return;
        }
        let seen = self.kernel.run(crate::kernel::Kernel::observe_host).await;
        if let Ok(seen) = seen
            && (seen.is_none() || seen != snat.committed)
        {
            tracing::warn!("the host's table was changed; being put right");
            self.commit(&mut snat).await;
            self.metrics.drift_repaired(DriftObject::HostTable);
        }
    }

    /// Takes the host's table away (the strategy is no longer in use, or the product leaves).
    pub async fn remove(&self) {
        if let Strategy::Snat(_) = &self.strategy {
            let ops = host::lower(self.backend, HostStep::Remove);
            if let Err(error) = self.kernel.run(move |kernel| kernel.run_host(&ops)).await {
                tracing::warn!(%error, "the host's table could not be removed");
            }
        }
    }

    async fn commit(&self, snat: &mut Snat) {
        match install(&self.kernel, self.backend, &snat.plan).await {
            Ok(committed) => snat.committed = committed,
            Err(error) => {
                self.metrics.kernel_error(KernelStep::Host);
                tracing::error!(%error, "the host's table could not be written: kubelet probes of new pods are captured");
                snat.committed = None;
            }
        }
    }
}

async fn install(
    kernel: &Pool,
    backend: Backend,
    plan: &HostPlan,
) -> Result<Option<Fingerprint>, KernelError> {
    let ops = host::lower(backend, HostStep::Install(plan));
    kernel
        .run(move |kernel| {
            kernel.run_host(&ops)?;
            kernel.observe_host()
        })
        .await
}
