//! The agent's socket: one connection, one question, one answer, one deadline.

use nix::errno::Errno;
use nix::sys::socket::sockopt::{GetStruct, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv,
    sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::{getsockopt_impl, libc};
use sluice_shared::cni::code;
use sluice_shared::wire::{MAX_MESSAGE, Reply, Request, Verb, WIRE_VERSION};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// An agent that has not so much as read the question by then hangs. One that has read it may have reason to take longer.
const HUNG_AFTER: Duration = Duration::from_secs(2);
/// `SK_MEMINFO_WMEM_ALLOC` (include/uapi/linux/sock_diag.h)
const WMEM_ALLOC: usize = 2;

/// `SO_MEMINFO` (socket(7)): what the socket's buffers hold.
#[derive(Clone, Copy)]
struct MemInfo;

getsockopt_impl!(MemInfo, libc::SOL_SOCKET, libc::SO_MEMINFO, [u32; 9], GetStruct<[u32; 9]>);

/// Why there is no answer to go by.
#[derive(Debug)]
pub struct NoAnswer {
    /// In words, to follow "the Sluice agent".
    pub why: String,
    /// The code of an error that comes from it: 11, or 103 when somebody answered and was not understood.
    pub code: u32,
}

/// How long a question, asked as often as need be, may take in all.
#[derive(Clone, Copy)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// From now on.
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// Asks, and waits for the answer until `deadline`.
pub fn ask(
    path: &str,
    verb: &Verb,
    netns: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> Result<Reply, NoAnswer> {
    ask_unless_hung(path, verb, netns, deadline, || false)
}

/// As [`ask`]. When the agent hangs, `give_up` says whether that is reason enough to wait no longer.
pub fn ask_unless_hung(
    path: &str,
    verb: &Verb,
    netns: Option<BorrowedFd<'_>>,
    Deadline { at: deadline, limit }: Deadline,
    give_up: impl Fn() -> bool,
) -> Result<Reply, NoAnswer> {
    let began = Instant::now();
    let message = encode(verb)?;
    let late = || absent(format!("does not answer on {path} (waited {} ms)", limit.as_millis()));
    let hung = || {
        let waited = HUNG_AFTER.as_millis();
        absent(format!("hangs: it has not read the question on {path} within {waited} ms"))
    };
    let failed = |call: &str, e: Errno| match e {
        _ if is_timeout(e) => late(),
        _ => absent(format!("cannot be reached on {path} ({call}: {})", e.desc())),
    };
    let socket = open().map_err(|e| failed("socket", e))?;
    let address = UnixAddr::new(path).map_err(|e| failed("address", e))?;
    // First until it must be taken for hung, then, if need be, to the end.
    let mut until = deadline.min(began + HUNG_AFTER);
    loop {
        let wait = remaining(until).ok_or_else(late)?;
        setsockopt(&socket, SendTimeout, &wait).map_err(|e| failed("setsockopt", e))?;
        match again(|| connect(socket.as_raw_fd(), &address)) {
            Ok(()) => break,
            // Nobody takes the connections that wait already.
            Err(e) if is_timeout(e) && until < deadline => {
                if give_up() {
                    return Err(hung());
                }
                until = deadline;
            }
            Err(e) => return Err(failed("connect", e)),
        }
    }
    again(|| send(&socket, &message, netns)).map_err(|e| failed("send", e))?;

    let mut reply = vec![0; MAX_MESSAGE];
    loop {
        let wait = remaining(until).ok_or_else(late)?;
        setsockopt(&socket, ReceiveTimeout, &wait).map_err(|e| failed("setsockopt", e))?;
        // With MSG_TRUNC the length is the message's, also when the buffer is shorter (recv(2)).
        match again(|| recv(socket.as_raw_fd(), &mut reply, MsgFlags::MSG_TRUNC)) {
            Ok(length) => return understand(&reply, length, path),
            Err(e) if is_timeout(e) && until < deadline => {
                if is_unread(&socket) && give_up() {
                    return Err(hung());
                }
                until = deadline;
            }
            Err(e) => return Err(failed("receive", e)),
        }
    }
}

fn is_timeout(e: Errno) -> bool {
    matches!(e, Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINPROGRESS)
}

/// Whether the peer has yet to receive what was sent: it is charged to the sender until then.
fn is_unread(socket: &OwnedFd) -> bool {
    getsockopt(socket, MemInfo).is_ok_and(|held| held[WMEM_ALLOC] > 0)
}

/// Says something that is not answered. Never waits.
pub fn tell(path: &str, verb: &Verb) -> Result<(), Errno> {
    let message = encode(verb).map_err(|_| Errno::EMSGSIZE)?;
    let socket = open()?;
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    send(&socket, &message, None)
}

fn open() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn encode(verb: &Verb) -> Result<Vec<u8>, NoAnswer> {
    let request = Request { version: WIRE_VERSION, verb: verb.clone() };
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
