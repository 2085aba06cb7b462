//! A pod's processes, by their cgroup: the last way, which needs nothing of the runtime's, but the host's /proc.
//!
//! A process can be in its pod's cgroup and in any namespace (a debugging tool that entered another, a privileged
//! container), and in the pod's namespace without being of the pod (`nsenter`). So the namespaces of all of a pod's
//! processes are candidates, and the one with the pod's address is taken; the rest is said.

use super::batch::Batch;
use super::verify::{self, Candidate};
use super::{Found, Miss, Neighbours, Wanted, Way, cgroup};
use crate::kernel::{Kernel, Netns, Pool};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use sluice_shared::ids::{NetnsId, PodUid};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many processes of one namespace are tried, when those that were seen have ended meanwhile.
const TRIES: usize = 4;
/// How many namespaces of one pod's processes are looked into.
const MAX_NAMESPACES: usize = 16;
/// How much of a file of /proc is read: cgroup v1 has a dozen lines, of a few hundred bytes each.
const MAX_FILE: u64 = 64 * 1024;

/// The host's processes.
pub(super) struct Processes {
    proc: PathBuf,
    pool: Arc<Pool>,
    batch: Batch<Vec<Process>>,
}

/// A process of some pod's.
#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    /// When it began, in clock ticks since the boot.
    started: u64,
    netns: NetnsId,
    /// The pods that its cgroup names, the outermost first.
    pods: Vec<PodUid>,
}

/// A process that cannot become another one: /proc answers through this handle for this process or not at all.
pub(super) struct Handle {
    directory: OwnedFd,
    pid: u32,
}

impl Processes {
    pub(super) fn new(proc: PathBuf, pool: Arc<Pool>) -> Self {
        Self { proc, pool, batch: Batch::default() }
    }

    pub(super) async fn find(&self, wanted: &Wanted, neighbours: &Neighbours) -> Result<Found, Miss> {
        let proc = self.proc.clone();
        let look = async {
            let scanned = tokio::task::spawn_blocking(move || scan(&proc)).await;
            scanned.unwrap_or_else(|error| Err(error.to_string()))
        };
        let all = self.batch.get(look).await.map_err(Miss::Unknown)?;
        let is_known = |uid: &PodUid| neighbours.may_include(uid);
        let ours = |process: &&Process| cgroup::belongs(&process.pods, &wanted.uid, is_known);
        let ours: Vec<Process> = all.iter().filter(ours).cloned().collect();
        if ours.is_empty() {
            let proc = self.proc.display();
            let why = match all.is_empty() {
                true => format!("no process of any pod is in {proc}; is it the host's /proc? (`hostProc`)"),
                false => format!("none in {proc} is in its cgroup"),
            };
            return Err(Miss::Unknown(why));
        }
        let (proc, wanted, neighbours) = (self.proc.clone(), wanted.clone(), neighbours.clone());
        let found = self.pool.run(move |kernel| Ok(choose(kernel, &proc, &ours, &wanted, &neighbours))).await;
        found.map_err(|error| Miss::Unknown(error.to_string()))?.map_err(Miss::Unknown)
    }
}

/// Among the namespaces of a pod's processes, the one with the pod's address.
fn choose(
    kernel: &dyn Kernel,
    proc: &Path,
    processes: &[Process],
    wanted: &Wanted,
    neighbours: &Neighbours,
) -> Result<Found, String> {
    let mut by_netns: BTreeMap<NetnsId, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        by_netns.entry(process.netns).or_default().push(process);
    }
    let mut opened: Vec<(Candidate, Netns)> = Vec::new();
    let mut aside = Vec::new();
    for (id, mut members) in by_netns.into_iter().take(MAX_NAMESPACES) {
        // The oldest is the one that holds the sandbox, where there is such a one: it lives longest.
        members.sort_by_key(|process| (process.started, process.pid));
        let mut why = String::new();
        let mut tries = members.iter().take(TRIES);
        let found = tries.find_map(|process| {
            enter(kernel, proc, process, wanted, neighbours).inspect_err(|error| why.clone_from(error)).ok()
        });
        match found {
            Some(found) => opened.push(found),
            None => aside.push(format!("{id} of process {}: {why}", members[0].pid)),
        }
    }
    let candidates: Vec<Candidate> = opened.iter().map(|(candidate, _)| candidate.clone()).collect();
    let chosen = verify::only(&candidates, wanted, neighbours).map_err(|unfit| {
        let mut said = vec![format!("of the namespaces of its processes: {unfit}")];
        said.extend(aside.iter().cloned());
        said.join("; ")
    })?;
    let (chosen, id) = (chosen.path.clone(), chosen.netns);
    let mut taken = None;
    for (candidate, netns) in opened {
        match candidate.netns == id {
            true => taken = Some(netns),
            false => aside.push(format!("{} has none of its addresses", candidate.path.display())),
        }
    }
    match taken {
        Some(netns) => Ok(Found { netns, path: chosen, way: Way::Processes, sandbox: None, aside }),
        None => Err("its namespace is gone".into()),
    }
}

/// Opens a process's namespace, and makes sure that it is still the process, in the pod and in that namespace, which
/// was seen.
fn enter(
    kernel: &dyn Kernel,
    proc: &Path,
    process: &Process,
    wanted: &Wanted,
    neighbours: &Neighbours,
) -> Result<(Candidate, Netns), String> {
    let handle = Handle::open(proc, process.pid).map_err(|error| error.to_string())?;
    let netns = handle.netns(kernel)?;
    if netns.id() != process.netns {
        return Err("it has moved to another namespace".into());
    }
    let is_known = |uid: &PodUid| neighbours.may_include(uid);
    if !cgroup::belongs(&handle.pods()?, &wanted.uid, is_known) {
        return Err("it is no longer in the pod's cgroup".into());
    }
    let addresses: Vec<IpAddr> = kernel.addresses(&netns).map_err(|error| error.to_string())?;
    Ok((Candidate { path: handle.path(proc), netns: netns.id(), addresses }, netns))
}

impl Handle {
    /// Takes hold of a process.
    pub(super) fn open(proc: &Path, pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(&proc.join(pid.to_string()), flags, Mode::empty())?;
        Ok(Self { directory, pid })
    }

    /// Opens its network namespace.
    pub(super) fn netns(&self, kernel: &dyn Kernel) -> Result<Netns, String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let opened =
            openat(&self.directory, "ns/net", flags, Mode::empty()).map_err(|errno| match errno {
                nix::errno::Errno::EACCES | nix::errno::Errno::EPERM => {
                    format!(
                        "ns/net of process {}: {errno}: the agent needs CAP_SYS_PTRACE for that",
                        self.pid
                    )
                }
                errno => format!("ns/net of process {}: {errno}", self.pid),
            })?;
        kernel.adopt(opened).map_err(|error| error.to_string())
    }

    /// The pods that its cgroup names.
    pub(super) fn pods(&self) -> Result<Vec<PodUid>, String> {
        let text = self.read("cgroup").map_err(|error| format!("cgroup of process {}: {error}", self.pid))?;
        Ok(cgroup::pods(&text))
    }

    /// Where its namespace is found by others.
    pub(super) fn path(&self, proc: &Path) -> PathBuf {
        proc.join(self.pid.to_string()).join("ns/net")
    }

    fn netns_id(&self) -> io::Result<NetnsId> {
        let stat = fstatat(&self.directory, "ns/net", nix::fcntl::AtFlags::empty())?;
        Ok(NetnsId { dev: stat.st_dev, inode: stat.st_ino })
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let opened = openat(&self.directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(opened).take(MAX_FILE).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// `<proc>/<pid>/ns/net` → pid
pub(super) fn pid_of(proc: &Path, path: &Path) -> Option<u32> {
    let below = path.strip_prefix(proc).ok()?;
    let pid = below.components().next()?;
    let rest = below.strip_prefix(pid).ok()?;
    (rest == Path::new("ns/net")).then_some(pid)?.as_os_str().to_str()?.parse().ok()
}

/// Every process of a pod's. One that ends meanwhile is no error.
fn scan(proc: &Path) -> Result<Vec<Process>, String> {
    let entries = std::fs::read_dir(proc).map_err(|error| format!("{}: {error}", proc.display()))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(handle) = Handle::open(proc, pid) else { continue };
        let Ok(pods) = handle.pods() else { continue };
        if pods.is_empty() {
            continue;
        }
        let (Ok(stat), Ok(netns)) = (handle.read("stat"), handle.netns_id()) else { continue };
        found.push(Process { pid, started: started(&stat).unwrap_or(u64::MAX), netns, pods });
    }
    Ok(found)
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). The name, which is the process's own to choose, ends at the last
/// parenthesis.
fn started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_lie_about_its_age_by_its_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(started(&format!("12 (a) S 1 1 ) 9 9) {fields}")), Some(4711));
        assert_eq!(started("12 (a"), None);
        assert_eq!(started("12 (a) S"), None);
    }

    #[test]
    fn a_path_names_its_process() {
        for (path, pid) in [
            ("/host/proc/7/ns/net", Some(7)),
            ("/host/proc/self/ns/net", None),
            ("/host/proc/7/ns/mnt", None),
            ("/host/proc", None),
            ("/proc/7/ns/net", None),
        ] {
            assert_eq!(pid_of(Path::new("/host/proc"), Path::new(path)), pid, "{path}");
        }
    }
}
