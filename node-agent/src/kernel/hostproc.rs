//! The host's processes, through a procfs of the host's pid namespace: `/proc` itself with hostPID, elsewhere a mount of
//! the host's `/proc` in the agent's container.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The agent's own procfs.
const OWN: &str = "/proc";
/// As [`HostProc::peer`] calls a process that has ended.
pub const ENDED: i32 = -1;
/// As [`HostProc::peer`] calls a process that cannot be named.
pub const UNKNOWN: i32 = 0;

/// Where it is mounted. Every pid here is one of that procfs's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProc(PathBuf);

impl HostProc {
    /// The procfs at this mount point.
    #[must_use]
    pub fn at(mount: impl Into<PathBuf>) -> Self {
        Self(mount.into())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.0
    }

    /// A file of a process.
    #[must_use]
    pub fn of(&self, pid: i32, file: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(file)
    }

    /// Whether it shows the agent as the first process: then it is the procfs of a container, not of a host.
    pub(super) fn is_a_containers(&self) -> bool {
        fs::read_link(self.0.join("self")).is_ok_and(|own| own == Path::new("1"))
    }

    /// The cgroups of a process (cgroups(7)), as seen from the agent's own cgroup namespace.
    ///
    /// # Errors
    /// `read`'s; there is no such file once the process has ended.
    pub fn cgroups(&self, pid: i32) -> io::Result<String> {
        fs::read_to_string(self.of(pid, "cgroup"))
    }

    /// Root's processes of one of these names (`comm`), the oldest first.
    #[must_use]
    pub fn named(&self, names: &[&str]) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found: Vec<i32> = pids
            .filter(|pid| {
                let name = fs::read_to_string(self.of(*pid, "comm")).unwrap_or_default();
                names.contains(&name.trim_end())
                    && fs::metadata(self.of(*pid, "")).is_ok_and(|process| process.uid() == 0)
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// The process at the other end of a connected Unix socket, as it was at `connect`; [`ENDED`], or [`UNKNOWN`] where
    /// the kernel has no `SO_PEERPIDFD` (Linux 6.5) and the agent another pid namespace.
    ///
    /// # Errors
    /// `getsockopt`'s, and when this procfs does not show the agent.
    pub fn peer(&self, socket: BorrowedFd<'_>) -> io::Result<i32> {
        match peer_pidfd(socket) {
            Ok(pidfd) => {
                let shown = self.0.join("self/fdinfo").join(pidfd.as_raw_fd().to_string());
                let shown = fs::read_to_string(&shown)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", shown.display())))?;
                Ok(pid_in(&shown).unwrap_or(UNKNOWN))
            }
            // It has ended, and has been waited for.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(ENDED),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                // Pids of another namespace would be mistaken for the host's.
                if self.0 == Path::new(OWN) { peer_pid(socket) } else { Ok(UNKNOWN) }
            }
            Err(error) => Err(error),
        }
    }
}

impl Default for HostProc {
    fn default() -> Self {
        Self::at(OWN)
    }
}

/// `SO_PEERCRED`'s pid: one of the caller's own pid namespace.
fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let credentials = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(credentials.pid())
}

/// `SO_PEERPIDFD` (unix(7)), which names a process in no namespace at all.
fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "no crate that we have knows this option")]
    // SAFETY: the kernel writes at most `length` bytes to `pidfd`, which is of that size; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "the kernel hands over a descriptor as a number")]
    // SAFETY: on success it is a new descriptor, which nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// The line `Pid:` of a pidfd (proc_pid_fdinfo(5)): in the namespace of the procfs it is read from, -1 for a process that
/// has ended, 0 for one outside of that namespace.
fn pid_in(fdinfo: &str) -> Option<i32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_is_found_by_its_pidfd() {
        let (here, _there) = UnixStream::pair().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(HostProc::default().peer(here.as_fd()).unwrap(), own);
        assert_eq!(peer_pid(here.as_fd()).unwrap(), own);
    }

    #[test]
    fn a_pidfd_says_whose_it_is() {
        assert_eq!(pid_in("pos:\t0\nflags:\t02000002\nPid:\t4711\nNSpid:\t4711\t8\n"), Some(4711));
        assert_eq!(pid_in("Pid:\t-1\n"), Some(ENDED));
        assert_eq!(pid_in("pos:\t0\n"), None);
    }

    #[test]
    fn processes_are_found_by_name() {
        let proc = HostProc::default();
        let own = i32::try_from(std::process::id()).unwrap();
        let name = fs::read_to_string(proc.of(own, "comm")).unwrap();
        let is_root = fs::metadata(proc.of(own, "")).unwrap().uid() == 0;
        assert_eq!(proc.named(&["no such process", name.trim_end()]).contains(&own), is_root);
        assert!(proc.named(&["no such process"]).is_empty());
    }
}
