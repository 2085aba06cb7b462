//! Whether the agent serves: one STATUS on its socket.

use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use sluice_shared::wire::{MAX_MESSAGE, Reply, Request, SERVING, Verb, WIRE_VERSION};
use std::os::fd::AsRawFd;

/// The longest that each step of the question takes, in seconds.
const WAIT: i64 = 1;

/// `Ok` when the agent says that an ADD can be served; else why not, in words.
pub fn serves(path: &str) -> Result<(), String> {
    let failed = |e: nix::Error| format!("the agent cannot be reached on {path}: {}", e.desc());
    let socket =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    setsockopt(&socket, SendTimeout, &TimeVal::seconds(WAIT)).map_err(failed)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(WAIT)).map_err(failed)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
    let request = Request { version: WIRE_VERSION, verb: Verb::Status };
    let message = serde_json::to_vec(&request).map_err(|e| e.to_string())?;
    send(socket.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL).map_err(failed)?;
    let mut reply = vec![0; MAX_MESSAGE];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty()).map_err(failed)?;
    match serde_json::from_slice(reply.get(..length).unwrap_or_default()) {
        Ok(Reply::Ok { outcome }) if outcome == SERVING => Ok(()),
        Ok(Reply::Ok { outcome }) => Err(format!("the agent is {outcome}")),
        Ok(Reply::Error { msg, .. }) => Err(format!("the agent says: {msg}")),
        Err(_) => Err(format!("the agent on {path} answers with something that is no answer")),
    }
}
