//! An agent that says what it is told to, on a node's admin socket.

use crate::node::Node;
use sluice_agent::admin::{Server, View, WhyError};
use sluice_shared::admin::{ADMIN_VERSION, Choice, NodeStatus, PodStatus, SourceStatus, ZtunnelStatus};
use sluice_shared::conflist::Way;
use sluice_shared::enroll::Overrides;
use sluice_shared::ids::PodUid;
use sluice_shared::install::{INSTALL_VERSION, Installation, State};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// The agent; it ends with this.
pub struct Agent(#[allow(dead_code, reason = "what it runs on")] Runtime);

struct Scripted(NodeStatus);

impl View for Scripted {
    async fn status(&self) -> NodeStatus {
        self.0.clone()
    }

    async fn why(&self, pod: &str) -> Result<PodStatus, WhyError> {
        Err(WhyError::Unknown(pod.to_owned()))
    }
}

impl Agent {
    pub fn start(node: &Node, status: NodeStatus) -> Self {
        let runtime = Runtime::new().unwrap();
        let server = {
            let _inside = runtime.enter();
            Server::bind(&node.path("run/sluice/admin.sock"), Arc::new(Scripted(status))).unwrap()
        };
        runtime.spawn(server.run());
        Self(runtime)
    }
}

pub fn choice(chosen: &str, because: &str) -> Choice {
    Choice { chosen: chosen.to_owned(), because: because.to_owned() }
}

/// All is well.
pub fn healthy() -> NodeStatus {
    let installation = Installation {
        version: INSTALL_VERSION,
        boot: "b2d0a5de".to_owned(),
        state: State::Chained,
        message: "our entry is in the chain".to_owned(),
        directory: "/etc/cni/net.d".to_owned(),
        way: Some(Way::InPlace),
        why: String::new(),
        file: Some("10-kindnet.conflist".to_owned()),
        primary: Some("10-kindnet.conflist".to_owned()),
        primary_seen: true,
        writes: 1,
        repairs: 0,
        istio: Vec::new(),
        fight: None,
        updated: 0,
    };
    NodeStatus {
        version: ADMIN_VERSION,
        agent_version: "0.1.0".to_owned(),
        node_name: "node-1".to_owned(),
        serving: true,
        source: SourceStatus { from: "kubernetes".to_owned(), problem: None },
        backend: choice("nftables", ""),
        probes: choice("snat", ""),
        probe_test: Box::new(choice("works", "")),
        mark_guard: choice("on", ""),
        drift_watch: choice("events", ""),
        installation: Some(Box::new(installation)),
        lease: None,
        predecessor: None,
        ztunnels: vec![ZtunnelStatus { connection: 1, pid: 7, ready: true, cgroup: None }],
        pods: Vec::new(),
    }
}

/// A pod that waits.
pub fn pending() -> PodStatus {
    PodStatus {
        uid: PodUid::new("3f0a6e1c-77aa-4a51-8f1b-6c0f1f5e0b11").unwrap(),
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        ips: Vec::new(),
        state: sluice_shared::admin::State::Pending,
        reason: "no ztunnel is connected".to_owned(),
        because: None,
        outside: None,
        overrides: Overrides::default(),
        netns: None,
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}
