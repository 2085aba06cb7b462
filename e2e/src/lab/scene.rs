//! A standing mesh: a world whose nodes have an agent and a ztunnel each, and the pods that will run there.
//!
//! A ztunnel without istiod reads its workloads once, at its start. So a scene knows all of its pods, and the
//! addresses that host-local will give them, before the first one runs.

use super::agent::Agent;
use super::outer::Outer;
use super::pod::{Pod, PodSpec};
use super::topology::{Families, Node, Plan, World};
use super::traffic::dial::Dial;
use super::traffic::load::Path;
use super::xds::Mesh;
use super::ztunnel::{self, Ztunnel};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The namespace whose pods are in the mesh.
pub const MESH: &str = "mesh";
/// A namespace outside the mesh.
pub const PLAIN: &str = "plain";
/// The address of every pod's service, IPv4: the last byte is the pod's number.
const VIP_V4: [u8; 3] = [10, 96, 0];
/// The port of the echo server in a pod, and of its service.
pub const PORT: u16 = 8080;

/// The backends that write rules.
pub const BACKENDS: [&str; 2] = ["nftables", "iptables"];

/// A pod that a scene will run.
#[derive(Clone, Debug)]
pub struct Member {
    /// What the API server says of it.
    pub spec: PodSpec,
    /// On which node, from 0 on.
    pub node: usize,
    /// Whether peers reach it over HBONE, as istiod would say once it is captured.
    pub hbone: bool,
}

/// A world with its agents and ztunnels.
#[derive(Debug)]
pub struct Scene {
    /// The places.
    pub world: World,
    /// The agents, one a node.
    pub agents: Vec<Agent>,
    /// The ztunnels, one a node; empty until [`Scene::start`].
    pub ztunnels: Vec<Ztunnel>,
    members: Vec<(Member, Vec<IpAddr>)>,
    mesh: Mesh,
}

impl Member {
    /// A pod of the mesh on the first node.
    #[must_use]
    pub fn meshed(name: &str) -> Self {
        Self { spec: PodSpec::new(MESH, name), node: 0, hbone: true }
    }

    /// A pod outside the mesh on the first node.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        Self { spec: PodSpec::new(PLAIN, name), node: 0, hbone: false }
    }

    /// On another node.
    #[must_use]
    pub fn on(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec = self.spec.annotation(key, value);
        self
    }
}

impl Scene {
    /// Builds the places and configures the agents with `changes`; nothing runs yet. The pods are to be started in the
    /// order of `members`.
    ///
    /// # Errors
    /// When something cannot be built.
    pub fn build(
        outer: &Outer,
        name: &str,
        plan: &Plan,
        changes: &Value,
        members: &[Member],
    ) -> Result<Self> {
        let world = World::build(outer, name, plan)?;
        let agents =
            world.nodes.iter().map(|node| Agent::configure(node, changes)).collect::<Result<Vec<_>>>()?;
        for agent in &agents {
            agent.pods.namespace(MESH, &[(LABEL_DATAPLANE_MODE, MODE_AMBIENT)])?;
            agent.pods.namespace(PLAIN, &[])?;
        }
        let mut taken = vec![1_u8; world.nodes.len()];
        let mut mesh = Mesh::default();
        let mut known = Vec::new();
        for (number, member) in (1_u8..).zip(members) {
            agents[member.node].pods.pod(&member.spec.facts)?;
            taken[member.node] += 1;
            let ips = predicted(plan.families, member.node, taken[member.node]);
            let node = &world.nodes[member.node].name;
            mesh = mesh.workload(node, &member.spec, &ips, member.hbone).service(
                &member.spec.facts.name,
                &[vip(number)],
                PORT,
                PORT,
            );
            known.push((member.clone(), ips));
        }
        Ok(Self { world, agents, ztunnels: Vec::new(), members: known, mesh })
    }

    /// Starts every node's agent and ztunnel, and waits until they serve.
    ///
    /// # Errors
    /// When one of them does not.
    pub fn start(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.launch_only()?;
        }
        for node in &self.world.nodes {
            self.ztunnels.push(Ztunnel::start(node, "ztunnel-1", &self.mesh)?);
        }
        for (agent, ztunnel) in self.agents.iter_mut().zip(&mut self.ztunnels) {
            agent.until_serving()?;
            ztunnel.until_ready()?;
        }
        Ok(())
    }

    /// Starts every node's agent, and no ztunnel. None of them serves yet.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub fn start_agents_only(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::launch_only)
    }

    /// Which way a new connection goes.
    ///
    /// # Errors
    /// When it fails.
    pub fn path(from: &super::netns::Netns, to: IpAddr) -> Result<Path> {
        let answer = Dial::to((to, PORT).into()).recognised().ask(from, "which way?")?;
        Ok(if answer.is_direct() { Path::Direct } else { Path::Proxied })
    }

    /// The first node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.world.nodes[0]
    }

    /// The first node's agent.
    pub fn agent(&mut self) -> &mut Agent {
        &mut self.agents[0]
    }

    /// What ztunnels are told.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The address of a pod's service.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn vip(&self, name: &str) -> Result<IpAddr> {
        let position = self.members.iter().position(|(member, _)| member.spec.facts.name == name);
        let number = position.and_then(|position| u8::try_from(position + 1).ok());
        Ok(vip(number.with_context(|| format!("no pod {name} in the scene"))?))
    }

    /// Runs a pod, as a kubelet does: the runtime attaches it, then the API server shows its addresses.
    ///
    /// # Errors
    /// ADD's, as a [`super::cni::CniError`] at the root; or when it has another address than ztunnel was told.
    pub fn start_pod(&self, name: &str) -> Result<Pod> {
        let found = self.members.iter().find(|(member, _)| member.spec.facts.name == name);
        let (member, ips) = found.with_context(|| format!("no pod {name} in the scene"))?;
        let pod = self.world.nodes[member.node].start_pod(&member.spec)?;
        ensure!(
            ztunnel::kind() == ztunnel::Kind::StandIn || pod.facts.ips == *ips,
            "{name} has {:?}; ztunnel was told {ips:?}",
            pod.facts.ips
        );
        let seen = pod.facts.ips.clone();
        self.agents[member.node].pods.edit(&pod.facts.uid, |facts| facts.ips = seen)?;
        Ok(pod)
    }

    /// Ends a pod, as a kubelet does: the runtime detaches it, then the API server forgets it.
    ///
    /// # Errors
    /// DEL's.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        let found = self.members.iter().find(|(member, _)| member.spec.facts.uid == pod.facts.uid);
        let (member, _) = found.with_context(|| format!("{} is not of the scene", pod.name()))?;
        self.world.nodes[member.node].stop_pod(pod)?;
        self.agents[member.node].pods.forget(&pod.facts.uid)
    }

    /// Sets or takes away a pod's own label for the mesh.
    ///
    /// # Errors
    /// When the pods file cannot be written.
    pub fn relabel(&self, pod: &Pod, mode: Option<&str>) -> Result<()> {
        let found = self.members.iter().find(|(member, _)| member.spec.facts.uid == pod.facts.uid);
        let (member, _) = found.with_context(|| format!("{} is not of the scene", pod.name()))?;
        self.agents[member.node].pods.edit(&pod.facts.uid, |facts| {
            match mode {
                Some(mode) => facts.labels.insert(LABEL_DATAPLANE_MODE.into(), mode.into()),
                None => facts.labels.remove(LABEL_DATAPLANE_MODE),
            };
        })
    }
}

/// What host-local gives to the pods of a node, one after the other: `.1` is the gateway's.
fn predicted(families: Families, node: usize, last: u8) -> Vec<IpAddr> {
    let third = u8::try_from(node + 1).unwrap_or(u8::MAX);
    let v4 = Ipv4Addr::new(10, 77, third, last).into();
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, third.into(), 0, 0, 0, last.into()).into();
    match families {
        Families::V4 => vec![v4],
        Families::V6 => vec![v6],
        Families::Dual => vec![v4, v6],
    }
}

fn vip(number: u8) -> IpAddr {
    Ipv4Addr::new(VIP_V4[0], VIP_V4[1], VIP_V4[2], number).into()
}
