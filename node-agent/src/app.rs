//! The composition root: the one place that names the Linux kernel, and where every part is made and joined.

use crate::admin;
use crate::config::{BackendChoice, Config, ExistingConnections, KubeletCgroup, MarkGuardChoice, ProbesChoice, Source};
use crate::health::{self, Health};
use crate::journal::Journal;
use crate::kernel::linux::{CgroupTree, LinuxKernel, LinuxWatch, probe_backends};
use crate::kernel::{Hint, Kernel, Pool};
use crate::metrics::Metrics;
use crate::reconcile::{
    Context, HostTable, Members, Message, Namespaces, NodeView, Reconciler, Settings, Trust, ZtunnelHooks, keep_hold,
};
use crate::source::cni::CniSource;
use crate::source::file::FileSource;
use crate::workloads::Registry;
use crate::zds;
use anyhow::Context as _;
use sluice_shared::admin::{Choice, State};
use sluice_shared::host::HostPlan;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, Hold};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How often every captured pod is looked at, whether or not a change was heard.
const SWEEP: Duration = Duration::from_secs(1);
/// How many events may wait for the reconciler; sources then wait, and with them the plugin's callers.
const EVENTS: usize = 1024;

/// Serves until SIGTERM or SIGINT. Rules, host table and ztunnel's proxies stay: whoever comes next takes over.
///
/// # Errors
/// When a part cannot be made: the agent must not seem to serve.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let metrics = Metrics::new();
    let kernel: Arc<dyn Kernel> = Arc::new(
        LinuxKernel::new(&config.host_netns)
            .with_context(|| format!("hostNetns {}", config.host_netns.display()))?,
    );
    let pool = Arc::new(Pool::new(kernel, Some(config.kernel_threads.get())).context("starting kernel threads")?);
    let (backend, backend_choice) = choose_backend(&config)?;
    metrics.set_backend(backend);

    let registry = Arc::new(Registry::default());
    let journal = Journal::open(&config.run_dir).with_context(|| format!("runDir {}", config.run_dir.display()))?;
    let members = Members::open(&config.state_dir, config.when_agent_unavailable)
        .with_context(|| format!("stateDir {}", config.state_dir.display()))?;
    let tree = CgroupTree::find();
    let trust = Arc::new(choose_trust(&config, &journal));
    let host = choose_probes(&config, backend, &pool, &metrics, tree.as_ref().ok()).await?;

    let (recalled, when_recalled) = watch::channel(false);
    let hooks = Arc::new(ZtunnelHooks::new(Arc::clone(&registry), Arc::clone(&trust), when_recalled));
    let (ztunnel, zds_server) =
        zds::Server::start(zds::Config::new(&config.zds_socket), hooks).context("zdsSocket")?;
    let (hold, hold_now) = watch::channel(Hold::Drop);
    tokio::spawn(keep_hold(ztunnel.any_ready(), config.hold_timeout, hold, Arc::clone(&registry)));
    let (watching, hints, drift_choice) = start_watch();

    let cx = Arc::new(Context {
        settings: settings(&config, backend),
        kernel: pool,
        ztunnel,
        registry,
        journal,
        members,
        host,
        trust,
        hold: hold_now,
        watch: watching,
        synced: watch::Sender::new(false),
        metrics: metrics.clone(),
        namespaces: Namespaces::default(),
    });
    tokio::spawn(hear(Arc::clone(&cx), hints));
    tokio::spawn(sweep(Arc::clone(&cx), kubelet_cgroup(&config)));

    let (events, inbox) = mpsc::channel(EVENTS);
    let Source::File(pods_file) = &config.source;
    let (file, problem) = FileSource::new(pods_file.clone(), metrics.clone());
    let source = format!("file {}", pods_file.display());
    let view = NodeView::new(Arc::clone(&cx), config.node_name.clone(), source, problem, backend_choice, drift_choice);
    let admin = admin::Server::bind(&config.admin_socket, Arc::new(view)).context("adminSocket")?;
    let cni = CniSource::bind(&config.agent_socket, metrics.clone()).context("agentSocket")?;
    let health = Health::new(metrics.clone());
    if let Some(address) = config.metrics_address {
        let server = health::Server::bind(address, health.clone()).await.context("metricsAddress")?;
        tokio::spawn(server.run());
    }
    tokio::spawn(admin.run());
    tokio::spawn(file.run(events.clone()));
    tokio::spawn(Reconciler::new(Arc::clone(&cx)).run(inbox, recalled));
    tokio::spawn(announce(Arc::clone(&cx), health, metrics, started));
    let cni = tokio::spawn(cni.run(events));

    wait_for_signal().await?;
    tracing::info!("stopping; captured pods stay captured");
    cni.abort();
    zds_server.close().await;
    Ok(())
}

fn settings(config: &Config, backend: Backend) -> Settings {
    Settings {
        policy: config.enroll_policy(),
        redirect: config.redirect_config(),
        backend,
        keep_existing: config.existing_connections == ExistingConnections::Keep,
        drain_timeout: config.drain_timeout,
        add_timeout: config.add_timeout,
    }
}
