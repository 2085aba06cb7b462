//! Netfilter sockets, closed by somebody who has time.
//!
//! While nf_tables is still freeing what a transaction has deleted, closing any netfilter socket of that namespace waits
//! for it (`nft_rcv_nl_event` in net/netfilter/nf_tables_api.c): 10 to 20 ms, thirty times what the transaction took. A
//! pod's start must not wait for that.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Sockets that may wait; any more are closed by whoever used them.
const WAITING: usize = 128;

static CLOSER: OnceLock<SyncSender<Socket>> = OnceLock::new();

/// A netlink socket that is closed elsewhere if that may take long.
pub(super) struct Retiring {
    protocol: isize,
    /// Taken when this is dropped, and only then.
    socket: Option<Socket>,
}

/// Starts the thread that closes sockets, once for the process. It stays in the namespace of the thread that calls
/// this, which must therefore be the agent's own and never a pod's.
pub(super) fn start_closer() {
    CLOSER.get_or_init(|| {
        let (sender, sockets) = sync_channel::<Socket>(WAITING);
        let close = move || sockets.into_iter().for_each(drop);
        if let Err(error) = thread::Builder::new().name("kernel-closer".into()).spawn(close) {
            // Without the thread nobody takes them, and they are closed where they were used.
            tracing::warn!(%error, "no thread for closing sockets: enrolling a pod takes longer");
        }
        sender
    });
}

impl Retiring {
    pub(super) fn new(protocol: isize, socket: Socket) -> Self {
        Self { protocol, socket: Some(socket) }
    }
}

impl Deref for Retiring {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.socket.as_ref().expect("a socket is there until it is dropped")
    }
}

impl Drop for Retiring {
    fn drop(&mut self) {
        if let (Some(socket), NETLINK_NETFILTER, Some(closer)) =
            (self.socket.take(), self.protocol, CLOSER.get())
        {
            // What is not taken comes back in the error, and is closed with it.
            let _ = closer.try_send(socket);
        }
    }
}
