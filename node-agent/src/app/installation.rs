//! The agent's part in the installation: what is started for it, and what is done for it at the end.

use crate::config::Config;
use crate::health::Health;
use crate::installed::{Ending, Looker, Serving, Standing, Taints, Teller, keep_runtime};
use crate::metrics::Metrics;
use crate::status::Sink;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What runs for the installation.
pub(super) struct Installation {
    /// `None` where there is no API server, or no DaemonSet to ask about.
    ending: Option<Arc<Ending>>,
}

/// What others have that it needs.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    /// The way to the API server, where there is one. It is asked nothing before the source has spoken.
    pub(super) client: Option<kube::Client>,
    pub(super) status: Sink,
    pub(super) metrics: Metrics,
    pub(super) health: &'a Health,
    pub(super) synced: watch::Receiver<bool>,
}

impl Installation {
    /// Starts it. The receiver has how the installation stands.
    ///
    /// # Errors
    /// When it cannot be known which boot this is.
    pub(super) fn start(parts: Parts<'_>) -> anyhow::Result<(Self, watch::Receiver<Standing>)> {
        let Parts { config, client, status, metrics, health, mut synced } = parts;
        if let Err(error) = Ending::forget_before(&config.run_dir) {
            tracing::warn!(%error, runDir = %config.run_dir.display(), "an earlier agent's intent stays");
        }
        tokio::spawn(keep_runtime(config.cri_sockets.clone(), config.run_dir.clone()));
        let looker = Looker::new(&config.run_dir, &config.state_dir).context("which boot this is")?;
        let (standing, standing_now) = watch::channel(looker.look());
        let pod = config.own.pod.clone();
        tokio::spawn(Teller { pod, status, metrics: metrics.clone(), standing }.run(looker));
        if let Some(client) = client.clone().filter(|_| !config.node_taints.is_empty()) {
            let taints =
                Taints { client, node: config.node_name.clone(), keys: config.node_taints.clone(), metrics };
            let (waiting_for, standing) = (health.waiting_for(), standing_now.clone());
            tokio::spawn(taints.run(Serving { waiting_for, standing }));
        }
        let ending = client.zip(config.own.daemon_set.clone()).map(|(client, daemon_set)| {
            Arc::new(Ending::new(client, daemon_set, &config.node_name, &config.run_dir))
        });
        if let Some(ending) = ending.clone() {
            tokio::spawn(async move {
                if synced.wait_for(|synced| *synced).await.is_ok() {
                    ending.learn().await;
                }
            });
        }
        Ok((Self { ending }, standing_now))
    }

    /// The agent is told to end: what becomes of the installation is found out while the rest stops.
    pub(super) fn end(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            if let Some(ending) = self.ending {
                ending.tell().await;
            }
        })
    }
}
