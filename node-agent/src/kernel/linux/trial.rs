//! Both ends of a connection that tries a way for probes: a listener in a pod, and sockets on the host that will connect to
//! it. Each socket stays in the namespace where it was made, so whoever has it needs to enter none.

use super::bpf::{Map, Program};
use super::cgroup;
use super::cookies::{self, Cookies};
use crate::kernel::{HostProc, KernelError, TrialEnd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use sluice_shared::cookie::{self, Cookie};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The names of the program and the map: not those of the kubelet's, which a successor takes over.
const PROGRAM: &str = "sluice_trial";
/// Cookies of this many addresses at most; a test asks a few pods.
const ADDRESSES: u32 = 64;

/// A listener on an address of the calling thread's namespace, on a port that nobody else has.
pub(super) fn listener(on: IpAddr) -> Result<TrialEnd, KernelError> {
    let open = || {
        let listener = TcpListener::bind((on, 0))?;
        listener.set_nonblocking(true)?;
        Ok(TrialEnd { address: listener.local_addr()?, socket: listener.into() })
    };
    open().map_err(failed(format!("listen on {on} in the pod")))
}

/// A socket that is to connect, from an address of the calling thread's namespace and a port that nobody else has.
pub(super) fn connector(from: IpAddr) -> Result<TrialEnd, KernelError> {
    let open = || {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        let socket = TcpStream::from(socket);
        Ok(TrialEnd { address: socket.local_addr()?, socket: socket.into() })
    };
    open().map_err(failed(format!("make a socket of {from} on the host")))
}

fn failed(call: String) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Call { call, source, detail: String::new() }
}

/// The program that writes cookies, on the agent's own cgroup. Dropping it takes it off. It goes with the container too.
#[derive(Debug)]
pub(super) struct OwnStamp {
    directory: File,
    program: Program,
    _map: Cookies,
}

impl OwnStamp {
    /// Has the agent's own connections to these addresses carry these cookies.
    pub(super) fn attach(proc: &HostProc, given: &[(IpAddr, Cookie)]) -> Result<Self, KernelError> {
        let own = cgroup::own(proc)?.ok_or_else(|| KernelError::Call {
            call: "try cookies".into(),
            source: io::Error::from_raw_os_error(libc::ENOENT),
            detail: "the agent is in no cgroup of its own, but at the root of the tree".into(),
        })?;
        let directory = cgroup::open(proc, &own)?;
        // A former run that was killed in the middle may have left one.
        cookies::detach_named(directory.as_fd(), PROGRAM)?;
        let map: Cookies = Map::create(PROGRAM, ADDRESSES)?;
        for (to, cookie) in given {
            map.set(&cookie::key(*to), &cookie.option())?;
        }
        let program = Program::load(PROGRAM, &cookie::program(map.number()))?;
        program.attach(directory.as_fd(), None)?;
        Ok(Self { directory, program, _map: map })
    }
}

impl Drop for OwnStamp {
    fn drop(&mut self) {
        if let Err(error) = self.program.detach(self.directory.as_fd()) {
            tracing::warn!(%error, "the program that tried cookies stays on the agent's own cgroup until that ends");
        }
    }
}
