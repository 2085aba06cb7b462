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
use super::describe::{Cell, Families, Fault, Plugins, Secondary, Side};
use super::emulate::Emulation;
use super::faults::{self, Refusal};
use super::side;
use super::words::{self, Kept, Words};
use crate::lab::agent::Agent;
use crate::lab::cni::{Attachment, NetworkList, chains};
use crate::lab::netns::Netns;
use crate::lab::outer::Outer;
use crate::lab::pod::{Pod, PodSpec, addresses_of};
use crate::lab::process::{Launch, Process, binary};
use crate::lab::scene::{MESH, PLAIN, PORT};
use crate::lab::topology::{self, Node, OUTSIDE_V4, OUTSIDE_V6};
use crate::lab::traffic::echo::Echo;
use crate::lab::xds::Mesh;
use crate::lab::ztunnel::Ztunnel;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use sluice_shared::admin::State;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The service of `b` that ztunnel knows, IPv4 and IPv6.
pub const SERVICE: [&str; 2] = ["10.96.0.11", "fd96::11"];
/// A service beyond the mesh, which kube-proxy's rules lead to the outside host.
pub const FOREIGN_SERVICE: [&str; 2] = ["10.96.0.200", "fd96::200"];
/// The node port that kube-proxy's rules lead to `a`.
pub const NODE_PORT: u16 = 30080;
/// Where clouds serve metadata.
pub const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// The way out is narrower than any pod's link, so that large transfers must learn it.
const PATH_MTU: u32 = 1400;
/// The pods, in the order of their ADDs.
const PODS: [&str; 5] = ["c", "a", "b", "d", "e"];
/// Where real plugins are that are not the distribution's, below the build's directory.
const BUILT_PLUGINS: [&str; 2] = ["cluster/bin/cni", "cni/bin"];

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
    /// The probe strategy that is at work.
    pub probes: String,
    _servers: Vec<Echo>,
    _programs: Vec<Process>,
    _refusal: Option<Refusal>,
}

/// The places, before anything of Sluice runs.
struct Places {
    fabric: Netns,
    outside: Netns,
    place: Netns,
    node: Node,
    programs: Vec<Process>,
}

impl<'a> Stage<'a> {
    /// Builds a cell and waits until its pods run and those of the mesh are captured.
    ///
    /// # Errors
    /// What did not come to stand.
    pub fn stand(outer: &Outer, world: &str, cell: &'a Cell, variant: &'a Variant) -> Result<Self> {
        let Places { fabric, outside, place, node, programs } = places(outer, world, cell, variant)?;
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
            probes,
            _servers: Vec::new(),
            _programs: programs,
            _refusal: refusal,
        };
        stage.people()?;
        Ok(stage)
    }

    /// Starts the pods and the servers.
    fn people(&mut self) -> Result<()> {
        let mut servers =
            vec![Echo::start(&self.outside, "outside", PORT)?, Echo::start(&self.fabric, "metadata", 80)?];
        for name in ["c", "a", "b", "d"] {
            let mut pod = self.sandbox(name)?;
            self.node.attach(&mut pod).with_context(|| format!("ADD of {name}"))?;
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
            let a = self.pod("a");
            let sources =
                a.facts.ips.iter().map(|ip| self.source_towards(*ip)).collect::<Result<Vec<_>>>()?;
            faults::at_link(fault, &self.place, &self.host_end(a)?, &sources)?;
        }
        kube_proxy(&self.node, &self.place, self.pod("a"))?;
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
            reverse_path(&pod.netns, value)?;
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

/// Which pods there are, as the API server has them.
fn spec(name: &str) -> PodSpec {
    let namespace = if ["a", "b", "e"].contains(&name) { MESH } else { PLAIN };
    let mut spec = PodSpec::new(namespace, name);
    spec.facts.probe_ports = vec![PORT];
    spec
}

fn number(cell: &Cell, name: &str) -> u8 {
    let position = PODS.iter().position(|pod| *pod == name).and_then(|position| u8::try_from(position).ok());
    cell.addresses.first + position.unwrap_or(u8::MAX)
}

fn addresses(cell: &Cell, variant: &Variant, name: &str) -> Result<Vec<IpAddr>> {
    let families = variant.families;
    let patterns = [(&cell.addresses.v4, families.v4()), (&cell.addresses.v6, families.v6())];
    let wanted = patterns.into_iter().filter_map(|(pattern, wanted)| pattern.as_ref().filter(|_| wanted));
    wanted.map(|pattern| words::address(pattern, number(cell, name)).map_err(|why| anyhow!(why))).collect()
}

fn mesh(cell: &Cell, variant: &Variant, node: &Node) -> Result<Mesh> {
    let mut mesh = Mesh::default();
    for name in PODS {
        let hbone = ["a", "b"].contains(&name);
        mesh = mesh.workload(&node.name, &spec(name), &addresses(cell, variant, name)?, hbone);
        if name == "b" {
            let vips: Vec<IpAddr> = SERVICE.iter().filter_map(|vip| vip.parse().ok()).collect();
            mesh = mesh.service("b", &vips, PORT, PORT);
        }
    }
    Ok(mesh)
}

fn places(outer: &Outer, world: &str, cell: &Cell, variant: &Variant) -> Result<Places> {
    for dir in &cell.forget {
        match std::fs::remove_dir_all(dir) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why.into()),
            _ => {}
        }
    }
    let (fabric, outside) = topology::surroundings(world)?;
    fabric.ip(&format!(
        "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\nlink set outside mtu {PATH_MTU}\n",
        METADATA[0], METADATA[1]
    ))?;
    let router = cell.router.as_ref().map(|_| topology::host(&format!("{world}.router"))).transpose()?;
    let (netns, v4, v6) = topology::on_fabric(world, 1, &fabric)?;
    let mut words = words::of_node(v4, v6, cell.mtu)
        .with("node", netns.name())
        .with("fabric", fabric.name())
        .with("outside", outside.name())
        .with("dir", &topology::directory(outer, world, "node1")?.display());
    if let Some(router) = &router {
        words = words.with("router", router.name());
    }
    if let Some(value) = variant.rp_filter {
        reverse_path(&netns, value)?;
    }
    if let Some(value) = variant.bridge_nf_call {
        for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
            netns.sysctl(key, &value.to_string())?;
        }
    }
    let put = |netns: &Netns, side: &Side| side::apply(netns, &words.put_into_side(side, Kept::ALL));
    put(&fabric, &cell.fabric)?;
    put(&netns, &cell.node)?;
    if let (Some(netns), Some(side)) = (&router, &cell.router) {
        put(netns, side)?;
    }
    for network in &cell.networks {
        let via = if network.contains(':') { v6.to_string() } else { v4.to_string() };
        fabric.ip(&format!("route add {network} via {via}\n"))?;
    }
    let place = if cell.link.at_router { router.context("no router")? } else { netns.clone() };
    let path = plugins(outer, world, cell, variant, &words, &place)?;
    let node = Node::furnish(outer, world, 1, (netns, v4, v6), path, list(outer, world, cell, &words)?)?;
    let programs = company(cell, &words, &node)?;
    Ok(Places { fabric, outside, place, node, programs })
}

/// The list that the primary leaves, with our entry behind.
fn list(outer: &Outer, world: &str, cell: &Cell, words: &Words) -> Result<NetworkList> {
    let mut cell = cell.clone();
    cell.config.text = words.put_into(&cell.config.text);
    let mut list = cell.list().map_err(|why| anyhow!(why))?;
    let dir = topology::directory(outer, world, "node1")?;
    let ours = chains::sluice_entry(&dir.join("run/agent.sock"), &dir.join("state"));
    list.plugins.push(ours.as_object().cloned().context("our entry is no object")?);
    Ok(list)
}

/// Where the chain's plugins are; the emulated one is put there.
fn plugins(
    outer: &Outer,
    world: &str,
    cell: &Cell,
    variant: &Variant,
    words: &Words,
    place: &Netns,
) -> Result<Vec<PathBuf>> {
    let mut path = Vec::new();
    let first = cell.first_plugin().map_err(|why| anyhow!(why))?;
    if cell.plugins == Plugins::Emulated {
        let numbers = PODS.iter().map(|name| ((*name).to_owned(), number(cell, name))).collect();
        let families = (variant.families.v4(), variant.families.v6());
        let dir = topology::directory(outer, world, "node1")?.join("bin");
        Emulation::of(cell, words.clone(), place, families, numbers)?.install(&dir, &first)?;
        path.push(dir);
    }
    path.extend(built_plugins());
    path.push(chains::plugin_dir()?);
    let ours = binary("sluice-cni")?;
    path.push(ours.parent().context("a plugin without a directory")?.to_path_buf());
    Ok(path)
}

/// Where plugins are that this project builds of others' sources, if they have been built.
#[must_use]
pub fn built_plugins() -> Vec<PathBuf> {
    let this = std::env::current_exe().unwrap_or_default();
    let target = this.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    let Some(target) = target else { return Vec::new() };
    BUILT_PLUGINS.iter().map(|below| target.join(below)).filter(|dir| dir.is_dir()).collect()
}

/// Files and programs that the primary has on a node.
fn company(cell: &Cell, words: &Words, node: &Node) -> Result<Vec<Process>> {
    for (path, text) in &cell.files {
        let path = PathBuf::from(words.put_into(path));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(&path, words.put_into(text)).with_context(|| format!("write {}", path.display()))?;
    }
    let mut programs = Vec::new();
    for (name, command) in &cell.programs {
        let (program, arguments) =
            command.split_first().with_context(|| format!("programs.{name}: empty"))?;
        let found = built_plugins().into_iter().map(|dir| dir.join(program)).find(|path| path.is_file());
        let program = found.unwrap_or_else(|| PathBuf::from(program));
        let launch = Launch::new(program, &node.netns)
            .in_cgroup(&node.cgroup(name)?)
            .args(arguments.iter().map(|argument| words.put_into(argument)));
        programs.push(launch.start(name, &node.logs())?);
    }
    Ok(programs)
}

fn reverse_path(netns: &Netns, value: u8) -> Result<()> {
    let devices = netns.run(|| {
        let entries = std::fs::read_dir("/proc/sys/net/ipv4/conf")?;
        Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>())
    })?;
    devices
        .iter()
        .try_for_each(|device| netns.sysctl(&format!("ipv4/conf/{device}/rp_filter"), &value.to_string()))
}

/// Service addresses and a node port as kube-proxy makes them: where pods' packets pass, and on the node.
fn kube_proxy(node: &Node, place: &Netns, pod: &Pod) -> Result<()> {
    let mut rules = format!(
        "ip daddr {} tcp dport {PORT} dnat ip to {OUTSIDE_V4}:{PORT}\n\
         ip6 daddr {} tcp dport {PORT} dnat ip6 to [{OUTSIDE_V6}]:{PORT}\n",
        FOREIGN_SERVICE[0], FOREIGN_SERVICE[1]
    );
    for ip in &pod.facts.ips {
        rules.push_str(&match ip {
            IpAddr::V4(ip) => {
                format!("ip daddr {} tcp dport {NODE_PORT} dnat ip to {ip}:{PORT}\n", node.v4)
            }
            IpAddr::V6(ip) => {
                format!("ip6 daddr {} tcp dport {NODE_PORT} dnat ip6 to [{ip}]:{PORT}\n", node.v6)
            }
        });
    }
    let table = format!(
        "table inet kube-proxy {{\n\
         chain services {{ type nat hook prerouting priority dstnat; {rules} }}\n\
         chain node_ports {{ type nat hook postrouting priority srcnat; \
         meta l4proto tcp ct original proto-dst {NODE_PORT} masquerade; }}\n}}\n"
    );
    let router = (place.name() != node.netns.name()).then_some(place);
    [Some(&node.netns), router].into_iter().flatten().try_for_each(|netns| side::nft(netns, &table))
}
