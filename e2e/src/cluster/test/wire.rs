//! Captures of everything that begins a connection: on the fabric, and on every interface of every node, since pods of
//! one node meet there.

use crate::cluster::Cluster;
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
        let mut wire = Self::on_the_fabric(cluster, dir)?;
        for node in cluster.nodes() {
            let capture = Capture::of_beginnings(&node.netns()?, "any", dir);
            wire.captures.push((node.name().to_owned(), capture.context("capture on a node")?));
        }
        Ok(wire)
    }

    /// Listens on the fabric only: what a node's power cut does not end.
    ///
    /// # Errors
    /// When the capture cannot be started.
    pub fn on_the_fabric(cluster: &Cluster, dir: &Path) -> Result<Self> {
        let capture =
            Capture::of_beginnings(cluster.fabric(), "any", dir).context("capture on the fabric")?;
        Ok(Self { captures: vec![("the fabric".to_owned(), capture)] })
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
