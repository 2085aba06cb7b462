//! Callers that do not keep to the protocol of our `SOCK_SEQPACKET` sockets.

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// How long an answer is waited for, in seconds.
const PATIENCE: i64 = 12;

/// Sends one message with `fds` beside it, and waits for one answer: empty when the other end hangs up.
///
/// # Errors
/// When the socket cannot be reached, the message not sent, or nothing comes back in time.
pub fn say(path: &Path, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<u8>> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
        .with_context(|| format!("connect to {}", path.display()))?;
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = if fds.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&fds)] };
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(message)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.context("send")?;
    let mut answer = vec![0; 128 * 1024];
    match recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
        Ok(length) => answer.truncate(length),
        // The other end closed with our message unread.
        Err(nix::errno::Errno::ECONNRESET) => answer.clear(),
        Err(why) => return Err(why).context("wait for an answer"),
    }
    Ok(answer)
}
