//! The hand-over to ztunnel: the agent listens, ztunnel connects, one protobuf message a packet.
//!
//! [`Handle`] is what the rest of the agent holds; [`Hooks`] is what the server asks of the rest of the agent.

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
    /// From `SO_PEERCRED`; 0 when the process is outside the agent's pid namespace.
    pub pid: i32,
}

/// What the server asks of, and tells, the rest of the agent.
pub trait Hooks: Send + Sync + 'static {
    /// A ztunnel said hello. Awaited before its snapshot begins, so that its marks are trusted in every pod
    /// before its first socket is made there.
    fn connected(&self, peer: &Peer) -> impl Future<Output = ()> + Send;
    /// What ztunnel is to serve, taken when its snapshot begins. What is neither here nor added later in the session
    /// is torn down by ztunnel at the snapshot's end.
    fn snapshot(&self) -> Vec<Workload>;
    /// This connection's ztunnel answered for a pod: `Ok` means that its listeners are bound there.
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
    #[error("no ztunnel is connected (waited {} ms)", .0.as_millis())]
    NoZtunnel(Duration),
    /// ztunnel refused. Not final: it retries by itself every 5 s, without telling.
    #[error("ztunnel refused the pod: {0}")]
    Refused(String),
    /// Every connected ztunnel hung or died before it answered.
    #[error("no ztunnel answered (waited {} ms)", .0.as_millis())]
    NoAnswer(Duration),
}
