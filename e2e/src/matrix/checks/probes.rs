//! The kubelet's door, and who else stands before it.

use crate::lab::cgroup::Cgroup;
use crate::lab::outer::Outer;
use crate::lab::scene::PORT;
use crate::lab::traffic::dial::Dial;
use crate::lab::traffic::load::Path;
use crate::matrix::stage::{NODE_PORT, Stage};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr};

fn from_node(stage: &Stage<'_>, cgroup: &Cgroup, to: IpAddr) -> Result<(Path, SocketAddr)> {
    let dial = Dial::to(SocketAddr::new(to, PORT)).recognised().patience(stage.patience);
    let client = dial.ask_in(&stage.node.netns, cgroup, "GET /healthz")?;
    let path = if client.answer.is_direct() { Path::Direct } else { Path::Proxied };
    Ok((path, client.answer.seen))
}

pub fn kubelet(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let mut all = Vec::new();
    for ip in &stage.pod("a").facts.ips {
        let (path, seen) =
            from_node(stage, &stage.node.kubelet, *ip).with_context(|| format!("a probe to {ip}"))?;
        ensure!(path == Path::Direct, "a probe to {ip} is {path:?}, seen from {seen}");
        all.push(format!("{ip}: seen from {seen}"));
    }
    ensure!(!all.is_empty(), "there was nothing to look at");
    Ok(all.join("; "))
}

pub fn others(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let mut all = Vec::new();
    for ip in &stage.pod("a").facts.ips {
        let (path, seen) = from_node(stage, &stage.node.other, *ip)?;
        ensure!(path == Path::Proxied, "another process of the node → {ip} is {path:?}, seen from {seen}");
        all.push(format!("another process → {ip}: seen from {seen}"));
        let node = SocketAddr::new(stage.node.address_like(*ip), NODE_PORT);
        let answer =
            Dial::to(node).recognised().patience(stage.patience).ask(&stage.outside, "by the node port")?;
        ensure!(answer.server == "a", "{node} was answered by {}", answer.server);
        ensure!(!answer.is_direct(), "outside → {node} reached the application itself, from {}", answer.seen);
        all.push(format!("outside → {node}: seen from {}", answer.seen));
    }
    ensure!(!all.is_empty(), "there was nothing to look at");
    Ok(all.join("; "))
}
