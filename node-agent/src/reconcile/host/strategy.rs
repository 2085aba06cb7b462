//! One probe strategy, at work.

use super::cookies::Cookies;
use super::snat::Snat;
use crate::journal::Journal;
use crate::kernel::{KernelError, Pool};
use crate::metrics::Metrics;
use sluice_shared::admin::Choice;
use sluice_shared::host::HostPlan;
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, Flow, ProbeDoor};
use sluice_shared::selftest::Way;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A strategy, and why it was chosen.
pub struct Strategy {
    choice: Choice,
    kind: Kind,
}

enum Kind {
    /// Nothing passes.
    None,
    /// By the node's own addresses.
    Source,
    /// By the host's table.
    Snat(Box<Snat>),
    /// By a secret in the opening SYN.
    Cookie(Box<Cookies>),
}

impl Strategy {
    /// No probe passes.
    #[must_use]
    pub fn closed(because: &str) -> Self {
        Self { choice: Choice { chosen: "none".into(), because: because.into() }, kind: Kind::None }
    }

    /// Probes pass by the node's own addresses, to declared probe ports.
    #[must_use]
    pub fn source(because: &str) -> Self {
        Self { choice: Choice { chosen: "source".into(), because: because.into() }, kind: Kind::Source }
    }

    /// Probes pass by the source that the host's table gives to the kubelet's connections. The table is installed, with
    /// the pods that `plan` knows from before a restart, to see whether the host lets it.
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
        let because = format!("{because}; the kubelet is the cgroup /{}", plan.kubelet.path);
        let snat = Snat::start(kernel, backend, metrics, plan, journal).await?;
        Ok(Self { choice: Choice { chosen: "snat".into(), because }, kind: Kind::Snat(Box::new(snat)) })
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
        let cookies = Cookies::start(kernel, metrics, journal, kubelet, pods, because).await?;
        Ok(Self { choice: cookies.choice(), kind: Kind::Cookie(Box::new(cookies)) })
    }

    /// What was chosen, and why, and what is wrong with it now.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match &self.kind {
            Kind::Cookie(cookies) => cookies.choice(),
            _ => self.choice.clone(),
        }
    }

    /// Which way it is; `None` where nothing passes.
    #[must_use]
    pub fn way(&self) -> Option<Way> {
        match &self.kind {
            Kind::None => None,
            Kind::Source => Some(Way::Source),
            Kind::Snat(_) => Some(Way::Snat),
            Kind::Cookie(_) => Some(Way::Cookie),
        }
    }

    /// The door in a pod's own rules. `sources` are those of the node's own connections to the pod.
    pub(super) async fn door(
        &self,
        uid: &PodUid,
        sources: BTreeSet<IpAddr>,
        probe_ports: &[u16],
    ) -> ProbeDoor {
        match &self.kind {
            Kind::None => ProbeDoor::Closed,
            Kind::Snat(snat) => snat.door(),
            Kind::Source | Kind::Cookie(_) if probe_ports.is_empty() => ProbeDoor::Closed,
            Kind::Cookie(cookies) => cookies.door(uid, sources, probe_ports).await,
            Kind::Source => {
                ProbeDoor::Source { addresses: sources, ports: probe_ports.iter().copied().collect() }
            }
        }
    }

    /// Whether a door has a part of this strategy's.
    pub(super) fn is_in(&self, door: &ProbeDoor) -> bool {
        door.doors().any(|door| match &self.kind {
            Kind::None => false,
            Kind::Source => matches!(door, ProbeDoor::Source { .. }),
            Kind::Snat(_) => matches!(door, ProbeDoor::Snat { .. }),
            Kind::Cookie(_) => matches!(door, ProbeDoor::Cookie { .. }),
        })
    }

    /// The pod is captured, with this door in its rules: its probes go this way from now on. `false` when they do not yet.
    pub(super) async fn admit(&self, uid: &PodUid, ips: &[IpAddr], door: &ProbeDoor) -> bool {
        match &self.kind {
            Kind::None | Kind::Source => true,
            Kind::Snat(snat) => {
                snat.admit(uid, ips).await;
                !snat.is_refused()
            }
            Kind::Cookie(cookies) => cookies.admit(uid, ips, door).await,
        }
    }

    /// The pod is gone, or its probes go another way. `false` while the host still does to them what it did.
    pub(super) async fn dismiss(&self, uid: &PodUid) -> bool {
        match &self.kind {
            Kind::None | Kind::Source => true,
            Kind::Snat(snat) => {
                snat.dismiss(uid).await;
                !self.is_held()
            }
            Kind::Cookie(cookies) => {
                cookies.dismiss(uid).await;
                true
            }
        }
    }

    /// The pods that it knows.
    pub(super) async fn members(&self) -> BTreeSet<PodUid> {
        match &self.kind {
            Kind::None | Kind::Source => BTreeSet::new(),
            Kind::Snat(snat) => snat.members(),
            Kind::Cookie(cookies) => cookies.members().await,
        }
    }

    /// The pods whose door is another one from now on, though nothing has happened to them.
    pub(super) async fn turn(&self) -> Vec<PodUid> {
        match &self.kind {
            Kind::Cookie(cookies) => cookies.turn().await,
            _ => Vec::new(),
        }
    }

    /// Looks whether what is outside of pods is as it should be, and puts right what is not.
    pub(super) async fn look(&self, kubelet: Option<CgroupRef>) {
        match (&self.kind, kubelet) {
            (Kind::Snat(snat), kubelet) => snat.look(kubelet).await,
            (Kind::Cookie(cookies), Some(kubelet)) => cookies.look(kubelet).await,
            _ => {}
        }
    }

    /// The sources that the host's table gives, where that is the way.
    pub(super) fn snat_sources(&self) -> Option<(Ipv4Addr, Ipv6Addr)> {
        match &self.kind {
            Kind::Snat(snat) => snat.door().snat(),
            _ => None,
        }
    }

    /// Lets the agent's own connections go this way, where the host has a part in that.
    pub(super) async fn set_trials(&self, flows: BTreeSet<Flow>) {
        if let Kind::Snat(snat) = &self.kind {
            snat.set_trials(flows).await;
        }
    }

    /// Whether host or kernel refuse now what this needs outside of pods.
    pub(crate) fn is_refused(&self) -> bool {
        match &self.kind {
            Kind::Snat(snat) => snat.is_refused(),
            Kind::Cookie(cookies) => cookies.is_refused(),
            Kind::None | Kind::Source => false,
        }
    }

    /// Whether the host refuses to let go of pods: what it does to their probes goes on.
    pub(super) fn is_held(&self) -> bool {
        matches!(&self.kind, Kind::Snat(snat) if snat.is_refused())
    }

    /// Takes away all that is outside of pods. What is in pods goes with their next plan. `false` when the host does not let
    /// it go: ask again.
    pub(crate) async fn retire(&self) -> bool {
        match &self.kind {
            Kind::None | Kind::Source => true,
            Kind::Snat(snat) => snat.retire().await,
            Kind::Cookie(cookies) => {
                cookies.retire().await;
                true
            }
        }
    }
}
