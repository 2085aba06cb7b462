//! The hand-over to ztunnel: the agent listens, ztunnel connects, one protobuf message a packet.
//!
//! [`Handle`] is what the rest of the agent holds; [`Hooks`] is what the server asks of the rest of the agent.
//!
//! | room | what it holds |
//! |---|---|
//! | [`codec`] | the messages as bytes; pure |
//! | [`conn`] | one connection in lockstep: a request, its answer, the next request |
//! | `ledger` | who is connected, and who waits for an answer; no I/O |
//! | `outbox` | what one ztunnel was told, what it said, and what is still to be said to it; no I/O |
//! | `link` | one connection's life: hello, snapshot, then what the ledger says is next |
//! | [`server`] | the socket, the accept rate, start and stop |

pub mod codec;
pub mod conn;
mod ledger;
mod link;
mod outbox;
pub mod server;

pub use server::{Config, Handle, Server};

use crate::kernel::Netns;
use sluice_shared::ids::PodUid;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A pod as ztunnel is told of it. (namespace, service account, name) must match what istiod says, or every connection
/// of the pod fails after 5 s.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Opaque to ztunnel; the pod's uid.
    pub uid: PodUid,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's network namespace; `None` is sent as Keep, within a snapshot only.
    pub netns: Option<Arc<Netns>>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The connection's number, counted from 1.
    pub connection: u64,
    /// The process, as [`HostProc::peer`] says it.
    ///
    /// [`HostProc::peer`]: crate::kernel::HostProc::peer
    pub pid: i32,
}

/// A ztunnel that has said hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who.
    pub peer: Peer,
    /// Whether it has acknowledged its snapshot.
    pub ready: bool,
}

/// What the connected ztunnels have said of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    /// The connections whose ztunnel serves the pod, newest first.
    pub acked_by: Vec<u64>,
    /// The reason of the newest connection that refuses it at present.
    pub last_nack: Option<String>,
}

/// What the server asks of, and tells, the rest of the agent. It is called with none of the server's locks held.
pub trait Hooks: Send + Sync + 'static {
    /// A ztunnel said hello. Awaited before its snapshot begins, so that its marks are trusted in every pod
    /// before its first socket is made there. An error says why it cannot be a ztunnel: it is told of nothing.
    fn connected(&self, peer: &Peer) -> impl Future<Output = Result<(), String>> + Send;
    /// What ztunnel is to serve, taken when its snapshot begins. What is neither here nor added later in the session
    /// is torn down by ztunnel at the snapshot's end.
    fn snapshot(&self) -> Vec<Workload>;
    /// This connection's ztunnel answered an Add of a pod: `Ok` means that its listeners are bound there. A pod that was
    /// refused is offered again, less and less often, for as long as [`Hooks::snapshot`] names it, and each answer is
    /// told here: ztunnel says nothing when a retry of its own succeeds.
    fn answered(&self, peer: &Peer, uid: &PodUid, answer: Result<(), String>);
    /// The snapshot is acknowledged.
    fn ready(&self, peer: &Peer);
    /// The connection is gone.
    fn disconnected(&self, peer: &Peer);
}

/// Why a pod could not be handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Nobody was connected and ready before the deadline.
    #[error("no ztunnel is connected and ready (waited {} ms)", .0.as_millis())]
    NoZtunnel(Duration),
    /// One is connected and ready, and other pods came first until the deadline: requests go one after the other.
    #[error("ztunnel is busy with the pods before it (waited {} ms)", .0.as_millis())]
    Busy(Duration),
    /// ztunnel refused. Not final: it retries by itself every 5 s, without telling.
    #[error("ztunnel refused the pod: {0}")]
    Refused(String),
    /// Every connected ztunnel hung or died before it answered.
    #[error("no ztunnel answered (waited {} ms)", .0.as_millis())]
    NoAnswer(Duration),
    /// The pod was deleted while its Add waited.
    #[error("the pod was deleted while it waited for ztunnel")]
    Withdrawn,
}
