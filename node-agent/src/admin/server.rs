//! The server's side of the admin socket.

use super::{View, WhyError};
use crate::seqpacket::{self, ListenError, SocketFile};
use nix::sys::socket::SockType;
use sluice_shared::admin::{AdminReply, AdminRequest, MAX_ADMIN_REQUEST};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// How many questions are answered at once; each may look into the kernel.
const MAX_QUESTIONS: usize = 16;
/// How long a caller may take to ask, and again to take its answer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take to be found. A look into the kernel takes milliseconds; a pod that is being worked on
/// has to finish first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of a question that was too long is read and forgotten, in bytes.
const LEFT_UNREAD: u64 = 1024 * 1024;
/// The pause after `accept` has failed: mostly for want of descriptors, which others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server.
#[derive(Debug)]
pub struct Server<V> {
    listener: UnixListener,
    view: Arc<V>,
    _file: SocketFile,
}

impl<V: View> Server<V> {
    /// Listens at `path`, for root only.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn bind(path: &Path, view: Arc<V>) -> Result<Self, ListenError> {
        let (socket, file) = seqpacket::listen(path, SockType::Stream, 0o600, 0o700)?;
        let listener = UnixListener::from_std(socket.into()).map_err(|source| ListenError::Call {
            path: path.to_owned(),
            call: "register with the runtime",
            source,
        })?;
        Ok(Self { listener, view, _file: file })
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let slots = Arc::new(Semaphore::new(MAX_QUESTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let view = Arc::clone(&self.view);
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &*view).await {
                            tracing::debug!(%error, "an admin connection ended early");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an admin connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(mut stream: UnixStream, view: &impl View) -> io::Result<()> {
    // The question first, whoever asks: closing with it unread would reset the connection, and lose the answer.
    let question = tokio::time::timeout(TRANSFER_TIMEOUT, question(&mut stream)).await?;
    let peer = stream.peer_cred()?;
    let reply = match question {
        _ if peer.uid() != 0 => refusal(format!("only root may ask; you have uid {}", peer.uid())),
        Ok(question) => match tokio::time::timeout(ANSWER_TIMEOUT, answer(question, view)).await {
            Ok(reply) => reply,
            Err(_) => refusal(format!(
                "no answer within {} s; the agent's log may say why",
                ANSWER_TIMEOUT.as_secs()
            )),
        },
        Err(why) => refusal(why),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    tokio::time::timeout(TRANSFER_TIMEOUT, async {
        stream.write_all(&line).await?;
        stream.shutdown().await?;
        // What is left of a question that was too long; unread, it would reset the connection as well.
        tokio::io::copy(&mut stream.take(LEFT_UNREAD), &mut tokio::io::sink()).await.map(drop)
    })
    .await?
}

/// Reads one line, and what it asks.
async fn question(stream: &mut UnixStream) -> Result<AdminRequest, String> {
    let mut line = Vec::new();
    let limit = MAX_ADMIN_REQUEST as u64 + 1;
    let read = BufReader::new(stream.take(limit)).read_until(b'\n', &mut line).await;
    let read = read.map_err(|error| format!("reading the question failed: {error}"))?;
    if read > MAX_ADMIN_REQUEST {
        return Err(format!("the question is longer than {MAX_ADMIN_REQUEST} bytes"));
    }
    serde_json::from_slice(&line).map_err(|error| {
        format!(
            "this agent ({}) does not understand the question: {error}; is sluicectl of another release?",
            env!("CARGO_PKG_VERSION")
        )
    })
}

async fn answer(question: AdminRequest, view: &impl View) -> AdminReply {
    match question {
        AdminRequest::Status => AdminReply::Status(view.status().await),
        AdminRequest::Why { pod } => match view.why(&pod).await {
            Ok(pod) => AdminReply::Why(pod),
            Err(error) => {
                let unknown_pod = matches!(error, WhyError::Unknown(_));
                AdminReply::Error { unknown_pod, message: error.to_string() }
            }
        },
    }
}

fn refusal(message: String) -> AdminReply {
    AdminReply::Error { unknown_pod: false, message }
}
