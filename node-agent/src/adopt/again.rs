//! Whether a namespace that was a pod's before is still there, and is still the pod's. The number of a process comes again,
//! and so does a namespace's inode, sooner than one thinks: path and inode alone say nothing of whose it is.

use super::processes::{Handle, pid_of};
use super::verify::{self, Fit};
use super::{Finder, Neighbours, Wanted, cgroup};
use crate::kernel::{Kernel, Netns};
use sluice_shared::ids::{NetnsId, PodUid};
use std::path::Path;

/// Why a namespace is not had again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// It cannot be opened, or not be looked into.
    #[error("{0}")]
    Closed(String),
    /// What is there is not the pod's.
    #[error("{0}: not the pod's")]
    Anothers(String),
}

impl Finder {
    /// Opens a namespace that was found, or vouched for, before: it must be the same one and have an address of the pod's
    /// (where any is known), and the process that leads to it must be in the pod's cgroup.
    ///
    /// # Errors
    /// Says what is there instead.
    pub async fn open_again(
        &self,
        path: &Path,
        was: NetnsId,
        wanted: &Wanted,
        neighbours: &Neighbours,
    ) -> Result<Netns, Stale> {
        // Where a runtime gave the path of a process, it is that of the host.
        let pid = pid_of(&self.host_proc, path).or_else(|| pid_of(Path::new("/proc"), path));
        let (proc, path) = (self.host_proc.clone(), path.to_owned());
        let (wanted, neighbours) = (wanted.clone(), neighbours.clone());
        let opened = self.pool.run(move |kernel| {
            let netns = match pid {
                Some(pid) => by_process(kernel, &proc, pid, &wanted, &neighbours),
                None => kernel.open(&path).map_err(|error| Stale::Closed(error.to_string())),
            };
            Ok(netns.and_then(|netns| same(kernel, netns, &path, was, &wanted)))
        });
        opened.await.unwrap_or_else(|error| Err(Stale::Closed(error.to_string())))
    }
}

fn by_process(
    kernel: &dyn Kernel,
    proc: &Path,
    pid: u32,
    wanted: &Wanted,
    neighbours: &Neighbours,
) -> Result<Netns, Stale> {
    let closed = |why: String| Stale::Closed(why);
    let process = Handle::open(proc, pid).map_err(|error| closed(format!("process {pid}: {error}")))?;
    let netns = process.netns(kernel).map_err(closed)?;
    let is_known = |uid: &PodUid| neighbours.may_include(uid);
    match cgroup::belongs(&process.pods().map_err(closed)?, &wanted.uid, is_known) {
        true => Ok(netns),
        false => Err(Stale::Anothers(format!("process {pid} is not in the pod's cgroup"))),
    }
}

fn same(
    kernel: &dyn Kernel,
    netns: Netns,
    path: &Path,
    was: NetnsId,
    wanted: &Wanted,
) -> Result<Netns, Stale> {
    let path = path.display();
    if netns.id() != was {
        return Err(Stale::Anothers(format!("{path} was {was} and is {} now", netns.id())));
    }
    if wanted.ips.is_empty() {
        return Ok(netns);
    }
    let found = kernel.addresses(&netns).map_err(|error| Stale::Closed(error.to_string()))?;
    match verify::fit(&wanted.ips, &found) {
        Fit::None => Err(Stale::Anothers(format!("{path} has none of the pod's addresses {:?}", wanted.ips))),
        Fit::Some | Fit::All => Ok(netns),
    }
}
