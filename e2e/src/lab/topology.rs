//! The places: a fabric that joins nodes and an outside host, nodes with a pod network each, and pods that real CNI
//! plugins attach.
//!
//! ```text
//!   outside 203.0.113.10 ── fabric (router) ── br0 172.30.0.0/24 ─┬─ node1 .11 ── pods 10.77.1.0/24
//!           2001:db8:99::10                     fd30::/64         └─ node2 .12 ── pods 10.77.2.0/24, fd77:0:0:2::/64
//! ```

use super::cgroup::{Cgroup, Cgroups};
use super::cni::chains::{self, PodNetwork};
use super::cni::{Attachment, CniError, NetworkList, Runner};
use super::netns::Netns;
use super::outer::Outer;
use super::pod::{Pod, PodSpec, addresses_of};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The outside host, IPv4.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The outside host, IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0x10);

/// The fabric's own addresses: where the nodes' default routes go, and that of the outside host.
/// How often a pod is attached at most, where the primary alone fails.
const ATTEMPTS: usize = 3;
const FABRIC_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const FABRIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 1);
const OUTSIDE_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1);

/// Which address families pods have. The fabric and the outside host always have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
}

/// Which primary CNI the nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primary {
    /// ptp + host-local + portmap (kindnet, GKE).
    Ptp,
    /// bridge + host-local + portmap + bandwidth + tuning (minikube, kubenet).
    Bridge,
}

/// How a world is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes, at most 9.
    pub nodes: u8,
    /// The pods' families.
    pub families: Families,
    /// The nodes' primary CNI.
    pub primary: Primary,
    /// The lists' `cniVersion`.
    pub cni_version: String,
    /// Whether our entry is chained at the list's end.
    pub chained: bool,
}

/// A fabric, an outside host and nodes. Several may exist side by side.
#[derive(Debug)]
pub struct World {
    /// Where everything meets; has the links `node1`, …, and `outside`.
    pub fabric: Netns,
    /// A host that is no node and in no mesh.
    pub outside: Netns,
    /// The nodes, from `node1` on.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// `node1`, …
    pub name: String,
    /// Its own network namespace.
    pub netns: Netns,
    /// Its address on the fabric, IPv4.
    pub v4: Ipv4Addr,
    /// Its address on the fabric, IPv6.
    pub v6: Ipv6Addr,
    /// Its files: `run/` (sockets), `state/`, `log/`, …
    pub dir: PathBuf,
    /// The container runtime.
    pub runner: Runner,
    /// The chain that its pods get.
    pub list: NetworkList,
    /// The runtime's own loopback network.
    pub loopback: NetworkList,
    /// The kubelet's cgroup.
    pub kubelet: Cgroup,
    /// A cgroup of other host processes.
    pub other: Cgroup,
    cgroups: Arc<Cgroups>,
    cgroup_name: String,
    sandboxes: AtomicU64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 1,
            families: Families::Dual,
            primary: Primary::Ptp,
            cni_version: "1.0.0".into(),
            chained: true,
        }
    }
}

impl World {
    /// Builds it. `name` keeps several worlds apart.
    ///
    /// # Errors
    /// When the kernel refuses, or the CNI plugins are not installed.
    pub fn build(outer: &Outer, name: &str, plan: &Plan) -> Result<Self> {
        let (fabric, outside) = surroundings(name)?;
        let mut nodes = Vec::new();
        for index in 1..=plan.nodes {
            nodes.push(Node::build(outer, name, index, &fabric, plan)?);
        }
        Ok(Self { fabric, outside, nodes })
    }
}

/// The fabric that nodes of `world` meet on, and the outside host beyond it.
///
/// # Errors
/// When the kernel refuses.
pub fn surroundings(world: &str) -> Result<(Netns, Netns)> {
    let fabric = host(&format!("{world}.fabric"))?;
    fabric.ip(&format!(
        "link add br0 type bridge\n\
         link set br0 up\n\
         addr add {FABRIC_V4}/24 dev br0\n\
         addr add {FABRIC_V6}/64 dev br0 nodad\n"
    ))?;
    let outside = host(&format!("{world}.outside"))?;
    fabric.ip(&format!(
        "link add outside type veth peer name eth0 netns {}\n\
         addr add {OUTSIDE_GATEWAY_V4}/24 dev outside\n\
         addr add {OUTSIDE_GATEWAY_V6}/64 dev outside nodad\n\
         link set outside up\n",
        outside.name()
    ))?;
    uplink(&outside, (OUTSIDE_V4, OUTSIDE_V6), (OUTSIDE_GATEWAY_V4, OUTSIDE_GATEWAY_V6))?;
    Ok((fabric, outside))
}

/// A node's own namespace, on the fabric; with its addresses there.
///
/// # Errors
/// When the kernel refuses.
pub fn on_fabric(world: &str, index: u8, fabric: &Netns) -> Result<(Netns, Ipv4Addr, Ipv6Addr)> {
    let name = format!("node{index}");
    let netns = host(&format!("{world}.{name}"))?;
    let v4 = Ipv4Addr::new(172, 30, 0, 10 + index);
    let v6 = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(index));
    fabric.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\n\
         link set {name} master br0 up\n",
        netns.name()
    ))?;
    uplink(&netns, (v4, v6), (FABRIC_V4, FABRIC_V6))?;
    Ok((netns, v4, v6))
}

/// Brings a host's `eth0` up: its addresses, each in a network of the size that all here have, /24 and /64, and its
/// default routes.
///
/// # Errors
/// When there is no such link, or the kernel refuses.
pub fn uplink(
    netns: &Netns,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    (gateway_v4, gateway_v6): (Ipv4Addr, Ipv6Addr),
) -> Result<()> {
    netns.ip(&format!(
        "addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {gateway_v4}\n\
         route add default via {gateway_v6}\n"
    ))
}

/// A node's directory, with what belongs in it.
///
/// # Errors
/// When it cannot be made.
pub fn directory(outer: &Outer, world: &str, node: &str) -> Result<PathBuf> {
    let dir = outer.dir().join(world).join(node);
    for below in ["run", "state", "log", "cni", "leases"] {
        std::fs::create_dir_all(dir.join(below))?;
    }
    Ok(dir)
}

/// A network namespace that forwards, with `lo` up and no waiting for duplicate addresses.
///
/// # Errors
/// When the name is taken or the kernel refuses.
pub fn host(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    netns.ip("link set lo up\n")?;
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    Ok(netns)
}

impl Node {
    fn build(outer: &Outer, world: &str, index: u8, fabric: &Netns, plan: &Plan) -> Result<Self> {
        let (netns, v4, v6) = on_fabric(world, index, fabric)?;
        fabric.ip(&format!(
            "route add 10.77.{index}.0/24 via {v4}\n\
             route add fd77:0:0:{index}::/64 via {v6}\n"
        ))?;
        let dir = directory(outer, world, &format!("node{index}"))?;
        let network = PodNetwork {
            cni_version: plan.cni_version.clone(),
            name: format!("{world}-node{index}"),
            v4: (plan.families != Families::V6).then(|| format!("10.77.{index}.0/24")),
            v6: (plan.families != Families::V4).then(|| format!("fd77:0:0:{index}::/64")),
            leases: dir.join("leases"),
            sluice: plan
                .chained
                .then(|| chains::sluice_entry(&dir.join("run/agent.sock"), &dir.join("state"))),
        };
        let mut path = vec![chains::plugin_dir()?];
        if plan.chained {
            let plugin = super::process::binary("sluice-cni")?;
            path.push(plugin.parent().context("a plugin without a directory")?.to_path_buf());
        }
        let list = match plan.primary {
            Primary::Ptp => network.ptp()?,
            Primary::Bridge => network.bridge()?,
        };
        Self::furnish(outer, world, index, (netns, v4, v6), path, list)
    }

    /// A node of a namespace on the fabric: its directory, cgroups and container runtime, which attaches pods by `list`
    /// with plugins in `path`.
    ///
    /// # Errors
    /// When a directory or a cgroup cannot be made.
    pub fn furnish(
        outer: &Outer,
        world: &str,
        index: u8,
        (netns, v4, v6): (Netns, Ipv4Addr, Ipv6Addr),
        path: Vec<PathBuf>,
        list: NetworkList,
    ) -> Result<Self> {
        let name = format!("node{index}");
        let dir = directory(outer, world, &name)?;
        let runner =
            Runner { netns: netns.clone(), path, cache: dir.join("cni"), timeout: Duration::from_secs(60) };
        let cgroup_name = format!("{world}/{name}");
        let cgroups = Arc::clone(outer.cgroups());
        Ok(Self {
            kubelet: cgroups.cgroup(&format!("{cgroup_name}/kubelet"))?,
            other: cgroups.cgroup(&format!("{cgroup_name}/other"))?,
            loopback: PodNetwork::loopback()?,
            sandboxes: AtomicU64::new(0),
            name,
            netns,
            v4,
            v6,
            dir,
            runner,
            list,
            cgroups,
            cgroup_name,
        })
    }

    /// Where the agent listens for the plugin, on this node.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }

    /// Where this node's programs write what they say.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A cgroup of this node, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cgroup(&self, name: &str) -> Result<Cgroup> {
        self.cgroups.cgroup(&format!("{}/{name}", self.cgroup_name))
    }

    /// The node's own address of the family of `like`.
    #[must_use]
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Makes a pod's sandbox, but does not attach it: as far as a runtime gets before it calls ADD.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn sandbox(&self, spec: &PodSpec) -> Result<Pod> {
        let facts = &spec.facts;
        let number = self.sandboxes.fetch_add(1, Ordering::Relaxed) + 1;
        let world = self.netns.name().replace('.', "-");
        let id = format!("{world}-{}-{number}", facts.name);
        let netns = Netns::create(&format!("cni-{id}"))?;
        // The kernel would otherwise wait seconds for duplicates of an address that nobody else can have.
        netns.sysctl("ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        let attachment =
            Attachment::of_pod(&id, netns.path(), &facts.namespace, &facts.name, facts.uid.as_str());
        let cgroup = self.cgroup(&format!("pods/{}", facts.uid.as_str()))?;
        Ok(Pod { facts: facts.clone(), netns, attachment, cgroup, result: Value::Null })
    }

    /// Makes a sandbox and attaches it. When ADD fails, the runtime's DEL follows and the namespace goes.
    ///
    /// # Errors
    /// ADD's, as a [`super::cni::CniError`] at the root.
    pub fn start_pod(&self, spec: &PodSpec) -> Result<Pod> {
        let mut pod = self.sandbox(spec)?;
        match self.attach(&mut pod) {
            Ok(()) => Ok(pod),
            Err(why) => {
                // A runtime reports ADD's failure, not what came of its cleaning up.
                let _ = self.stop_pod(&pod);
                Err(why)
            }
        }
    }

    /// ADD of the loopback network and of the chain; anew, as a kubelet does it, where the primary alone failed because
    /// the kernel took long over its IPv6 addresses.
    ///
    /// # Errors
    /// The first that fails.
    pub fn attach(&self, pod: &mut Pod) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.attach_once(pod) {
                Err(why) if why.downcast_ref::<CniError>().is_some_and(CniError::is_tentative) => {
                    self.runner.del(&self.list, &pod.attachment)?;
                }
                other => return other,
            }
        }
        self.attach_once(pod)
    }

    /// ADD of the loopback network and of the chain, once: the address is the next one of the primary's.
    ///
    /// # Errors
    /// The first that fails.
    pub fn attach_once(&self, pod: &mut Pod) -> Result<()> {
        self.runner.add(&self.loopback, &Attachment { ifname: "lo".into(), ..pod.attachment.clone() })?;
        pod.result = self.runner.add(&self.list, &pod.attachment)?;
        pod.facts.ips = addresses_of(&pod.result)?;
        ensure!(!pod.facts.ips.is_empty(), "ADD gave {} no address: {}", pod.facts.name, pod.result);
        Ok(())
    }

    /// DEL of the chain and of the loopback network, then the namespace goes.
    ///
    /// # Errors
    /// DEL's; the namespace stays then, as a runtime leaves it.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.runner.del(&self.list, &pod.attachment)?;
        self.runner.del(&self.loopback, &Attachment { ifname: "lo".into(), ..pod.attachment.clone() })?;
        pod.netns.remove()
    }
}
