//! The admin socket: `sluicectl` asks, the agent answers. A stream, one JSON line each way, root only.

mod server;

pub use server::Server;
use sluice_shared::admin::{NodeStatus, PodStatus};
use std::future::Future;

/// What the server asks of the rest of the agent.
pub trait View: Send + Sync + 'static {
    /// The node and all of its pods, as last seen. `checks` of the pods may be empty.
    fn status(&self) -> impl Future<Output = NodeStatus> + Send;

    /// One pod, looked at afresh in the kernel and at ztunnel. `pod` is `namespace/name`, a bare name if it is
    /// unique, or a uid.
    ///
    /// # Errors
    /// What to tell the operator: no such pod, or the name is not unique (which pods have it).
    fn why(&self, pod: &str) -> impl Future<Output = Result<PodStatus, WhyError>> + Send;
}

/// Why a pod could not be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyError {
    /// Nobody told the agent of such a pod.
    #[error("the agent knows no pod {0:?} on this node")]
    Unknown(String),
    /// Several pods have this name.
    #[error("{pod:?} is the name of several pods; say which: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked.
        pod: String,
        /// `namespace/name` of each.
        candidates: Vec<String>,
    },
}
