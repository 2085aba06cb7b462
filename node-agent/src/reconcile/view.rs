//! The node as `sluicectl` sees it.

use super::{Context, Message};
use crate::admin::{View, WhyError};
use crate::installed::Standing;
use crate::zds;
use sluice_shared::admin::{
    ADMIN_VERSION, Check, Choice, NodeStatus, PodStatus, SourceStatus, State, ZtunnelStatus,
};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// Answers the admin server.
pub struct NodeView {
    cx: Arc<Context>,
    node_name: String,
    source: String,
    problem: watch::Receiver<Option<String>>,
    backend: Choice,
    drift_watch: watch::Receiver<Choice>,
    standing: watch::Receiver<Standing>,
}

impl NodeView {
    /// A view of what `cx` joins. The backend was chosen at the start; the drift watch may end later.
    #[must_use]
    pub fn new(
        cx: Arc<Context>,
        node_name: String,
        source: String,
        problem: watch::Receiver<Option<String>>,
        backend: Choice,
        drift_watch: watch::Receiver<Choice>,
        standing: watch::Receiver<Standing>,
    ) -> Self {
        Self { cx, node_name, source, problem, backend, drift_watch, standing }
    }

    /// Whether the runtime calls the plugin for pods that start; `None` where no installer says.
    fn chain(&self) -> Option<Check> {
        let standing = self.standing.borrow();
        let found = standing.installation.as_ref()?;
        let detail = match found.state.is_chained() {
            true => "a pod that starts on this node is captured before it runs".to_owned(),
            false => format!("a pod that starts on this node is captured late, or not: {}", found.message),
        };
        Some(Check { name: "the plugin is in the chain".into(), ok: found.state.is_chained(), detail })
    }

    fn ztunnels(&self) -> Vec<ZtunnelStatus> {
        let status = |zds::Connection { peer, ready }| ZtunnelStatus {
            connection: peer.connection,
            pid: peer.pid,
            ready,
            cgroup: self.cx.trust.cgroup_of(peer.connection).map(|cgroup| cgroup.path),
        };
        self.cx.ztunnel.connections().into_iter().map(status).collect()
    }
}

impl View for NodeView {
    async fn status(&self) -> NodeStatus {
        let Standing { installation, lease } = self.standing.borrow().clone();
        NodeStatus {
            version: ADMIN_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            node_name: self.node_name.clone(),
            serving: *self.cx.synced.borrow(),
            source: SourceStatus { from: self.source.clone(), problem: self.problem.borrow().clone() },
            backend: self.backend.clone(),
            probes: self.cx.host.choice(),
            probe_test: Box::new(self.cx.host.tested()),
            mark_guard: self.cx.trust.choice(),
            drift_watch: self.drift_watch.borrow().clone(),
            installation: installation.map(Box::new),
            lease,
            predecessor: self.cx.succession.choice(),
            ztunnels: self.ztunnels(),
            pods: self.cx.registry.showings().into_iter().map(|showing| showing.status).collect(),
        }
    }

    async fn why(&self, pod: &str) -> Result<PodStatus, WhyError> {
        let uid = self.cx.registry.find(pod)?;
        let (reply, answer) = oneshot::channel();
        if !self.cx.registry.send_existing(&uid, Message::Inspect(reply)) {
            return Err(WhyError::Unknown(pod.to_owned()));
        }
        let mut status = answer.await.map_err(|_| WhyError::Unknown(pod.to_owned()))?;
        // What does not run yet, or was not captured when it started.
        if status.because.is_some() && status.state != State::Enabled {
            status.checks.extend(self.chain());
        }
        Ok(status)
    }
}
