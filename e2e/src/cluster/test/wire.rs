//! Captures of everything that begins a connection: on the fabric, and on every interface of every node, since pods of
//! one node meet there.

use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::lab::capture::{Capture, Packets};
use anyhow::{Context, Result};
use std::path::Path;

/// Running captures.
#[derive(Debug)]
pub struct Wire {
    captures: Vec<(String, Capture)>,
}

impl Wire {
    /// Listens on the fabric and on every node.
    ///
    /// # Errors
    /// When a capture cannot be started.
    pub fn everywhere(cluster: &Cluster, dir: &Path) -> Result<Self> {
        Self::on(cluster, dir, |_| true)
    }

    /// Listens everywhere but on this node: what its power cut does not end.
    ///
    /// # Errors
    /// When a capture cannot be started.
    pub fn everywhere_but_on(node: &Node, cluster: &Cluster, dir: &Path) -> Result<Self> {
        Self::on(cluster, dir, |other| other.name() != node.name())
    }

    fn on(cluster: &Cluster, dir: &Path, which: impl Fn(&Node) -> bool) -> Result<Self> {
        let capture = Capture::of_beginnings(cluster.fabric(), "any", dir);
        let mut captures = vec![("the fabric".to_owned(), capture.context("capture on the fabric")?)];
        for node in cluster.nodes().iter().filter(|node| which(node)) {
            let capture = Capture::of_beginnings(&node.netns()?, "any", dir);
            captures.push((node.name().to_owned(), capture.context("capture on a node")?));
        }
        Ok(Self { captures })
    }

    /// Ends the captures; what all of them saw.
    ///
    /// # Errors
    /// When one of them lost packets, since then an absence proves nothing.
    pub fn close(self) -> Result<Packets> {
        let mut all = Packets::default();
        for (place, capture) in self.captures {
            all.0.extend(capture.stop().with_context(|| format!("the capture on {place}"))?.0);
        }
        Ok(all)
    }
}
