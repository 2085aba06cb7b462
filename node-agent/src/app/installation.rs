//! The agent's part in the installation: what is started for it, and what is done for it at the end.

use crate::config::Config;
use crate::installed::Ending;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What runs for the installation.
pub(super) struct Installation {
    /// `None` where there is no API server, or no DaemonSet to ask about.
    ending: Option<Arc<Ending>>,
}

impl Installation {
    /// Starts it. `client` is the way to the API server, which is asked nothing before the source has spoken.
    pub(super) fn start(
        config: &Config,
        client: Option<kube::Client>,
        mut synced: watch::Receiver<bool>,
    ) -> Self {
        if let Err(error) = Ending::forget_before(&config.run_dir) {
            tracing::warn!(%error, runDir = %config.run_dir.display(), "an earlier agent's intent stays");
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
        Self { ending }
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
