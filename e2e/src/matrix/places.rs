//! The places of a cell, as the primary CNI leaves them, before anything of Sluice runs.

use super::axes::Variant;
use super::describe::{Cell, Plugins, Side};
use super::emulate::Emulation;
use super::pods::{PODS, number};
use super::programs::{built_plugins, company};
use super::side;
use super::stage::{FOREIGN_SERVICE, METADATA, NODE_PORT};
use super::words::{self, Kept, Words};
use crate::lab::cni::{NetworkList, chains};
use crate::lab::netns::Netns;
use crate::lab::outer::Outer;
use crate::lab::pod::Pod;
use crate::lab::process::{Process, binary};
use crate::lab::scene::PORT;
use crate::lab::topology::{self, Node, OUTSIDE_V4, OUTSIDE_V6};
use anyhow::{Context, Result, anyhow};
use std::net::IpAddr;
use std::path::PathBuf;

/// The way out is narrower than any pod's link, so that large transfers must learn it.
const PATH_MTU: u32 = 1400;

/// The places, before anything of Sluice runs.
pub(super) struct Places {
    pub fabric: Netns,
    pub outside: Netns,
    pub place: Netns,
    pub node: Node,
    pub programs: Vec<Process>,
}

pub(super) fn places(outer: &Outer, world: &str, cell: &Cell, variant: &Variant) -> Result<Places> {
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

pub(super) fn reverse_path(netns: &Netns, value: u8) -> Result<()> {
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
pub(super) fn kube_proxy(node: &Node, place: &Netns, pod: &Pod) -> Result<()> {
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
