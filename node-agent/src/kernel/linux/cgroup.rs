//! Which cgroup v2 a process lives in: whose sockets the rules trust.
//!
//! Levels and paths count from the root of the cgroup namespace of whoever writes the rule (nf_tables since 6.11,
//! xt_cgroup since 6.0), and so do the paths in procfs of whoever reads them. A container has a cgroup namespace of its
//! own, so the threads that write rules and read cgroups move to that of the host's first process. On a machine that is
//! the initial one; on a node that is itself a container it is the node's, whose root is the node's cgroup.

use crate::kernel::hostproc::UNKNOWN;
use crate::kernel::{HostProc, KernelError};
use nix::sched::{CloneFlags, setns};
use sluice_shared::plan::CgroupRef;
use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/cgroup";

thread_local! {
    /// Whether this thread is there; `None` before it has tried.
    static IN_HOSTS_NAMESPACE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Moves the calling thread to the host's cgroup namespace, for good. Only what it writes and reads about cgroups
/// changes by that, not which cgroup it is in.
fn enter_hosts_namespace(proc: &HostProc) -> Result<(), KernelError> {
    if IN_HOSTS_NAMESPACE.get() == Some(true) {
        return Ok(());
    }
    let path = proc.of(1, "ns/cgroup");
    let enter = || -> io::Result<()> {
        let own = fs::metadata(OWN_NAMESPACE)?.ino();
        let host = File::open(&path)?;
        if host.metadata()?.ino() != own {
            setns(host, CloneFlags::CLONE_NEWCGROUP)?;
        } else if own != INITIAL_NAMESPACE && proc.is_a_containers() {
            return Err(io::Error::other("the first process is the agent itself"));
        }
        IN_HOSTS_NAMESPACE.set(Some(true));
        Ok(())
    };
    enter().map_err(|source| KernelError::Call {
        call: format!("enter the host's cgroup namespace by {}", path.display()),
        source,
        detail: "the agent needs CAP_SYS_ADMIN, CAP_SYS_PTRACE, and hostPID or the host's /proc as hostProc"
            .into(),
    })
}

/// As [`enter_hosts_namespace`], tried once a thread. Where it fails the agent can learn of no cgroup that a rule could
/// name, and says so when it is asked for one.
pub(super) fn prefer_hosts_namespace(proc: &HostProc) {
    if IN_HOSTS_NAMESPACE.get().is_none() {
        IN_HOSTS_NAMESPACE.set(Some(enter_hosts_namespace(proc).is_ok()));
    }
}

/// The cgroup of a process: its pod's, which outlives its containers, or its own where it is in no pod.
///
/// # Errors
/// When there is no cgroup v2 tree, when the process is at its root (as on nodes whose pods live in cgroup v1), or when
/// it is gone.
pub fn of_process(proc: &HostProc, pid: i32) -> Result<CgroupRef, KernelError> {
    enter_hosts_namespace(proc)?;
    let failed = |source: io::Error, detail: &str| KernelError::Call {
        call: format!("find the cgroup of process {pid}"),
        source,
        detail: detail.into(),
    };
    if pid == UNKNOWN {
        let why = "the kernel cannot name it: that takes Linux 6.5 (SO_PEERPIDFD), or hostPID for the agent";
        return Err(failed(not_found(), why));
    }
    let file = proc.of(pid, "cgroup");
    let listed = fs::read_to_string(&file).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => KernelError::NoProcess(pid),
        _ => failed(error, &file.display().to_string()),
    })?;
    let path = path_in(&listed).ok_or_else(|| failed(not_found(), "it is in no cgroup v2 of this host"))?;
    let path = pod_of(path);
    if path.is_empty() {
        return Err(failed(
            not_found(),
            "it is at the root of the cgroup v2 tree: pods live in cgroup v1 here",
        ));
    }
    at_path(proc, path)
}

/// The calling process's own cgroup, as [`at_path`]; `None` at the root of the host's tree, or outside of it.
///
/// # Errors
/// As for [`at_path`].
pub(super) fn own(proc: &HostProc) -> Result<Option<CgroupRef>, KernelError> {
    enter_hosts_namespace(proc)?;
    let listed = fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default();
    let path = path_in(&listed).filter(|path| !path.is_empty());
    path.map(|path| at_path(proc, path)).transpose()
}

/// Opens the directory of a cgroup: the very one, or none.
///
/// # Errors
/// As for [`at_path`], and when another has taken its place.
pub(super) fn open(proc: &HostProc, cgroup: &CgroupRef) -> Result<File, KernelError> {
    enter_hosts_namespace(proc)?;
    let open = || {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let mount = mount_point(&mounts).ok_or_else(not_found)?;
        let directory = File::open(mount.join(&cgroup.path))?;
        if directory.metadata()?.ino() == cgroup.id { Ok(directory) } else { Err(not_found()) }
    };
    open().map_err(|source| KernelError::Call {
        call: format!("open the cgroup /{}", cgroup.path),
        source,
        detail: "is it gone?".into(),
    })
}

/// The cgroup at a path from the root of the host's cgroup v2 tree.
///
/// # Errors
/// When no mount shows the whole tree, or the directory is not there.
pub fn at_path(proc: &HostProc, path: &str) -> Result<CgroupRef, KernelError> {
    enter_hosts_namespace(proc)?;
    directory(path).map_err(|source| KernelError::Call {
        call: format!("find the cgroup /{}", path.trim_matches('/')),
        source,
        detail: "is the host's cgroup v2 tree mounted here?".into(),
    })
}

fn directory(path: &str) -> io::Result<CgroupRef> {
    let path = path.trim_matches('/');
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mount = mount_point(&mounts).ok_or_else(not_found)?;
    let id = fs::metadata(mount.join(path))?.ino();
    let level = path.split('/').filter(|part| !part.is_empty()).count() as u32;
    Ok(CgroupRef { level, id, path: path.into() })
}

/// Where the whole cgroup v2 tree is mounted (proc_pid_mountinfo(5)): `36 35 0:31 ROOT POINT … - cgroup2 …`. ROOT is
/// told from the reader's cgroup namespace: `/` is that namespace's own root, whatever is above it.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (filesystem.starts_with("cgroup2 ") && root == "/").then(|| Path::new(&unescaped(point)).to_owned())
    })
}

/// The kernel writes space, tab, newline and backslash as octal numbers.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// The line of cgroup v2 (cgroups(7)): hierarchy 0, no controllers.
fn path_in(proc_cgroup: &str) -> Option<&str> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A deleted cgroup says so after its path.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path).trim_matches('/');
    // Outside of the namespace's root.
    (!path.starts_with("..")).then_some(path)
}

/// Cuts a container's path down to its pod's: `kubepods/burstable/pod<uid>/…`, or with systemd's names
/// `…/kubepods-burstable-pod<uid>.slice/…`.
fn pod_of(path: &str) -> &str {
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        let is_pod =
            part.strip_prefix("kubepods-").map_or(part, |rest| rest.rsplit('-').next().unwrap_or(rest));
        if path.starts_with("kubepods") || path.contains("/kubepods") || path.contains("kubelet") {
            let is_slice = part.ends_with(".slice") && part.contains("-pod");
            if is_slice || (is_pod.starts_with("pod") && is_pod.len() > "pod".len()) {
                return &path[..end];
            }
        }
        end += 1;
    }
    path
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_tree_is_found_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw shared:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        let containers_own = "41 31 0:38 /kubepods/x /sys/fs/cgroup ro - cgroup2 cgroup ro\n\
                              52 31 0:38 / /host/cgroup ro - cgroup2 cgroup ro\n";
        assert_eq!(mount_point(containers_own), Some(PathBuf::from("/host/cgroup")));
        assert_eq!(mount_point("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }

    #[test]
    fn the_v2_line_counts() {
        assert_eq!(path_in("9:name=systemd:/a\n0::/kubepods/podx/c\n"), Some("kubepods/podx/c"));
        assert_eq!(path_in("0::/gone (deleted)\n"), Some("gone"));
        assert_eq!(path_in("0::/../other\n"), None);
        assert_eq!(path_in("1:cpu:/a\n"), None);
    }

    #[test]
    fn a_container_is_trusted_as_its_pod() {
        let uid = "0d7f2a3c_95fb_4d4e_8f2e_2ad2ed1f2a0b";
        let systemd = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
        assert_eq!(pod_of(&format!("{systemd}/cri-containerd-abc.scope")), systemd);
        let cgroupfs = format!("kubepods/besteffort/pod{uid}");
        assert_eq!(pod_of(&format!("{cgroupfs}/abc")), cgroupfs);
        let kind = format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid}.slice");
        assert_eq!(pod_of(&format!("{kind}/cri-containerd-abc.scope")), kind);
        assert_eq!(pod_of("system.slice/podman.service"), "system.slice/podman.service");
        assert_eq!(pod_of("sluice-test/ztunnel"), "sluice-test/ztunnel");
    }
}
