//! A node's power: cut, on, and a reboot.

use super::{Node, PATIENCE, Running, network};
use crate::lab::eventually;
use crate::lab::process::{Launch, binary};
use anyhow::{Context, Result, ensure};
use std::sync::PoisonError;
use std::time::SystemTime;

impl Node {
    /// Cuts the power: everything that runs on the node ends at once, and `/run`, its network and its cgroups are gone.
    ///
    /// # Errors
    /// When it is off already, or a cgroup stays.
    pub fn power_off(&self) -> Result<()> {
        let Running { init, netns, kubelet, kube_proxy, daemon, containerd } =
            std::mem::take(&mut *self.lock());
        let init = init.with_context(|| format!("{} is off", self.name))?;
        init.kill_child(PATIENCE)?;
        // Those that wait for the node's services must outlive them: the kernel ends a pid namespace when all in it
        // have been waited for.
        drop((kubelet, kube_proxy, daemon, containerd));
        self.place.forget_init()?;
        self.cgroups.remove()?;
        netns.map_or(Ok(()), |netns| netns.remove())?;
        // The kernel takes a namespace down in its own time. This end of the link may be gone already.
        let _ = self.fabric.ip(&format!("link del {}\n", self.name));
        Ok(())
    }

    /// Starts the machine, with what is on its disk. Nothing runs on it yet.
    ///
    /// # Errors
    /// When it is on already, or a namespace cannot be made.
    pub fn power_on(&self) -> Result<()> {
        ensure!(self.lock().init.is_none(), "{} is on", self.name);
        // After a reboot they are made anew, in the same places.
        self.place.write_cgroups(&self.cluster_cgroups.below(&self.name)?)?;
        let netns = network::connect(&self.fabric, &self.name, self.index, self.daemon.is_none())?;
        let mut launch = Launch::new(binary("sluice-cluster")?, &netns).arg("boot").arg(self.place.dir());
        launch = launch.arg(&self.name).arg(self.programs.dir());
        let mut init = launch.start(&format!("{}-init", self.name), &self.logs)?;
        let pid = eventually(&format!("{} to boot", self.name), PATIENCE, || {
            init.must_run()?;
            let pid = init.child_pid()?;
            ensure!(self.place.is_booted(), "{} still boots", self.name);
            Ok(pid)
        })
        .map_err(|why| why.context(init.last_words()))?;
        self.place.set_init(pid)?;
        *self.lock() = Running { netns: Some(netns), init: Some(init), ..Running::default() };
        Ok(())
    }

    /// A power cut, and everything started again: containerd, kubelet, kube-proxy, the primary CNI's daemon.
    ///
    /// # Errors
    /// When a part does not come up again.
    pub fn reboot(&self) -> Result<()> {
        self.reboot_after(|| Ok(()))
    }

    /// The same, with something done while it is off: to its disk, or in the cluster that goes on without it.
    ///
    /// # Errors
    /// When a part does not come up again, and those of `meanwhile`.
    pub fn reboot_after(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        self.reboots.lock().unwrap_or_else(PoisonError::into_inner).push(SystemTime::now());
        self.power_off()?;
        let done = meanwhile();
        self.power_on()?;
        self.start_containerd()?;
        self.join()?;
        self.start_daemon()?;
        // Whatever came of it, what follows needs the node.
        done
    }

    /// When it was rebooted.
    #[must_use]
    pub fn reboots(&self) -> Vec<SystemTime> {
        self.reboots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
