//! A cell that stands: the places as the primary CNI leaves them, the real agent, a ztunnel, and pods that the chain
//! attached.
//!
//! | pod | |
//! |---|---|
//! | `c` | outside the mesh: shows what the primary does by itself |
//! | `a`, `b` | of the mesh from their ADD on |
//! | `d` | outside; joins and leaves while it lives |
//! | `e` | of the mesh; comes and goes |

use super::axes::Variant;
use super::describe::{Cell, Families, Fault, Secondary};
use super::faults::{self, Refusal};
use super::places::{self, Places};
use super::pods::{addresses, mesh, spec};
use crate::lab::agent::{Agent, PATIENCE};
use crate::lab::cni::{Attachment, NetworkList};
use crate::lab::eventually;
use crate::lab::netns::Netns;
use crate::lab::outer::Outer;
use crate::lab::pod::{Pod, addresses_of};
use crate::lab::process::Process;
use crate::lab::scene::{MESH, PLAIN, PORT};
use crate::lab::topology::{Node, OUTSIDE_V4, OUTSIDE_V6};
use crate::lab::traffic::echo::Echo;
use crate::lab::ztunnel::Ztunnel;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_shared::admin::State;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// The service of `b` that ztunnel knows, IPv4 and IPv6.
pub const SERVICE: [&str; 2] = ["10.96.0.11", "fd96::11"];
/// A service beyond the mesh, which kube-proxy's rules lead to the outside host.
pub const FOREIGN_SERVICE: [&str; 2] = ["10.96.0.200", "fd96::200"];
/// The node port that kube-proxy's rules lead to `a`.
pub const NODE_PORT: u16 = 30080;
/// How long a node may take to find out how probes go: three ways, each until its patience ends, then pods change over.
const CHOSEN: Duration = Duration::from_secs(90);
/// Where clouds serve metadata.
pub const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

/// A standing cell. Dropping it ends what runs in it.
#[derive(Debug)]
pub struct Stage<'a> {
    /// What it stands for.
    pub cell: &'a Cell,
    /// In which way.
    pub variant: &'a Variant,
    /// What joins the node and the outside.
    pub fabric: Netns,
    /// A host that is no node and in no mesh.
    pub outside: Netns,
    /// Where the host's ends of pods' links are: the node's namespace, or a router's.
    pub place: Netns,
    /// The node.
    pub node: Node,
    /// Its agent.
    pub agent: Agent,
    /// Its ztunnel.
    pub ztunnel: Ztunnel,
    /// The pods that run all the time.
    pub pods: BTreeMap<&'static str, Pod>,
    /// Addresses of pods on the second network, where there is one.
    pub second: BTreeMap<&'static str, IpAddr>,
    /// How long a probe, or who pretends to be one, may take. Short where a limit says that it gets no answer.
    pub patience: Duration,
    /// The probe strategy that is at work.
    pub probes: String,
    _servers: Vec<Echo>,
    _programs: Vec<Process>,
    _refusal: Option<Refusal>,
}

impl<'a> Stage<'a> {
    /// Builds a cell and waits until its pods run and those of the mesh are captured.
    ///
    /// # Errors
    /// What did not come to stand.
    pub fn stand(outer: &Outer, world: &str, cell: &'a Cell, variant: &'a Variant) -> Result<Self> {
        let Places { fabric, outside, place, node, programs } = places::places(outer, world, cell, variant)?;
        let refusal =
            (variant.fault == Some(Fault::RefusesRules)).then(|| faults::refusing_rules(&node.netns));
        let refusal = refusal.transpose()?;
        let changes = json!({"backend": variant.backend, "probes": variant.probes});
        let mut agent = Agent::configure(&node, &changes)?;
        agent.pods.namespace(MESH, &[(LABEL_DATAPLANE_MODE, MODE_AMBIENT)])?;
        agent.pods.namespace(PLAIN, &[])?;
        agent.launch_only()?;
        let mut ztunnel = Ztunnel::start(&node, "ztunnel-1", &mesh(cell, variant, &node)?)?;
        agent.until_serving()?;
        ztunnel.until_ready()?;
        let probes = agent.status()?.probes.chosen;
        let mut stage = Self {
            cell,
            variant,
            fabric,
            outside,
            place,
            node,
            agent,
            ztunnel,
            pods: BTreeMap::new(),
            second: BTreeMap::new(),
            patience: PATIENCE,
            probes,
            _servers: Vec::new(),
            _programs: programs,
            _refusal: refusal,
        };
        stage.people()?;
        if variant.probes == "auto" {
            stage.choose()?;
        }
        Ok(stage)
    }

    /// Waits until the agent has found out how probes go; by a start of its own where something has come to stand in their
    /// way after it may have looked.
    fn choose(&mut self) -> Result<()> {
        if self.cell.datapath.is_some() || self.variant.fault.is_some() {
            self.agent.stop()?;
            self.agent.start()?;
            for name in ["a", "b"] {
                self.agent.until(&self.pod(name).facts, State::Enabled)?;
            }
        }
        self.probes = eventually("the probe self-test to choose", CHOSEN, || {
            let status = self.agent.status()?;
            let (probes, tested) = (status.probes, status.probe_test);
            ensure!(tested.chosen == "works", "it is {}: {}", tested.chosen, tested.because);
            ensure!(!probes.because.contains("changing over"), "pods are {}", probes.because);
            Ok(probes.chosen)
        })?;
        Ok(())
    }

    /// Starts the pods and the servers.
    fn people(&mut self) -> Result<()> {
        let mut servers =
            vec![Echo::start(&self.outside, "outside", PORT)?, Echo::start(&self.fabric, "metadata", 80)?];
        for name in ["c", "a", "b", "d"] {
            let mut pod = self.sandbox(name)?;
            self.node.attach_once(&mut pod).with_context(|| format!("ADD of {name}"))?;
            self.shown(&pod)?;
            servers.push(Echo::start(&pod.netns, name, PORT)?);
            self.pods.insert(name, pod);
        }
        for name in ["a", "b"] {
            self.agent.until(&self.pod(name).facts, State::Enabled)?;
        }
        if let Some(Secondary { text, .. }) = &self.cell.secondary {
            let list = NetworkList::parse(text)?;
            for name in ["a", "d"] {
                let to = Attachment { ifname: "net1".into(), ..self.pod(name).attachment.clone() };
                let result =
                    self.node.runner.add(&list, &to).with_context(|| format!("ADD of {name}'s net1"))?;
                let address = addresses_of(&result)?.first().copied().context("net1 without an address")?;
                self.second.insert(name, address);
            }
        }
        for fault in [self.cell.datapath, self.variant.fault].into_iter().flatten() {
            // The node as a whole decides how probes go: where it is left to, all that it asks are alike.
            let pods = if self.variant.probes == "auto" { &["a", "b"][..] } else { &["a"] };
            for pod in pods.iter().map(|name| self.pod(name)) {
                let towards = pod.facts.ips.iter().map(|ip| self.source_towards(*ip));
                let fabric = [Ok(IpAddr::from(self.node.v4)), Ok(self.node.v6.into())];
                let sources = towards.chain(fabric).collect::<Result<BTreeSet<_>>>()?;
                faults::at_link(fault, &self.place, &self.host_end(pod)?, pod.name(), &sources)?;
            }
        }
        places::kube_proxy(&self.node, &self.place, self.pod("a"))?;
        self._servers = servers;
        Ok(())
    }

    /// A pod's sandbox as the runtime makes it, with the variant's settings, known to the API server.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sandbox(&self, name: &str) -> Result<Pod> {
        let spec = spec(name);
        self.agent.pods.pod(&spec.facts)?;
        let pod = self.node.sandbox(&spec)?;
        if let Some(value) = self.variant.rp_filter {
            places::reverse_path(&pod.netns, value)?;
        }
        if self.variant.families == Families::V6Disabled {
            for device in ["all", "default", "lo"] {
                pod.netns.sysctl(&format!("ipv6/conf/{device}/disable_ipv6"), "1")?;
            }
        }
        Ok(pod)
    }

    /// The API server shows a pod's addresses, which must be those that ztunnel was told.
    ///
    /// # Errors
    /// When they are others.
    pub fn shown(&self, pod: &Pod) -> Result<()> {
        let expected = addresses(self.cell, self.variant, pod.name())?;
        ensure!(pod.facts.ips == expected, "{} has {:?}, and not {expected:?}", pod.name(), pod.facts.ips);
        let ips = pod.facts.ips.clone();
        self.agent.pods.edit(&pod.facts.uid, |facts| facts.ips = ips)
    }

    /// A pod that runs all the time.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// The name of the host's end of a pod's link.
    ///
    /// # Errors
    /// When it is not there.
    pub fn host_end(&self, pod: &Pod) -> Result<String> {
        let shown = pod.netns.must("ip", &["-o", "link", "show", "dev", "eth0"])?;
        let peer = shown.split('@').nth(1).and_then(|rest| rest.strip_prefix("if"));
        let index = peer.and_then(|rest| rest.split(':').next()).context("eth0 has no peer")?;
        let links = self.place.must("ip", &["-o", "link"])?;
        let line = links.lines().find(|line| line.starts_with(&format!("{index}: ")));
        let name = line.and_then(|line| line.split_whitespace().nth(1)).context("no host end")?;
        Ok(name.trim_end_matches(':').split('@').next().unwrap_or(name).to_owned())
    }

    /// The outside host's addresses that pods reach.
    #[must_use]
    pub fn ways_out(&self) -> Vec<IpAddr> {
        let own = self.pod("a").facts.ips.iter().map(|ip| Self::outside_like(*ip));
        let more = self.cell.addresses.only_out.map(|family| match family.v4() {
            true => IpAddr::from(OUTSIDE_V4),
            false => OUTSIDE_V6.into(),
        });
        own.chain(more).collect()
    }

    /// The address that the node calls a pod from.
    ///
    /// # Errors
    /// When it has no route there.
    fn source_towards(&self, pod: IpAddr) -> Result<IpAddr> {
        let shown = self.node.netns.must("ip", &["-o", "route", "get", &pod.to_string()])?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "src");
        let source = words.nth(1).with_context(|| format!("no source in {shown:?}"))?;
        source.parse().with_context(|| format!("the source in {shown:?}"))
    }

    /// The outside host's address of the family of `like`.
    #[must_use]
    pub fn outside_like(like: IpAddr) -> IpAddr {
        if like.is_ipv4() { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() }
    }
}
