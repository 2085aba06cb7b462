//! The network namespaces of pods that nobody has vouched for: those that ran before the agent did, or before the plugin
//! was in the chain.
//!
//! Three ways, from the strongest word to the weakest: the runtime's answer ([`cri`]), its bind mounts ([`mounts`]), and
//! the pod's processes ([`processes`]). What each finds is checked before anything is done there ([`verify`]): a network
//! namespace, not the host's nor the agent's own, with the pod's address. The runtime's "no" ends the search; a way that
//! cannot tell leaves it to the next, and where only an address speaks, the runtime may still say that the namespace is
//! another's. (The agent's own journal comes before all of them: `reconcile`, with [`again`].)

mod again;
mod batch;
pub mod cgroup;
pub mod cri;
mod mounts;
mod processes;
pub mod verify;

use crate::kernel::{Netns, Pool};
pub use again::Stale;
use cri::Runtime;
use mounts::Mounts;
use processes::Processes;
use sluice_shared::ids::{PodRef, PodUid};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The runtime's sockets, in the order in which they are tried: the first that shows any sandbox counts.
    pub cri_sockets: Vec<PathBuf>,
    /// The directories of the runtime's bind mounts.
    pub netns_dirs: Vec<PathBuf>,
    /// The host's /proc.
    pub host_proc: PathBuf,
}

/// A pod that runs, and whose namespace is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub uid: PodUid,
    /// By name.
    pub pod: PodRef,
    /// Its addresses; never empty.
    pub ips: Vec<IpAddr>,
}

/// What the agent knows of the node's other pods.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// Which of them has an address. Pods that are done with the network have none.
    pub addresses: HashMap<IpAddr, PodUid>,
    /// All of them.
    pub known: HashSet<PodUid>,
    /// Whether the source has shown every one. Until then anybody may be a pod of this node.
    pub complete: bool,
}

/// A pod's namespace.
#[derive(Debug)]
pub struct Found {
    /// It, opened.
    pub netns: Netns,
    /// Where it was.
    pub path: PathBuf,
    /// Who says that it is the pod's.
    pub way: Way,
    /// The runtime's id of the sandbox, where the runtime was asked.
    pub sandbox: Option<String>,
    /// What else was there, and was left aside.
    pub aside: Vec<String>,
}

/// Who says which namespace is a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// The runtime, over its socket.
    Runtime,
    /// The pod's address, in one of the runtime's bind mounts.
    BindMount,
    /// Processes in the pod's cgroup.
    Processes,
}

/// Why one way led nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It cannot tell: the next way is asked.
    Unknown(String),
    /// It says no, and the other ways know less: there is nothing to be adopted now.
    No(String),
}

/// Why a namespace was not found: every way that was tried, and its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", say(tried))]
pub struct NotFound {
    /// In the order of the search.
    pub tried: Vec<(Way, String)>,
}

/// Finds namespaces. One for the agent: pods that look at the same time share what is asked of the runtime and read
/// from /proc.
pub struct Finder {
    host_proc: PathBuf,
    runtime: Runtime,
    mounts: Mounts,
    processes: Processes,
    pool: Arc<Pool>,
}

impl Finder {
    /// A finder that looks there, and opens namespaces on the threads of `pool`.
    #[must_use]
    pub fn new(settings: Settings, pool: Arc<Pool>) -> Self {
        let Settings { cri_sockets, netns_dirs, host_proc } = settings;
        Self {
            runtime: Runtime::new(cri_sockets, host_proc.clone(), Arc::clone(&pool)),
            mounts: Mounts::new(netns_dirs, Arc::clone(&pool)),
            processes: Processes::new(host_proc.clone(), Arc::clone(&pool)),
            host_proc,
            pool,
        }
    }

    /// Whether a path is a process's way to its namespace: it ends with the process, though the namespace may live on.
    #[must_use]
    pub fn is_of_a_process(&self, path: &Path) -> bool {
        path.starts_with(&self.host_proc)
    }

    /// Whether there is a runtime to be asked.
    #[must_use]
    pub fn has_runtime(&self) -> bool {
        self.runtime.is_on()
    }

    /// What the runtime alone says of a pod's namespace.
    ///
    /// # Errors
    /// [`Miss::Unknown`] when it does not answer, or not clearly.
    pub async fn ask_runtime(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, Miss> {
        self.runtime.find(wanted, neighbours).await
    }

    /// Finds the namespace of a pod.
    ///
    /// # Errors
    /// Says what was tried and why it did not lead to one.
    pub async fn find(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, NotFound> {
        let mut tried = Vec::new();
        for way in [Way::Runtime, Way::BindMount, Way::Processes] {
            let result = match way {
                Way::Runtime => self.runtime.find(wanted, neighbours).await,
                Way::BindMount => self.by_address(wanted, neighbours).await,
                Way::Processes => self.processes.find(wanted, neighbours).await,
            };
            match result {
                Ok(found) => return Ok(found),
                Err(Miss::Unknown(why)) => tried.push((way, why)),
                Err(Miss::No(why)) => {
                    tried.push((way, why));
                    break;
                }
            }
        }
        Err(NotFound { tried })
    }

    /// The bind mount with the pod's address, unless the runtime names it, or the address, for another pod: what the
    /// source shows of an address may be old.
    async fn by_address(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, Miss> {
        let found = self.mounts.find(wanted, neighbours).await?;
        match self.runtime.names_for_another(&found.path, wanted).await {
            Some(whose) => Err(Miss::Unknown(format!("{} {whose}", found.path.display()))),
            None => Ok(found),
        }
    }
}

impl Neighbours {
    /// Whether this may be another pod of the node.
    #[must_use]
    pub fn may_include(&self, uid: &PodUid) -> bool {
        !self.complete || self.known.contains(uid)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "the runtime",
            Self::BindMount => "bind mounts",
            Self::Processes => "processes",
        })
    }
}

fn say(tried: &[(Way, String)]) -> String {
    let reasons: Vec<_> = tried.iter().map(|(way, why)| format!("{way}: {why}")).collect();
    format!("its network namespace was not found; {}", reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_said_in_order() {
        let tried = vec![(Way::Runtime, "off".to_owned()), (Way::Processes, "none".to_owned())];
        let said = NotFound { tried }.to_string();
        assert_eq!(said, "its network namespace was not found; the runtime: off; processes: none");
    }
}
