//! An agent as far as the installer asks one: it answers STATUS.

use anyhow::Result;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv,
    send, shutdown, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

/// An agent that serves.
pub struct Agent {
    listener: i32,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Answers at `path`, until it is dropped.
    pub fn start(path: &Path) -> Result<Self> {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&listener, Backlog::new(8)?)?;
        let raw = listener.as_raw_fd();
        let thread = std::thread::spawn(move || serve(&listener));
        Ok(Self { listener: raw, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Wakes accept(2).
        let _ = shutdown(self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &OwnedFd) {
    let mut question = vec![0; 65536];
    while let Ok(connection) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        if recv(connection, &mut question, MsgFlags::empty()).is_ok_and(|length| length > 0) {
            let _ = send(connection, br#"{"result":"ok","outcome":"serving"}"#, MsgFlags::MSG_NOSIGNAL);
        }
        let _ = nix::unistd::close(connection);
    }
}
