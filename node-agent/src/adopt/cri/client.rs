//! The runtime's socket: gRPC over a unix socket, three calls of `runtime.v1.RuntimeService`, each with a time limit.

use super::message::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxStatusRequest,
    PodSandboxStatusResponse, VersionRequest, VersionResponse,
};
use hyper::http::Uri;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long one call may take: a runtime that starts a hundred pods is slow, one that hangs must not keep the other ways
/// waiting.
const CALL_WITHIN: Duration = Duration::from_secs(2);
/// The longest list that is taken, in bytes; the kubelet takes as much.
const MAX_LIST: usize = 16 << 20;
/// The longest status that is taken, in bytes. A verbose one is some 20 kB.
const MAX_STATUS: usize = 1 << 20;

const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const STATUS: &str = "/runtime.v1.RuntimeService/PodSandboxStatus";
const VERSION: &str = "/runtime.v1.RuntimeService/Version";

/// A connection to the runtime.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    socket: PathBuf,
}

/// Why the runtime did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody listens there.
    #[error("{}: {why}", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// The errno.
        why: String,
    },
    /// It took too long.
    #[error("{}: no answer within {CALL_WITHIN:?}", socket.display())]
    Slow {
        /// Where.
        socket: PathBuf,
    },
    /// It refused.
    #[error("{}: {code:?}: {message}", socket.display())]
    Refused {
        /// Where.
        socket: PathBuf,
        /// gRPC's status.
        code: tonic::Code,
        /// The runtime's words, cut to a sensible length.
        message: String,
    },
}

impl Client {
    /// Connects.
    pub(super) async fn connect(socket: &Path) -> Result<Self, CallError> {
        // What the server sees as its name; a path would be no valid one.
        let endpoint = Endpoint::from_static("http://localhost");
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        match tokio::time::timeout(CALL_WITHIN, endpoint.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(Self { channel, socket: socket.to_owned() }),
            Ok(Err(error)) => {
                Err(CallError::Connect { socket: socket.to_owned(), why: root_cause(&error).to_string() })
            }
            Err(_) => Err(CallError::Slow { socket: socket.to_owned() }),
        }
    }

    /// Every sandbox that the runtime has, dead ones included.
    pub(super) async fn list(&self) -> Result<Vec<PodSandbox>, CallError> {
        let answer: ListPodSandboxResponse = self.call(LIST, ListPodSandboxRequest {}, MAX_LIST).await?;
        Ok(answer.items)
    }

    /// What the runtime knows of one sandbox.
    pub(super) async fn status(&self, id: &str) -> Result<PodSandboxStatusResponse, CallError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.call(STATUS, request, MAX_STATUS).await
    }

    /// Which runtime it is.
    pub(super) async fn version(&self) -> Result<VersionResponse, CallError> {
        self.call(VERSION, VersionRequest { version: "v1".to_owned() }, MAX_STATUS).await
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q, limit: usize) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(limit);
        let call = async {
            let failed = |error| tonic::Status::unavailable(root_cause(&error).to_string());
            grpc.ready().await.map_err(failed)?;
            let path = PathAndQuery::from_static(path);
            grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(CALL_WITHIN, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CallError::Refused {
                socket: self.socket.clone(),
                code: status.code(),
                message: status.message().chars().take(200).collect(),
            }),
            Err(_) => Err(CallError::Slow { socket: self.socket.clone() }),
        }
    }
}

impl CallError {
    /// Whether the runtime as a whole seems not to answer, rather than this call.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Slow { .. } => true,
            Self::Refused { code, .. } => *code == tonic::Code::Unavailable,
        }
    }
}

/// tonic's own words are "transport error"; what it was is behind them.
fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}
