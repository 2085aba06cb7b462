//! Network namespaces: what one is, which one it is, and the only place that enters one.

use crate::kernel::pool::{lose_thread, thread_is_lost};
use crate::kernel::{KernelError, Netns};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use sluice_shared::ids::NetnsId;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The calling thread's own namespace.
pub(super) const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// The namespaces in which pods' rules are never written, and the way home.
#[derive(Debug)]
pub(super) struct Namespaces {
    own: Netns,
    host: Netns,
}

/// Brings the thread home when it goes out of scope, by a panic too. If that fails the thread is lost.
struct WayHome<'a>(BorrowedFd<'a>);

impl Namespaces {
    /// Remembers the calling thread's namespace as the agent's own and the one at `host` as the host's.
    pub(super) fn new(host: &Path) -> Result<Self, KernelError> {
        Ok(Self { own: open_any(Path::new(OWN_NETNS))?, host: open_any(host)? })
    }

    pub(super) fn host_id(&self) -> NetnsId {
        self.host.id()
    }

    pub(super) fn own_id(&self) -> NetnsId {
        self.own.id()
    }

    pub(super) fn host(&self) -> &Netns {
        &self.host
    }

    /// Opens a pod's namespace.
    pub(super) fn open(&self, path: &Path) -> Result<Netns, KernelError> {
        self.refuse_ours(open_any(path)?, &path.display().to_string())
    }

    /// Takes a pod's namespace that somebody handed over.
    pub(super) fn adopt(&self, fd: OwnedFd) -> Result<Netns, KernelError> {
        let what = "the descriptor that was handed over";
        self.refuse_ours(identified(fd, what)?, what)
    }

    /// Runs `work` in a pod's namespace. Whatever the handle says, it is looked at again here, so that pods' rules
    /// cannot get into the host's namespace.
    pub(super) fn enter_pod<T>(
        &self,
        netns: &Netns,
        work: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let id = identity(netns.as_fd()).map_err(|source| KernelError::Call {
            call: format!("look at {}", netns.id()),
            source,
            detail: String::new(),
        })?;
        self.refuse(id, &netns.id().to_string())?;
        self.enter(netns, work)
    }

    /// Runs `work` in the host's namespace.
    pub(super) fn enter_host<T>(
        &self,
        work: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        if self.host.id() == self.own.id() {
            return at_home(work);
        }
        self.enter(&self.host, work)
    }

    fn enter<T>(
        &self,
        netns: &Netns,
        work: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        at_home(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| KernelError::Call {
                call: format!("enter {}", netns.id()),
                source: errno.into(),
                detail: "the agent needs CAP_SYS_ADMIN".into(),
            })?;
            let way_home = WayHome(self.own.as_fd());
            let result = work();
            drop(way_home);
            result
        })
        .and_then(|value| refuse_lost_thread().map(|()| value))
    }

    fn refuse_ours(&self, netns: Netns, what: &str) -> Result<Netns, KernelError> {
        self.refuse(netns.id(), what)?;
        Ok(netns)
    }

    fn refuse(&self, id: NetnsId, what: &str) -> Result<(), KernelError> {
        let whose = match id {
            id if id == self.host.id() => "host's",
            id if id == self.own.id() => "agent's own",
            _ => return Ok(()),
        };
        Err(KernelError::HostNetns { what: what.into(), whose, id })
    }
}

impl Drop for WayHome<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "a kernel thread cannot leave a pod's network namespace and is given up");
            lose_thread();
        }
    }
}

fn at_home<T>(work: impl FnOnce() -> Result<T, KernelError>) -> Result<T, KernelError> {
    refuse_lost_thread()?;
    work()
}

fn refuse_lost_thread() -> Result<(), KernelError> {
    if thread_is_lost() {
        return Err(KernelError::Gone("this thread could not leave a pod's network namespace".into()));
    }
    Ok(())
}

/// Opens a namespace, the host's included.
pub(super) fn open_any(path: &Path) -> Result<Netns, KernelError> {
    let what = path.display().to_string();
    // What is there may be anything: a FIFO would wait for a writer.
    match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => identified(file.into(), &what),
        Err(error) => Err(KernelError::NotANetns { what, why: error.to_string() }),
    }
}

fn identified(fd: OwnedFd, what: &str) -> Result<Netns, KernelError> {
    let not_a_netns = |why: String| KernelError::NotANetns { what: what.into(), why };
    match namespace_type(fd.as_fd()) {
        Ok(libc::CLONE_NEWNET) => {}
        Ok(other) => return Err(not_a_netns(format!("it is a namespace of another type ({other:#x})"))),
        // What every other kind of file says to this ioctl.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            return Err(not_a_netns("it is not a namespace".into()));
        }
        Err(error) => return Err(not_a_netns(error.to_string())),
    }
    let id = identity(fd.as_fd()).map_err(|error| not_a_netns(error.to_string()))?;
    Ok(Netns::new(fd, id))
}

fn identity(fd: BorrowedFd<'_>) -> io::Result<NetnsId> {
    let stat = fstat(fd)?;
    Ok(NetnsId { dev: stat.st_dev, inode: stat.st_ino })
}

/// `NS_GET_NSTYPE` (ioctl_nsfs(2)): the `CLONE_NEW*` flag of the namespace.
fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "nsfs ioctls have no safe wrapper")]
    // SAFETY: this ioctl takes no argument and touches no memory of ours; the descriptor is borrowed, so it is open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}
