//! The runtime's word: its status of the pod's sandbox, over its socket. The strongest way, for the runtime made the
//! namespace for this pod.

mod choose;
mod client;
mod message;
mod others;
pub mod verbose;
mod version;

pub use version::version;

use super::batch::Batch;
use super::processes::{Handle, pid_of};
use super::verify::{self, Fit};
use super::{Found, Miss, Neighbours, Wanted, Way};
use crate::kernel::{Kernel, KernelError, Netns, Pool};
use client::{CallError, Client};
use message::{PodSandbox, PodSandboxStatusResponse};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use verbose::Place;

/// Where runtimes listen: containerd, CRI-O, k3s and RKE2, microk8s, k0s, Docker by cri-dockerd.
pub const USUAL_SOCKETS: [&str; 7] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
];

/// How many statuses are asked for at a time: the runtime has other work.
const AT_A_TIME: usize = 8;

/// The node's runtime.
pub(super) struct Runtime {
    sockets: Vec<PathBuf>,
    proc: PathBuf,
    pool: Arc<Pool>,
    batch: Batch<Listing>,
    named: Batch<Vec<others::Named>>,
    calls: Semaphore,
}

/// What the runtime shows, and the connection on which it did.
struct Listing {
    client: Client,
    sandboxes: Vec<PodSandbox>,
}

impl Runtime {
    pub(super) fn new(sockets: Vec<PathBuf>, proc: PathBuf, pool: Arc<Pool>) -> Self {
        let calls = Semaphore::new(AT_A_TIME);
        Self { sockets, proc, pool, batch: Batch::default(), named: Batch::default(), calls }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.sockets.is_empty()
    }

    pub(super) async fn find(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, Miss> {
        if !self.is_on() {
            return Err(Miss::Unknown("off (`criSocket` is empty)".into()));
        }
        let listing = self.batch.get(first_that_shows(&self.sockets)).await.map_err(Miss::Unknown)?;
        let id = choose::sandbox(&listing.sandboxes, wanted, neighbours)?.id.clone();
        let answer = self.status(&id).await?;
        let status = answer.status.as_ref();
        let status = status.ok_or_else(|| Miss::Unknown(format!("it gives no status of sandbox {id}")))?;
        choose::agrees(status, &id, wanted)?;
        let place = verbose::place(&answer.info).map_err(|unreadable| match unreadable {
            verbose::Unreadable::HostNetwork | verbose::Unreadable::OddPath(_) => {
                Miss::No(format!("sandbox {id}: {unreadable}"))
            }
            verbose::Unreadable::Silent | verbose::Unreadable::Malformed(_) => {
                Miss::Unknown(format!("sandbox {id}: {unreadable}"))
            }
        })?;
        let (proc, wanted) = (self.proc.clone(), wanted.clone());
        let found = self.pool.run(move |kernel| Ok(open(kernel, &proc, &place, &wanted))).await;
        let (netns, path) = found.map_err(|error| Miss::Unknown(error.to_string()))??;
        Ok(Found { netns, path, way: Way::Runtime, sandbox: Some(id), aside: Vec::new() })
    }

    /// Asks for a status. When the runtime as a whole does not answer, others need not wait for that too.
    async fn status(&self, id: &str) -> Result<PodSandboxStatusResponse, Miss> {
        let Ok(_turn) = self.calls.acquire().await else {
            return Err(Miss::Unknown("the agent is stopping".into()));
        };
        // What was listed may have been given up while this pod waited for its turn.
        let listing = self.batch.get(first_that_shows(&self.sockets)).await.map_err(Miss::Unknown)?;
        match listing.client.status(id).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let why = error.to_string();
                if error.is_outage() {
                    self.batch.fail(why.clone()).await;
                }
                Err(Miss::Unknown(why))
            }
        }
    }
}

/// The sandboxes of the first runtime that shows any: a node may have one that the kubelet does not use.
async fn first_that_shows(sockets: &[PathBuf]) -> Result<Listing, String> {
    let mut reasons = Vec::new();
    let mut empty = None;
    for socket in sockets {
        let listed = async {
            let client = Client::connect(socket).await?;
            let sandboxes = client.list().await?;
            Ok::<_, CallError>(Listing { client, sandboxes })
        };
        match listed.await {
            Ok(listing) if listing.sandboxes.is_empty() => empty = Some(listing),
            Ok(listing) => return Ok(listing),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    empty.ok_or_else(|| reasons.join(", "))
}

/// Opens the namespace by its path, or, where that leads nowhere from here, by the sandbox's process.
fn open(kernel: &dyn Kernel, proc: &Path, place: &Place, wanted: &Wanted) -> Result<(Netns, PathBuf), Miss> {
    let mut reasons = Vec::new();
    for path in place.path.iter().flat_map(|path| seen_from_here(path)) {
        match kernel.open(&path) {
            Ok(netns) => return check(kernel, netns, path, wanted),
            Err(error @ KernelError::HostNetns { .. }) => return Err(Miss::No(error.to_string())),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    for pid in place.path.iter().filter_map(|path| pid_of(Path::new("/proc"), path)).chain(place.pid) {
        match by_process(kernel, proc, pid, wanted) {
            Ok((netns, path)) => return check(kernel, netns, path, wanted),
            Err(why) => reasons.push(format!("its process {pid}: {why}")),
        }
    }
    let missing = match &place.path {
        Some(path) => {
            let directory = path.parent().unwrap_or(path).display();
            format!("; is the host's {directory} mounted here, with HostToContainer propagation?")
        }
        None if place.pid.is_none() => {
            "it says neither where the namespace is nor which process is in it".into()
        }
        None => String::new(),
    };
    Err(Miss::Unknown(format!("{}{missing}", reasons.join("; "))))
}

fn check(
    kernel: &dyn Kernel,
    netns: Netns,
    path: PathBuf,
    wanted: &Wanted,
) -> Result<(Netns, PathBuf), Miss> {
    let addresses = kernel.addresses(&netns).map_err(|error| Miss::Unknown(error.to_string()))?;
    match verify::fit(&wanted.ips, &addresses) {
        Fit::Some | Fit::All => Ok((netns, path)),
        Fit::None => Err(Miss::No(format!(
            "{}, which it names as the pod's, has none of the pod's addresses {:?}",
            path.display(),
            wanted.ips
        ))),
    }
}

/// The sandbox's process, if it is in the pod's cgroup: it may have ended, and its number may be another's by now.
fn by_process(
    kernel: &dyn Kernel,
    proc: &Path,
    pid: u32,
    wanted: &Wanted,
) -> Result<(Netns, PathBuf), String> {
    let there = || format!("is {} the host's /proc? (`hostProc`)", proc.display());
    let process = Handle::open(proc, pid).map_err(|error| format!("{error}; {}", there()))?;
    let netns = process.netns(kernel)?;
    if !process.pods()?.contains(&wanted.uid) {
        return Err(format!("it is not in the pod's cgroup; {}", there()));
    }
    Ok((netns, process.path(proc)))
}

/// The paths that may lead here to where one leads on the host. There `/var/run` is a link to `/run`; in a container it
/// may not be. The host's /proc is not this one.
fn seen_from_here(path: &Path) -> Vec<PathBuf> {
    if path.starts_with("/proc") {
        return Vec::new();
    }
    let linked = path.strip_prefix("/var/run").map(|below| Path::new("/run").join(below));
    std::iter::once(path.to_owned()).chain(linked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_paths_are_found_from_a_container_too() {
        let seen = |path: &str| seen_from_here(Path::new(path));
        assert_eq!(seen("/var/run/netns/a"), ["/var/run/netns/a", "/run/netns/a"].map(PathBuf::from));
        assert_eq!(seen("/run/docker/netns/a"), [PathBuf::from("/run/docker/netns/a")]);
        assert!(seen("/proc/7/ns/net").is_empty());
    }
}
