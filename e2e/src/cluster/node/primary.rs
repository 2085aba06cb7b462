//! What the primary CNI has left on a node, and our plugin behind it.

use super::Node;
use crate::cluster::chain::{self, Form, Primary};
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::path::PathBuf;

impl Node {
    /// Chains our plugin behind the primary CNI, on a node that was made without it.
    ///
    /// # Errors
    /// When a program of ours is not built, or a file cannot be written.
    pub fn chain_sluice(&self) -> Result<()> {
        let bin = self.place.disk("opt/cni/bin");
        chain::install(self.primary, self.index, &self.place.disk("etc/cni/net.d"), &bin, true)
    }

    /// Writes the primary CNI's list as it was before [`Node::chain_sluice`], and takes our plugin off.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn unchain_sluice(&self) -> Result<()> {
        let bin = self.place.disk("opt/cni/bin");
        chain::install(self.primary, self.index, &self.place.disk("etc/cni/net.d"), &bin, false)?;
        match std::fs::remove_file(bin.join("sluice-cni")) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove sluice-cni"),
            _ => Ok(()),
        }
    }

    /// Writes the primary CNI's configuration in another form, in the place of the one that is there.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_primary(&self, form: Form) -> Result<()> {
        chain::write(self.primary, self.index, &self.place.disk("etc/cni/net.d"), form)
    }

    /// Where its primary CNI's configuration is in this form.
    #[must_use]
    pub fn primary_file(&self, form: Form) -> PathBuf {
        self.place.disk("etc/cni/net.d").join(self.primary.file_of(form))
    }

    /// Whether its primary CNI's list is written by the primary's own daemon.
    #[must_use]
    pub fn has_daemons_list(&self) -> bool {
        self.primary == Primary::Cilium
    }

    /// Its primary CNI's network configuration list.
    #[must_use]
    pub fn primary_list(&self) -> PathBuf {
        self.place.disk("etc/cni/net.d").join(self.primary.file_name())
    }
}
