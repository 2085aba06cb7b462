//! The pods of a cell, and what istiod would say of them.

use super::axes::Variant;
use super::describe::Cell;
use super::stage::SERVICE;
use super::words;
use crate::lab::pod::PodSpec;
use crate::lab::scene::{MESH, PLAIN, PORT};
use crate::lab::topology::Node;
use crate::lab::xds::Mesh;
use anyhow::{Result, anyhow};
use std::net::IpAddr;

/// The pods, in the order of their ADDs.
pub(super) const PODS: [&str; 5] = ["c", "a", "b", "d", "e"];

/// Which pods there are, as the API server has them.
pub(super) fn spec(name: &str) -> PodSpec {
    let namespace = if ["a", "b", "e"].contains(&name) { MESH } else { PLAIN };
    let mut spec = PodSpec::new(namespace, name);
    spec.facts.probe_ports = vec![PORT];
    spec
}

pub(super) fn number(cell: &Cell, name: &str) -> u8 {
    let position = PODS.iter().position(|pod| *pod == name).and_then(|position| u8::try_from(position).ok());
    cell.addresses.first + position.unwrap_or(u8::MAX)
}

pub(super) fn addresses(cell: &Cell, variant: &Variant, name: &str) -> Result<Vec<IpAddr>> {
    let families = variant.families;
    let patterns = [(&cell.addresses.v4, families.v4()), (&cell.addresses.v6, families.v6())];
    let wanted = patterns.into_iter().filter_map(|(pattern, wanted)| pattern.as_ref().filter(|_| wanted));
    wanted.map(|pattern| words::address(pattern, number(cell, name)).map_err(|why| anyhow!(why))).collect()
}

pub(super) fn mesh(cell: &Cell, variant: &Variant, node: &Node) -> Result<Mesh> {
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
