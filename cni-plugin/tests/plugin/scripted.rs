//! An agent that does what a test tells it to, on a real SEQPACKET socket.

use crate::runtime::{Node, PATIENCE, identity};
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    listen, recvmsg, send, socket,
};
use serde_json::json;
use sluice_shared::ids::NetnsId;
use sluice_shared::wire::{MAX_MESSAGE, Request};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What the agent does with a request.
#[derive(Clone)]
pub enum Script {
    /// Answers with these bytes.
    Answer(Vec<u8>),
    /// Takes the request and hangs up.
    HangUp,
    /// Takes the request and says nothing, for as long as the plugin is there.
    Hang,
}

/// A request that came.
#[derive(Debug)]
pub struct Received {
    pub request: Request,
    /// The files that came along.
    pub files: Vec<NetnsId>,
}

/// The agent; it ends with the value.
pub struct Agent {
    received: Receiver<Received>,
    listener: RawFd,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    pub fn ok(outcome: &str) -> Self {
        Self::Answer(json!({"result": "ok", "outcome": outcome}).to_string().into_bytes())
    }

    pub fn error(code: u32, msg: &str, details: &str) -> Self {
        let reply = json!({"result": "error", "code": code, "msg": msg, "details": details});
        Self::Answer(reply.to_string().into_bytes())
    }
}

impl Agent {
    /// Listens on the node's socket.
    pub fn start(node: &Node, script: Script) -> Self {
        let listener = listening(node, Backlog::new(8).unwrap());
        let raw = listener.as_raw_fd();
        let (sender, received) = channel();
        let thread = std::thread::spawn(move || serve(&listener, &script, &sender));
        Self { received, listener: raw, thread: Some(thread) }
    }

    /// The next request.
    #[track_caller]
    pub fn request(&self) -> Received {
        self.received.recv_timeout(PATIENCE).expect("the plugin asked nothing")
    }

    /// Whether something came that was not taken yet. To be asked after the plugin has ended.
    pub fn was_asked(&self) -> bool {
        self.received.try_recv().is_ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Wakes accept(2) with EINVAL.
        let _ = nix::sys::socket::shutdown(self.listener, nix::sys::socket::Shutdown::Both);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A socket that listens, for tests that never take from it.
pub fn listening(node: &Node, backlog: Backlog) -> OwnedFd {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&node.socket()).unwrap()).unwrap();
    listen(&listener, backlog).unwrap();
    listener
}

fn serve(listener: &OwnedFd, script: &Script, sender: &Sender<Received>) {
    while let Ok(connection) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        if let Some(received) = receive(connection) {
            let _ = sender.send(received);
        }
        match script {
            Script::Answer(bytes) => {
                let _ = send(connection, bytes, MsgFlags::MSG_NOSIGNAL);
            }
            Script::HangUp => {}
            Script::Hang => {
                let mut end = [0];
                let _ = nix::sys::socket::recv(connection, &mut end, MsgFlags::empty());
            }
        }
        nix::unistd::close(connection).unwrap();
    }
}

fn receive(connection: RawFd) -> Option<Received> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut rights = cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(connection, &mut parts, Some(&mut rights), flags).ok()?;
    let length = message.bytes;
    let fds: Vec<RawFd> = message
        .cmsgs()
        .unwrap()
        .flat_map(|rights| match rights {
            ControlMessageOwned::ScmRights(fds) => fds,
            other => panic!("unexpected control message {other:?}"),
        })
        .collect();
    let files = fds.iter().map(|fd| identity(&format!("/proc/self/fd/{fd}")).unwrap()).collect();
    for fd in fds {
        nix::unistd::close(fd).unwrap();
    }
    (length > 0).then(|| Received {
        request: serde_json::from_slice(&bytes[..length]).expect("the plugin's request"),
        files,
    })
}
