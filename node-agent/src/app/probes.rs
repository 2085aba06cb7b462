//! Which probe strategies can be had on this node, and with which one the agent starts: by what host and kernel take. Whether
//! probes pass is then the self-test's to say.

use super::choices::{Kubelet, sample};
use crate::config::{Config, ProbesChoice};
use crate::journal::Journal;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::{Kernel, KernelError, Pool};
use crate::metrics::Metrics;
use crate::reconcile::{HostTable, Strategy};
use anyhow::Context as _;
use sluice_shared::admin::Choice;
use sluice_shared::host::HostPlan;
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{ProbeDoor, RedirectPlan};
use sluice_shared::selftest::{Verdict, Way};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const CHOSEN: &str = "chosen by the configuration";

/// The pods that a strategy is to know from the start.
type Pods = BTreeMap<PodUid, Vec<IpAddr>>;

/// What a probe strategy is made of.
#[derive(Clone)]
pub(super) struct Strategies {
    pub(super) config: Config,
    pub(super) kernel: Arc<LinuxKernel>,
    pub(super) backend: Backend,
    pub(super) pool: Arc<Pool>,
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
}

impl Strategies {
    /// The probe strategy to start with. `pods` are in the host's table from the start, where there is one. A former run's
    /// table goes where there is none.
    ///
    /// # Errors
    /// When the one that the configuration insists on does not work.
    pub(super) async fn first(&self, pods: Pods) -> anyhow::Result<HostTable> {
        let chosen = match self.config.probes {
            ProbesChoice::None => Strategy::closed(CHOSEN),
            ProbesChoice::Source => Strategy::source(CHOSEN),
            ProbesChoice::Snat => self
                .start(Way::Snat, pods, CHOSEN)
                .await
                .context("probes: snat does not work on this node; auto would take another strategy")?,
            ProbesChoice::Auto => self.automatic(pods, "").await,
            ProbesChoice::Cookie => match self.start(Way::Cookie, pods.clone(), CHOSEN).await {
                Ok(chosen) => chosen,
                Err(error) => self.automatic(pods, &format!("cookie does not work here: {error:#}; ")).await,
            },
        };
        let Choice { chosen: strategy, because } = chosen.choice();
        tracing::info!(strategy, because, "probe strategy chosen");
        let table = HostTable::new(Arc::clone(&self.pool), self.backend, self.metrics.clone(), chosen);
        if strategy != Way::Snat.as_str() {
            table.remove().await;
        }
        Ok(table)
    }

    /// What a self-test has chosen in this boot, if it can be had; else what the host takes.
    async fn automatic(&self, pods: Pods, before: &str) -> Strategy {
        let tested = self.journal.probes().filter(|it| it.by_test && it.verdict == Verdict::Works.as_str());
        let tested = tested.and_then(|tested| Way::named(&tested.chosen));
        if let Some(way) = tested.filter(|_| before.is_empty()) {
            match self.start(way, pods.clone(), "chosen by a self-test before the agent's start").await {
                Ok(strategy) => return strategy,
                Err(error) => tracing::info!(%way, %error, "what a self-test chose cannot be had any more"),
            }
        }
        let because = format!("{before}the host takes the rules that it needs");
        let taken = self.start(Way::Snat, pods, &because).await;
        taken.unwrap_or_else(|error| Strategy::source(&format!("{before}snat does not work here: {error:#}")))
    }

    /// What may be tried, best first: all, or what the configuration insists on.
    pub(super) fn candidates(&self, now: Option<Way>) -> Vec<Way> {
        match (self.config.probes, now) {
            (ProbesChoice::Auto, Some(_)) => Way::ALL.to_vec(),
            // It could not be had: as with auto.
            (ProbesChoice::Cookie, Some(way)) if way != Way::Cookie => Way::ALL.to_vec(),
            (_, now) => now.into_iter().collect(),
        }
    }

    /// Starts a strategy. It says nothing of pods' rules, and knows only `pods`.
    ///
    /// # Errors
    /// When host or kernel refuse what it takes.
    pub(super) async fn start(&self, way: Way, pods: Pods, because: &str) -> anyhow::Result<Strategy> {
        match way {
            Way::Cookie => self.cookie(pods, because).await,
            Way::Snat => self.snat(pods, because).await,
            Way::Source => Ok(Strategy::source(because)),
        }
    }

    async fn cookie(&self, pods: Pods, because: &str) -> anyhow::Result<Strategy> {
        let Self { config, backend, pool, metrics, journal, .. } = self;
        anyhow::ensure!(*backend == Backend::Nftables, "{backend} cannot compare a TCP option");
        let cookies = BTreeSet::from([pool.run(Kernel::new_cookie).await?]);
        let addresses = BTreeSet::from([config.probe_source_v4.into(), config.probe_source_v6.into()]);
        let probe = ProbeDoor::Cookie { cookies, addresses, ports: BTreeSet::from([80]) };
        let plan = RedirectPlan { probe, ..sample(config) };
        let backend = *backend;
        self.tried(move |kernel| kernel.takes(backend, &plan)).await.context("the rule is refused")?;
        let kubelet = Kubelet::new(config).find(pool).await?;
        let journal = Some(journal.clone());
        let started =
            Strategy::cookie(Arc::clone(pool), metrics.clone(), journal, kubelet, pods, because).await;
        started.context("the kernel refuses the program")
    }

    async fn snat(&self, pods: Pods, because: &str) -> anyhow::Result<Strategy> {
        let Self { config, backend, pool, metrics, journal, .. } = self;
        let backend = *backend;
        let told_apart = self.tried(move |kernel| kernel.cgroups_are_told_apart(backend)).await;
        told_apart.context("rules by cgroup do not work on this node")?;
        let kubelet = Kubelet::new(config).find(pool).await?;
        let (source_v4, source_v6) = (config.probe_source_v4, config.probe_source_v6);
        let plan = HostPlan { kubelet, source_v4, source_v6, pods, trials: BTreeSet::new() };
        let journal = Some(journal.clone());
        let started =
            Strategy::snat(Arc::clone(pool), backend, metrics.clone(), plan, journal, because).await;
        started.context("the host refuses the rules")
    }

    /// What is tried in a namespace made for it takes a while, and may start a program: not on a thread that answers others.
    async fn tried<T: Send + 'static>(
        &self,
        what: impl FnOnce(&LinuxKernel) -> Result<T, KernelError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let kernel = Arc::clone(&self.kernel);
        Ok(tokio::task::spawn_blocking(move || what(&kernel)).await??)
    }
}
