//! What a service manager does on a node: a service has a cgroup of its own, and ends with it.

use super::{Node, PATIENCE, Running};
use crate::lab::hierarchies::Subtree;
use crate::lab::process::{Launch, Process, binary};
use anyhow::{Result, bail};

impl Node {
    /// The cgroup of a service of the node.
    ///
    /// # Errors
    /// When the node is off, or the kernel refuses.
    pub fn service(&self, service: &str) -> Result<Subtree> {
        self.cgroups.below(&of_service(service))
    }

    /// A program on the node, in a cgroup below the node's.
    pub(super) fn launch<S: AsRef<std::ffi::OsStr>>(&self, cgroup: &str, program: &[S]) -> Result<Launch> {
        let launch = Launch::new(binary("sluice-cluster")?, &self.fabric);
        let launch = launch.arg("enter").arg(self.place.dir()).arg("--cgroup").arg(cgroup).arg("--");
        Ok(launch.args(program))
    }

    /// Starts a service of the node, as a service manager does: in a cgroup of its own.
    pub(super) fn start<S: AsRef<std::ffi::OsStr>>(&self, service: &str, program: &[S]) -> Result<Process> {
        let launch = self.launch(&of_service(service), program)?;
        launch.start(&format!("{}-{service}", self.name), &self.logs)
    }

    pub(super) fn kill(
        &self,
        what: &str,
        which: impl FnOnce(&mut Running) -> &mut Option<Process>,
    ) -> Result<()> {
        let Some(process) = which(&mut self.lock()).take() else {
            bail!("{what} does not run on {}", self.name)
        };
        process.kill_child(PATIENCE).map(drop)
    }
}

/// Where a service manager has a service, below the node's cgroup.
fn of_service(service: &str) -> String {
    format!("system.slice/{service}.service")
}
