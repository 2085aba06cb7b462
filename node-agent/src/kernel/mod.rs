//! The seam to the kernel: the only room with setns, netlink, `Command` and unsafe code.
//!
//! Everything above it hands in data ([`KernelOp`]) and gets data back ([`Observation`], [`TcpSocket`]). [`Kernel`] is
//! blocking and has two implementations: `linux::LinuxKernel`, named only by the composition root, and
//! `fake::RecordingKernel` for tests. Callers reach it through [`Pool`], whose threads may enter namespaces.

mod examine;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod hostproc;
pub mod linux;
mod pool;

pub use examine::{Examiner, ThisKernel};
pub use hostproc::HostProc;
pub use linux::watch::{Hint, WatchHandle};
pub use pool::{Pool, catches_panics};

use sluice_shared::cookie::Cookie;
use sluice_shared::ids::NetnsId;
use sluice_shared::istio::Listing;
use sluice_shared::lower::Backend;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{CgroupRef, Flow};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A handle on a network namespace. It keeps the namespace alive, so only pods of the mesh have one for long.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

/// What the agent asks of the kernel. Blocking; every method may be called from any [`Pool`] thread.
pub trait Kernel: Send + Sync + 'static {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// `NotANetns` when the path is missing or no network namespace; `HostNetns` when it is the host's or the agent's.
    fn open(&self, path: &Path) -> Result<Netns, KernelError>;

    /// Takes a descriptor that somebody handed over, with the same checks as [`Kernel::open`].
    ///
    /// # Errors
    /// As for [`Kernel::open`].
    fn adopt(&self, fd: OwnedFd) -> Result<Netns, KernelError>;

    /// Carries out `ops` in order in a pod's namespace, stopping at the first that fails. Each op is atomic, the
    /// sequence is not. Refuses the host's namespace whatever the handle says.
    ///
    /// # Errors
    /// Names the op, the errno and the kernel's or the program's own words.
    fn run(&self, netns: &Netns, ops: &[KernelOp]) -> Result<(), KernelError>;

    /// As [`Kernel::run`], then as [`Kernel::observe`]. Where the kernel counts changes of rules (nf_tables), what is seen
    /// are the rules as these ops committed them: when somebody changes any in between, the ops are carried out again.
    ///
    /// # Errors
    /// As for both; `EBUSY` when others do not cease to change rules meanwhile. What the ops do may then be in force.
    fn apply(&self, netns: &Netns, ops: &[KernelOp]) -> Result<Observation, KernelError> {
        self.run(netns, ops)?;
        self.observe(netns)
    }

    /// Carries out `ops` in the host's namespace. Only the probe strategy `snat` uses it.
    ///
    /// # Errors
    /// `EPERM` is a capability result (some primaries forbid host rules), not a failure of the agent.
    fn run_host(&self, ops: &[KernelOp]) -> Result<(), KernelError>;

    /// Writes our table in the host's namespace whole, and gives what `ops` alone have made of it. `None` when somebody
    /// changed rules at the same time: what is there then may be less than was written.
    ///
    /// # Errors
    /// As for [`Kernel::run_host`] and [`Kernel::observe_host`].
    fn write_host(&self, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError>;

    /// Carries out `ops` in the host's namespace on a table that is exactly `before`, and gives what they alone have made
    /// of it. `None` when the table was another, or somebody changed rules at the same time: the ops may be in force
    /// then, and the table is to be written whole.
    ///
    /// # Errors
    /// As for [`Kernel::run_host`] and [`Kernel::observe_host`].
    fn amend_host(&self, before: Fingerprint, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError>;

    /// Looks at what is in a pod's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or a dump fails.
    fn observe(&self, netns: &Netns) -> Result<Observation, KernelError>;

    /// Looks again. What `before` shows of rules is taken over, unread, while the generation says that nobody has
    /// changed any since.
    ///
    /// # Errors
    /// As for [`Kernel::observe`].
    fn observe_since(&self, netns: &Netns, before: &Observation) -> Result<Observation, KernelError>;

    /// Looks at our table in the host's namespace: its fingerprint, or `None` when it is not there.
    ///
    /// # Errors
    /// When a dump fails.
    fn observe_host(&self) -> Result<Option<Fingerprint>, KernelError>;

    /// Every TCP socket of the namespace, listeners included.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the dump fails.
    fn sockets(&self, netns: &Netns) -> Result<Vec<TcpSocket>, KernelError>;

    /// The connections that the rules in force keep: how a restarted agent learns what its predecessor kept.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the dump fails.
    fn kept_flows(&self, netns: &Netns) -> Result<BTreeSet<Flow>, KernelError>;

    /// What could be istio-cni's in a pod's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or a dump fails.
    fn istio(&self, netns: &Netns) -> Result<Listing, KernelError>;

    /// What could be istio-cni's in the host's namespace.
    ///
    /// # Errors
    /// When a dump fails.
    fn istio_on_host(&self) -> Result<Listing, KernelError>;

    /// The addresses of the namespace's interfaces, loopback left out.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the dump fails.
    fn addresses(&self, netns: &Netns) -> Result<Vec<IpAddr>, KernelError>;

    /// The source that the host's own connections to `pod_ip` have: what the strategy `source` lets pass.
    ///
    /// # Errors
    /// When the host has no route there.
    fn host_source_for(&self, pod_ip: IpAddr) -> Result<IpAddr, KernelError>;

    /// The cgroup v2 of a process: its pod's, which outlives its containers, or its own where it is in no pod.
    ///
    /// # Errors
    /// When it is gone, or lives in no cgroup that a rule could name.
    fn cgroup_of(&self, pid: i32) -> Result<CgroupRef, KernelError>;

    /// The cgroup at a path from the root of the cgroup v2 tree.
    ///
    /// # Errors
    /// When it is not there, or no mount shows the whole tree.
    fn cgroup_at(&self, path: &str) -> Result<CgroupRef, KernelError>;

    /// Has the opening SYNs of sockets that are made in this cgroup carry the cookie of the address that they go to, where
    /// it has one ([`Kernel::give_cookie`]). What a former run attached there is taken over with its cookies; another
    /// cgroup that this run attached to before is left.
    ///
    /// # Errors
    /// When the cgroup is gone, or the kernel or a security module refuses BPF programs or this one.
    fn attach_cookies(&self, kubelet: &CgroupRef) -> Result<Attached, KernelError>;

    /// Takes away what [`Kernel::attach_cookies`] put on this cgroup, in this run or a former one. Says whether there was
    /// anything.
    ///
    /// # Errors
    /// As for [`Kernel::attach_cookies`].
    fn detach_cookies(&self, kubelet: &CgroupRef) -> Result<bool, KernelError>;

    /// Every cookie that is given out, by the address that it is for.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn cookies(&self) -> Result<BTreeMap<IpAddr, Cookie>, KernelError>;

    /// Gives an address a cookie, or takes it away (`None`). Connections that are there, or begin to be, are not touched.
    ///
    /// # Errors
    /// When nothing is attached, or the map is full.
    fn give_cookie(&self, to: IpAddr, cookie: Option<Cookie>) -> Result<(), KernelError>;

    /// A cookie that nobody can guess, given to nobody yet.
    ///
    /// # Errors
    /// When the kernel's random source cannot be read.
    fn new_cookie(&self) -> Result<Cookie, KernelError>;

    /// Both ends of connections that try a way for probes: a listener on an address of the pod's, and two sockets on the
    /// host, of the address from which the host's own connections go there. Nothing is sent yet.
    ///
    /// # Errors
    /// When the pod does not have the address, the host has no route there, or the kernel refuses.
    fn trial(&self, netns: &Netns, address: IpAddr) -> Result<Trial, KernelError>;

    /// Has the agent's own connections carry these cookies, as the kubelet's do by [`Kernel::attach_cookies`], for as long
    /// as what is returned lives.
    ///
    /// # Errors
    /// When the agent has no cgroup of its own, or the kernel refuses.
    fn carry_cookies(&self, given: &[(IpAddr, Cookie)]) -> Result<Box<dyn Send>, KernelError>;

    /// The addresses of the host's interfaces, those of links alone left out.
    ///
    /// # Errors
    /// When the dump fails.
    fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, KernelError>;
}

/// One end of a connection, not connected: its socket, and what it is bound to.
#[derive(Debug)]
pub struct TrialEnd {
    /// It does not block.
    pub socket: OwnedFd,
    /// Its own address and port.
    pub address: SocketAddr,
}

/// The ends of two connections to one listener.
#[derive(Debug)]
pub struct Trial {
    /// In the pod.
    pub listener: TrialEnd,
    /// On the host: for the connection that has a door.
    pub probe: TrialEnd,
    /// On the host: for one that has none, and must be captured.
    pub control: TrialEnd,
}

/// What [`Kernel::attach_cookies`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The program was there, as this run attached it.
    AsItWas,
    /// It was not: it is now.
    Anew,
}

/// Our rules as found, in one number: equal means byte-identical chains, rules, sets and elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// What is in a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Our rules, or `None` when they are not there.
    pub rules: Option<Fingerprint>,
    /// Which backends wrote them: both, where a former run had another one.
    pub written_by: BTreeSet<Backend>,
    /// The namespace's nf_tables generation: equal means that no rule set of anybody's has changed since.
    pub generation: u32,
    /// Whether the policy rule is there, for both families (IPv6 counts as there where the namespace has no IPv6).
    pub policy_rule: bool,
    /// Whether the local route is there, with the same proviso.
    pub local_route: bool,
    /// Whether `lo` is up, looked at when the local route is not there: the route goes with it.
    pub loopback: bool,
    /// Which of ztunnel's TCP ports have a listening socket with ztunnel's mark.
    pub listening: BTreeSet<u16>,
    /// Names of foreign nf_tables tables that translate addresses, and could get at packets before ours.
    pub foreign_nat: Vec<String>,
}

/// A TCP socket, as sock_diag shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Local and remote ends; IPv4-mapped addresses as IPv4.
    pub flow: Flow,
    /// `TCP_LISTEN`, `TCP_ESTABLISHED`, … (include/net/tcp_states.h).
    pub state: u8,
    /// Its `SO_MARK`.
    pub mark: u32,
    /// The cgroup v2 it was made in, where the kernel says.
    pub cgroup: Option<u64>,
}

/// Why the kernel seam could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// What was given is no network namespace.
    #[error("{what} is not a network namespace: {why}")]
    NotANetns {
        /// The path or descriptor.
        what: String,
        /// What it is, or the errno.
        why: String,
    },
    /// What was given is the host's namespace, or the agent's own, in which pods' rules are never written.
    #[error("{what} is the {whose} network namespace ({id}); pods' rules are never written there")]
    HostNetns {
        /// The path or descriptor.
        what: String,
        /// `host's` or `agent's own`.
        whose: &'static str,
        /// Which.
        id: NetnsId,
    },
    /// A call failed.
    #[error("{call}: {source}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    Call {
        /// What was being done, to what.
        call: String,
        /// The errno.
        #[source]
        source: std::io::Error,
        /// The kernel's extended ack, the message's label, or the program's stderr.
        detail: String,
    },
    /// There is no such process any more.
    #[error("process {0} has ended")]
    NoProcess(i32),
    /// The pool has shut down, or one of its threads was lost in a namespace.
    #[error("the kernel threads are gone: {0}")]
    Gone(String),
}

impl KernelError {
    /// Whether somebody has changed rules between the look that led to this and the commit: look again.
    #[must_use]
    pub fn is_overtaken(&self) -> bool {
        matches!(self, Self::Call { source, .. } if source.raw_os_error() == Some(libc::ERESTART))
    }

    /// Whether the kernel said this.
    #[must_use]
    pub fn is_of(&self, kind: std::io::ErrorKind) -> bool {
        matches!(self, Self::Call { source, .. } if source.kind() == kind)
    }

    /// Whether the kernel or a security module refuses this, so that trying again is useless.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Call { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT)
            ),
            Self::NotANetns { .. } | Self::HostNetns { .. } => true,
            Self::Gone(_) | Self::NoProcess(_) => false,
        }
    }
}

impl Netns {
    /// Joins a descriptor with its identity; only the kernel implementations make one.
    #[must_use]
    pub fn new(fd: OwnedFd, id: NetnsId) -> Self {
        Self { fd, id }
    }

    /// Which namespace it is.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
