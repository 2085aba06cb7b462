//! The composition root: the one place that names the Linux kernel, and where every part is made and joined.

mod choices;
mod installation;
mod probes;
mod selftest;
mod sources;

use crate::admin;
use crate::adopt::Finder;
use crate::config::{Config, ExistingConnections};
use crate::health::{self, Health};
use crate::installed;
use crate::journal::Journal;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::{Hint, HostProc, Kernel, Pool};
use crate::metrics::Metrics;
use crate::predecessor::{Lookout, Predecessor};
use crate::reconcile::{
    Context, Members, Message, Namespaces, NodeView, Reconciler, Settings, Succession, ZtunnelHooks,
    keep_hold,
};
use crate::seqpacket::Spot;
use crate::source::cni::CniSource;
use crate::vitals::Vitals;
use crate::workloads::Registry;
use crate::zds;
use anyhow::{Context as _, bail};
use installation::{Installation, Parts};
use probes::Strategies;
use selftest::SelfTest;
use sluice_shared::admin::{Choice, State};
use sluice_shared::lower::Backend;
use sluice_shared::plan::Hold;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// How often every captured pod is looked at, whether or not a change was heard.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a stopping agent waits for its last word on who is in the mesh to be written.
const LAST_WRITE_WITHIN: Duration = Duration::from_secs(2);
/// How many events may wait for the reconciler; sources then wait, and with them the plugin's callers.
const EVENTS: usize = 1024;

/// Serves until SIGTERM or SIGINT. Rules, host table and ztunnel's proxies stay: whoever comes next takes over.
///
/// # Errors
/// When a part cannot be made, or dies: the agent must not seem to serve.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let started = Instant::now();
    // From the beginning: the first process of a container does not hear of a signal that nobody waits for.
    let mut signals = Signals::listen()?;
    let vitals = Vitals::listen();
    let metrics = Metrics::new();
    let host_proc = HostProc::at(&config.host_proc);
    let kernel = Arc::new(
        LinuxKernel::new(&config.host_netns)
            .with_context(|| format!("hostNetns {}", config.host_netns.display()))?
            .with_host_proc(host_proc.clone()),
    );
    let (backend, backend_choice) = choices::backend(config, &kernel)?;
    metrics.set_backend(backend);
    let pool = Arc::new(
        Pool::new(Arc::clone(&kernel) as Arc<dyn Kernel>, Some(config.kernel_threads.get()))
            .context("starting the kernel threads")?,
    );
    let journal =
        Journal::open(&config.run_dir).with_context(|| format!("runDir {}", config.run_dir.display()))?;
    let members = Members::open(&config.state_dir, config.when_agent_unavailable)
        .with_context(|| format!("stateDir {}", config.state_dir.display()))?;
    let source = sources::choose(config, &metrics).await?;
    let registry = Arc::new(Registry::default());
    let trust = Arc::new(choices::trust(config, &kernel, backend, &pool, &journal));
    let remembered = journal.pods().unwrap_or_default();
    let captured = choices::captured_before(&pool, remembered).await;
    let strategies = Strategies {
        config: config.clone(),
        kernel: Arc::clone(&kernel),
        backend,
        pool: Arc::clone(&pool),
        metrics: metrics.clone(),
        journal: journal.clone(),
    };
    let host = strategies.first(captured).await?;

    let (recalled, when_recalled) = watch::channel(false);
    let when_all_recalled = when_recalled.clone();
    let when_rules_are_todays = when_recalled.clone();
    let hooks =
        ZtunnelHooks::new(Arc::clone(&registry), Arc::clone(&trust), when_recalled, host_proc.clone());
    let zds_config = zds::Config { host_proc, ..zds::Config::new(&config.zds_socket) };
    let lookout = Lookout::new(&config.host_proc, &config.run_dir);
    let (predecessor, predecessor_now) = watch::channel(lookout.first().await);
    let has_it = |now: &Predecessor| matches!(now, Predecessor::Lives | Predecessor::Away);
    let lives = has_it(&predecessor_now.borrow());
    let (ztunnel, zds_server) = if lives {
        tracing::warn!(
            "istio-cni runs on this node: its pods, ztunnel's socket and the host's rules are left to it until its \
             DaemonSet is removed"
        );
        let mut predecessor = predecessor_now.clone();
        let gone = async move { _ = predecessor.wait_for(|now| !has_it(now)).await };
        zds::Server::start_after(zds_config, Arc::new(hooks), gone)
    } else {
        zds::Server::start(zds_config, Arc::new(hooks)).context("zdsSocket")?
    };
    tokio::spawn(lookout.watch(predecessor));
    let (hold, hold_now) = watch::channel(Hold::Drop);
    let holding = keep_hold(ztunnel.any_ready(), config.hold_timeout, hold, Arc::clone(&registry));
    vitals.keep("the watch over held connections", holding);
    let (following, hints, drift_choice) = choices::drift_watch(&kernel);

    let finder = Finder::new(choices::adoption(config), Arc::clone(&pool));
    let cx = Arc::new(Context {
        settings: settings(config, backend),
        kernel: pool,
        ztunnel,
        registry,
        finder,
        journal,
        members,
        host,
        trust,
        hold: hold_now,
        watch: following,
        synced: watch::Sender::new(false),
        status: source.status,
        metrics: metrics.clone(),
        namespaces: Namespaces::default(),
        lookup: source.lookup,
        succession: Arc::new(Succession::new(predecessor_now)),
    });
    let health = Health::new(metrics.clone());
    let (installation, standing) = Installation::start(Parts {
        config,
        client: source.client,
        status: cx.status.clone(),
        metrics: metrics.clone(),
        health: &health,
        synced: cx.synced.subscribe(),
    })?;
    tokio::spawn(Succession::announce(Arc::clone(&cx)));
    tokio::spawn(Succession::clear_host(Arc::clone(&cx), when_all_recalled));
    let selftest = SelfTest::new(Arc::clone(&cx), strategies, config.own.pod.clone());
    vitals.keep("the probe self-test", selftest.run(when_rules_are_todays));
    let (drift_watch, drift_watch_now) = watch::channel(drift_choice);
    if let Some(hints) = hints {
        tokio::spawn(hear(Arc::clone(&cx), hints, drift_watch));
    }
    vitals.keep("the sweep", sweep(Arc::clone(&cx), choices::Kubelet::new(config)));

    let (events, inbox) = mpsc::channel(EVENTS);
    let view = NodeView::new(
        Arc::clone(&cx),
        config.node_name.clone(),
        source.from,
        source.problem,
        backend_choice,
        drift_watch_now,
        standing,
    );
    let admin = admin::Server::bind(&config.admin_socket, Arc::new(view)).context("adminSocket")?;
    let cni = CniSource::bind(&config.agent_socket, metrics.clone()).context("agentSocket")?;
    if let Some(address) = config.metrics_address {
        let server = health::Server::bind(address, health.clone()).await.context("metricsAddress")?;
        vitals.keep("the metrics server", server.run());
    }
    vitals.keep("the admin socket", admin.run());
    vitals.keep("the source", source.what.run(events.clone()));
    let reconciling = vitals.keep("the reconciler", Reconciler::new(Arc::clone(&cx)).run(inbox, recalled));
    let sockets = (cni.spot(), zds_server.spot());
    let reporting = vitals.keep(
        "the report",
        report(Arc::clone(&cx), health.clone(), sockets, config.run_dir.clone(), started),
    );
    let serving = vitals.keep("the plugin's socket", cni.run(events));

    tokio::select! {
        () = signals.wait() => {}
        why = vitals.failed() => {
            health.not_ready(format!("a part of the agent has died: {why}"));
            bail!("{why}; the agent ends, so that a whole one takes its place (captured pods stay captured): a defect, please report it");
        }
    }
    tracing::info!("stopping; captured pods stay captured");
    let installation = installation.end();
    reporting.abort();
    health.not_ready("the agent is stopping");
    // With nobody to take events the plugin's socket closes, and callers that wait are told to come back.
    reconciling.abort();
    if let Err(error) = serving.await {
        tracing::warn!(%error, "the plugin's socket ended badly");
    }
    zds_server.close().await;
    if !cx.status.flush(LAST_WRITE_WITHIN).await {
        tracing::warn!("not every pod's annotation is what it should be; the next agent mends that");
    }
    // What the plugin goes by from now on. Before the source has said everything there is nothing to wait for.
    if *cx.synced.borrow()
        && let Ok(Err(error)) = tokio::time::timeout(LAST_WRITE_WITHIN, cx.members.settled()).await
    {
        tracing::error!(error, "pods that start while no agent runs are judged by an old membership file");
    }
    installation.await.context("what becomes of the installation")?;
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

/// Passes on what the drift watch hears, to the pod that it concerns. Says so in `choice` when the watch ends.
async fn hear(cx: Arc<Context>, mut hints: mpsc::Receiver<Hint>, choice: watch::Sender<Choice>) {
    while let Some(hint) = hints.recv().await {
        match hint {
            Hint::Pod(netns) => cx.registry.look(Some(netns)),
            Hint::Host => cx.host.look(None).await,
            Hint::Everything => {
                cx.registry.look(None);
                cx.host.look(None).await;
            }
        }
    }
    let because = "the drift watch has ended: see the agent's log; a restart of the agent starts it anew";
    tracing::error!(because, "no change can be heard any more: captured pods are looked at once a second");
    choice.send_replace(Choice { chosen: "sweep".into(), because: because.into() });
}

/// Looks at every captured pod, at the host's table and for the kubelet's cgroup, once a [`SWEEP`]. Pods whose probes are to
/// pass by something else renew their rules.
async fn sweep(cx: Arc<Context>, mut kubelet: choices::Kubelet) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        cx.registry.look(None);
        cx.host.look(kubelet.find(&cx.kernel).await.ok()).await;
        for uid in cx.host.turn().await {
            // A strategy may still know a pod that nobody follows any more.
            if !cx.registry.send_existing(&uid, Message::Resettle(Vec::new())) {
                cx.host.dismiss(&uid).await;
            }
        }
    }
}

/// Keeps what operators see true: readiness, and the gauges.
async fn report(
    cx: Arc<Context>,
    health: Health,
    spots: (Spot, Arc<OnceLock<Spot>>),
    run_dir: PathBuf,
    started: Instant,
) {
    let mut synced = cx.synced.subscribe();
    if synced.wait_for(|synced| *synced).await.is_err() {
        return;
    }
    health.ready();
    cx.metrics.ready_after(started.elapsed());
    tracing::info!(after = ?started.elapsed(), "serving");
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let (plugins, ztunnels) = &spots;
        let mut sockets = [Some(plugins), ztunnels.get()].into_iter().flatten();
        match sockets.find(|socket| !socket.is_reachable()) {
            None => health.ready(),
            Some(gone) => health.not_ready(format!(
                "{} was removed or replaced, so that nobody finds the agent there; restart the agent",
                gone.path().display()
            )),
        }
        let showings = cx.registry.showings();
        let mut states: BTreeMap<State, usize> = BTreeMap::new();
        for showing in &showings {
            *states.entry(showing.status.state).or_default() += 1;
        }
        for state in [State::Outside, State::Pending, State::Enabled, State::Draining, State::Drifted] {
            cx.metrics.set_pods(state, states.get(&state).copied().unwrap_or_default());
        }
        let handed = showings.iter().filter(|showing| showing.handed.is_some()).count();
        cx.metrics.set_open_netns_fds(handed);
        cx.metrics.set_status_pending(cx.status.owed());
        // The installer that takes everything off the node takes the file too.
        if !installed::is_leaving(&run_dir) {
            cx.members.look();
        }
        cx.metrics.set_membership_stale(cx.members.is_stale());
        cx.metrics.set_ztunnels(cx.ztunnel.connections().len());
        let held = *cx.hold.borrow() == Hold::Drop && !*cx.ztunnel.any_ready().borrow();
        cx.metrics.set_held_pods(if held { handed } else { 0 });
    }
}

/// The signals that end the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
