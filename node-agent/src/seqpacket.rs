//! `SOCK_SEQPACKET` over unix sockets, as the plugin's socket and ztunnel's both use it: one packet, one message,
//! with descriptors beside it.
//!
//! Descriptors that arrive are owned before anything is judged, so no bad message leaks one. All calls are
//! cancel-safe: a call that is dropped before it is ready has taken and sent nothing.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

/// How many connections may wait to be accepted: as many as the kernel allows (`net.core.somaxconn`, 4096 by default),
/// since a node starts some hundred pods at once after a reboot. nix takes no number above the C library's `SOMAXCONN`,
/// which is 128 in musl's.
const BACKLOG: Backlog = Backlog::MAXALLOWABLE;
/// Room for the descriptors of one message: a dozen, where one is right, so that a wrong number is seen as such.
const CONTROL_SPACE: usize = 64;

/// A listening socket. Its file is removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct Listener {
    socket: UnixSeqpacketListener,
    file: SocketFile,
}

/// The file of a listening socket: removed when this is dropped, if it is still the one that was made.
#[derive(Debug)]
pub(crate) struct SocketFile(Spot);

/// Where a listening socket can be reached, for as long as its file is the one that was made.
#[derive(Clone, Debug)]
pub struct Spot {
    path: PathBuf,
    id: (u64, u64),
}

/// One accepted connection.
#[derive(Debug)]
pub struct Conn {
    socket: UnixSeqpacket,
}

/// One message, as the kernel gave it.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer. 0 is the end: the peer has closed (or sent an empty packet, which says the same).
    pub len: usize,
    /// The message was longer than the buffer, and the rest is lost (`MSG_TRUNC`).
    pub truncated: bool,
    /// The descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// More descriptors came than there was room for, or this process may open no more (`MSG_CTRUNC`).
    pub ctrl_truncated: bool,
}

/// Who connected, from `SO_PEERCRED`: as it was at `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// The process; 0 when it is outside our pid namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Why a socket could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path is taken by something that we do not remove.
    #[error("{}: there is a {what} where the socket should be; remove it, or configure another path", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
        /// What is there: `directory`, `file`.
        what: &'static str,
    },
    /// Another process listens there.
    #[error("{}: another process answers on this socket; end it first (`ss -xlp` names it)", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// A call failed.
    #[error("{}: {call}: {source}", path.display())]
    Call {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        call: &'static str,
        /// The errno.
        source: io::Error,
    },
}

/// What `recvmsg` writes control messages to; aligned as `struct cmsghdr` must be.
#[repr(align(8))]
struct Control([u8; CONTROL_SPACE]);

impl Listener {
    /// Listens at `path`, whose file gets `mode`. A missing parent directory is made with `dir_mode`; one that is
    /// there is left as it is. A socket file that nobody answers on any more is replaced.
    ///
    /// # Errors
    /// When something other than a dead socket is in the way, or a call fails: the path, the call and the errno.
    pub fn bind(path: &Path, mode: u32, dir_mode: u32) -> Result<Self, ListenError> {
        let (socket, file) = listen(path, SockType::SeqPacket, mode, dir_mode)?;
        let socket = UnixSeqpacketListener::try_from(socket).map_err(|source| ListenError::Call {
            path: path.to_owned(),
            call: "register with the runtime",
            source,
        })?;
        Ok(Self { socket, file })
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// `accept4`'s. `EMFILE`, `ENFILE` and `ENOMEM` leave the connection waiting: the caller pauses before the next call.
    pub async fn accept(&mut self) -> io::Result<Conn> {
        self.socket.accept().await.map(|socket| Conn { socket })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.0.path
    }

    /// By what it can be reached.
    #[must_use]
    pub fn spot(&self) -> Spot {
        self.file.0.clone()
    }
}

impl Spot {
    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there, and still the same.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.is_reachable() {
            // Nothing is lost if it stays: the next start finds that nobody answers there.
            drop(std::fs::remove_file(&self.0.path));
        }
    }
}

impl Conn {
    /// Waits for one message.
    ///
    /// # Errors
    /// `recvmsg`'s; `ECONNRESET` when the peer died with our packets unread.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        let mut control = Control([0; CONTROL_SPACE]);
        let (info, ancillary) = self.socket.recv_with_ancillary(buf, &mut control.0).await?;
        let fds = ancillary
            .into_messages()
            .filter_map(|message| match message {
                OwnedAncillaryMessage::FileDescriptors(fds) => Some(fds),
                OwnedAncillaryMessage::Other(_) => None,
            })
            .flatten()
            .collect();
        Ok(Received {
            len: info.bytes_read(),
            truncated: info.truncated(),
            fds,
            ctrl_truncated: info.ancillary_truncated(),
        })
    }

    /// Sends one message, whole or not at all, with at most one descriptor. The caller may close the descriptor as soon
    /// as this returns: the kernel holds its own reference to what is in flight.
    ///
    /// # Errors
    /// `EINVAL` for an empty message, which the peer would take for the end; `EMSGSIZE`; `EPIPE` when the peer is gone.
    pub async fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty packet would mean the end"));
        }
        let mut control = Control([0; CONTROL_SPACE]);
        let mut ancillary = AncillaryMessageWriter::new(&mut control.0);
        if let Some(fd) = fd {
            ancillary.add_fds([fd]).map_err(|_| io::Error::other("no room for the descriptor"))?;
        }
        let sent = self.socket.send_with_ancillary(bytes, &mut ancillary).await?;
        if sent != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took a part of a packet"));
        }
        Ok(())
    }

    /// Whether a message, or the end, is there to be received now.
    ///
    /// # Errors
    /// `poll`'s.
    pub fn is_readable(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut fds, PollTimeout::ZERO)? > 0)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// `getsockopt`'s.
    pub fn peer_cred(&self) -> io::Result<PeerCred> {
        let cred = self.socket.peer_cred()?;
        Ok(PeerCred { pid: cred.pid().unwrap_or(0), uid: cred.uid(), gid: cred.gid() })
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes a socket that listens at `path`, not blocking and close-on-exec: [`Listener::bind`] for any type of socket.
pub(crate) fn listen(
    path: &Path,
    kind: SockType,
    mode: u32,
    dir_mode: u32,
) -> Result<(OwnedFd, SocketFile), ListenError> {
    let failed = |call| move |source: io::Error| ListenError::Call { path: path.to_owned(), call, source };
    let address = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("socket path"))?;
    if let Some(parent) = path.parent() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(dir_mode).create(parent).map_err(failed("create directory"))?;
    }
    remove_stale(path, &address, kind)?;
    let socket = unix_socket(kind).map_err(failed("socket"))?;
    // Before bind, so that the file never has more than these bits; and after it, as bind applies the umask.
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(mode))
        .map_err(io::Error::from)
        .map_err(failed("fchmod"))?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address).map_err(io::Error::from).map_err(failed("bind"))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("chmod"))?;
    let meta = std::fs::symlink_metadata(path).map_err(failed("stat"))?;
    nix::sys::socket::listen(&socket, BACKLOG).map_err(io::Error::from).map_err(failed("listen"))?;
    Ok((socket, SocketFile(Spot { path: path.to_owned(), id: (meta.dev(), meta.ino()) })))
}

fn unix_socket(kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None)?)
}

/// Removes a socket file that no process listens on. `connect` tells: `ECONNREFUSED` means that the file has no socket
/// behind it (unix(7)); anything else but `ENOENT` means that it has.
fn remove_stale(path: &Path, address: &UnixAddr, socket_type: SockType) -> Result<(), ListenError> {
    let failed = |call| move |source: io::Error| ListenError::Call { path: path.to_owned(), call, source };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat")(error)),
    };
    if !kind.is_socket() {
        let what = if kind.is_dir() {
            "directory"
        } else if kind.is_symlink() {
            "symbolic link"
        } else {
            "file"
        };
        return Err(ListenError::NotASocket { path: path.to_owned(), what });
    }
    let probe = unix_socket(socket_type).map_err(failed("socket"))?;
    match nix::sys::socket::connect(probe.as_raw_fd(), address) {
        Err(nix::errno::Errno::ECONNREFUSED) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove stale socket")(error))
            }
            _ => Ok(()),
        },
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        // Queued, queue full, or a listener of another socket type.
        Ok(()) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EPROTOTYPE) => {
            Err(ListenError::InUse { path: path.to_owned() })
        }
        Err(errno) => Err(failed("connect, to see whether anybody answers")(errno.into())),
    }
}

#[cfg(test)]
mod tests;
