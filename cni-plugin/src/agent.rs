//! The agent's socket: one connection, one question, one answer, one deadline.

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use sluice_shared::cni::code;
use sluice_shared::wire::{MAX_MESSAGE, Reply, Request, Verb, WIRE_VERSION};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Why there is no answer to go by.
#[derive(Debug)]
pub struct NoAnswer {
    /// In words, to follow "the Sluice agent".
    pub why: String,
    /// The code of an error that comes from it: 11, or 103 when somebody answered and was not understood.
    pub code: u32,
}

/// Asks, and waits for the answer until `timeout` has passed.
pub fn ask(
    path: &str,
    verb: Verb,
    netns: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<Reply, NoAnswer> {
    let deadline = Instant::now() + timeout;
    let message = encode(verb)?;
    let late = || absent(format!("does not answer on {path} (waited {} ms)", timeout.as_millis()));
    let failed = |call: &str, e: Errno| match e {
        Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINPROGRESS => late(),
        _ => absent(format!("cannot be reached on {path} ({call}: {})", e.desc())),
    };
    let socket = open().map_err(|e| failed("socket", e))?;
    let left = || remaining(deadline);
    let wait = left().ok_or_else(late)?;
    setsockopt(&socket, SendTimeout, &wait).map_err(|e| failed("setsockopt", e))?;
    let address = UnixAddr::new(path).map_err(|e| failed("address", e))?;
    again(|| connect(socket.as_raw_fd(), &address)).map_err(|e| failed("connect", e))?;
    again(|| send(&socket, &message, netns)).map_err(|e| failed("send", e))?;

    let mut reply = vec![0; MAX_MESSAGE];
    let wait = left().ok_or_else(late)?;
    setsockopt(&socket, ReceiveTimeout, &wait).map_err(|e| failed("setsockopt", e))?;
    // With MSG_TRUNC the length is the message's, also when the buffer is shorter (recv(2)).
    let length = again(|| recv(socket.as_raw_fd(), &mut reply, MsgFlags::MSG_TRUNC))
        .map_err(|e| failed("receive", e))?;
    understand(&reply, length, path)
}

/// Says something that is not answered. Never waits.
pub fn tell(path: &str, verb: Verb) -> Result<(), Errno> {
    let message = encode(verb).map_err(|_| Errno::EMSGSIZE)?;
    let socket = open()?;
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    send(&socket, &message, None)
}

fn open() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn encode(verb: Verb) -> Result<Vec<u8>, NoAnswer> {
    let request = Request { version: WIRE_VERSION, verb };
    let message = serde_json::to_vec(&request).unwrap_or_default();
    if message.is_empty() || message.len() > MAX_MESSAGE {
        let why = format!(
            "cannot be asked: the message has {} bytes, and the most is {MAX_MESSAGE}",
            message.len()
        );
        return Err(NoAnswer { why, code: code::IO_FAILURE });
    }
    Ok(message)
}

fn send(socket: &OwnedFd, message: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let fds = netns.map(|fd| [fd.as_raw_fd()]);
    let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(message)], rights.as_slice(), flags, None)?;
    Ok(())
}

fn understand(reply: &[u8], length: usize, path: &str) -> Result<Reply, NoAnswer> {
    let puzzling = |why: String| NoAnswer { why, code: code::WIRE_VERSION };
    if length == 0 {
        return Err(absent(format!("hung up on {path} without an answer")));
    }
    let Some(text) = reply.get(..length) else {
        return Err(puzzling(format!("answered on {path} with {length} bytes, more than {MAX_MESSAGE}")));
    };
    match serde_json::from_slice(text) {
        Ok(Reply::Error { code: code::WIRE_VERSION, msg, .. }) => {
            Err(puzzling(format!("does not understand this plugin ({msg})")))
        }
        Ok(reply) => Ok(reply),
        Err(e) => Err(puzzling(format!("answered on {path} with something that is no answer ({e})"))),
    }
}

fn absent(why: String) -> NoAnswer {
    NoAnswer { why, code: code::TRY_AGAIN_LATER }
}

/// What is left until `deadline`; `None` when it has passed, since a zero timeout would mean for ever (socket(7)).
fn remaining(deadline: Instant) -> Option<TimeVal> {
    let left = deadline.saturating_duration_since(Instant::now()).as_micros();
    (left > 0).then(|| TimeVal::microseconds(i64::try_from(left).unwrap_or(i64::MAX)))
}

/// A stopped and continued process sees EINTR on sockets with a timeout, handlers or not (signal(7)).
fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
