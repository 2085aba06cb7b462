//! The runtime's bind mounts: containerd and CRI-O keep each sandbox's namespace alive by a file in `/run/netns`, Docker
//! in `/run/docker/netns`. They say nothing of whose it is: only the pod's address does.

use super::batch::Batch;
use super::verify::{self, Candidate, Unfit};
use super::{Found, Miss, Neighbours, Wanted, Way};
use crate::kernel::{Kernel, KernelError, Pool};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many files of one directory are looked at: far more than a node has pods.
const MAX_FILES: usize = 4096;

/// What is in the directories.
pub(super) struct Mounts {
    directories: Vec<PathBuf>,
    pool: Arc<Pool>,
    batch: Batch<Vec<Candidate>>,
}

impl Mounts {
    pub(super) fn new(directories: Vec<PathBuf>, pool: Arc<Pool>) -> Self {
        Self { directories, pool, batch: Batch::default() }
    }

    pub(super) async fn find(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, Miss> {
        if self.directories.is_empty() {
            return Err(Miss::Unknown("off (`netnsDirs` is empty)".into()));
        }
        let all = self.batch.get(self.look()).await.map_err(Miss::Unknown)?;
        let chosen = verify::only(&all, wanted, neighbours).map_err(|unfit| self.miss(&unfit))?.clone();
        let ips = wanted.ips.clone();
        let opened = self.pool.run(move |kernel| reopen(kernel, &chosen, &ips)).await;
        let (netns, path) =
            opened.map_err(|error| Miss::Unknown(error.to_string()))?.map_err(Miss::Unknown)?;
        Ok(Found { netns, path, way: Way::BindMount, sandbox: None, aside: Vec::new() })
    }

    fn miss(&self, unfit: &Unfit) -> Miss {
        let names: Vec<_> = self.directories.iter().map(|dir| dir.display().to_string()).collect();
        let missing = match unfit {
            Unfit::Nowhere { .. } => "; are these the host's, mounted with HostToContainer propagation?",
            Unfit::Ambiguous { .. } | Unfit::Shared { .. } => "",
        };
        Miss::Unknown(format!("in {}: {unfit}{missing}", names.join(", ")))
    }

    async fn look(&self) -> Result<Vec<Candidate>, String> {
        let directories = self.directories.clone();
        let found = self.pool.run(move |kernel| Ok(candidates(kernel, &directories))).await;
        found.map_err(|error| error.to_string())?
    }
}

/// Every namespace in the directories, each once. What is no pod's network namespace is passed over: the host's own,
/// other files, other kinds of namespaces.
fn candidates(kernel: &dyn Kernel, directories: &[PathBuf]) -> Result<Vec<Candidate>, String> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut seen = HashSet::new();
    let mut missing = Vec::new();
    for directory in directories {
        let files = match std::fs::read_dir(directory) {
            Ok(files) => files,
            Err(error) => {
                missing.push(format!("{}: {error}", directory.display()));
                continue;
            }
        };
        for file in files.flatten().take(MAX_FILES) {
            // A link leads somewhere else by the time it is followed; a bind mount is a plain file.
            if !file.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let path = file.path();
            let Ok(netns) = kernel.open(&path) else { continue };
            if seen.insert(netns.id())
                && let Ok(addresses) = kernel.addresses(&netns)
            {
                found.push(Candidate { path, netns: netns.id(), addresses });
            }
        }
    }
    if missing.len() == directories.len() {
        return Err(format!("{}; mount the host's with HostToContainer propagation", missing.join(", ")));
    }
    Ok(found)
}

/// Opens the candidate again, which was seen a moment ago, and makes sure that it is what it was.
fn reopen(
    kernel: &dyn Kernel,
    chosen: &Candidate,
    ips: &[std::net::IpAddr],
) -> Result<Result<(crate::kernel::Netns, PathBuf), String>, KernelError> {
    let netns = kernel.open(&chosen.path)?;
    let changed = |path: &Path| Ok(Err(format!("{} has changed while it was looked at", path.display())));
    if netns.id() != chosen.netns {
        return changed(&chosen.path);
    }
    match verify::fit(ips, &kernel.addresses(&netns)?) {
        verify::Fit::None => changed(&chosen.path),
        verify::Fit::Some | verify::Fit::All => Ok(Ok((netns, chosen.path.clone()))),
    }
}
