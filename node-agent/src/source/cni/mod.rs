//! The plugin's socket: one message in, one answer out, then the connection ends.
//!
//! A request becomes an [`Event::Cni`] and waits for whoever acts on it. What breaks the protocol is answered here.

mod message;

use crate::metrics::{Metrics, SourceKind};
use crate::seqpacket::{Conn, ListenError, Listener, Spot};
use crate::source::{CniCall, Event};
pub use message::{Refusal, decode, take_netns};
use sluice_shared::cni::code;
use sluice_shared::wire::{MAX_MESSAGE, Reply, Verb};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// How many requests are served at once. More wait to be accepted: a node has fewer pods than this.
const MAX_REQUESTS: usize = 512;
/// How long a caller may take to send its one message after it has connected. The plugin sends at once.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long requests in flight may take to be answered once the agent stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after `accept` has failed: mostly for want of descriptors, which others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The source.
#[derive(Debug)]
pub struct CniSource {
    listener: Listener,
    metrics: Metrics,
}

impl CniSource {
    /// Listens at `path`, for root only.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn bind(path: &Path, metrics: Metrics) -> Result<Self, ListenError> {
        Ok(Self { listener: Listener::bind(path, 0o600, 0o700)?, metrics })
    }

    /// Where the plugin reaches it.
    #[must_use]
    pub fn spot(&self) -> Spot {
        self.listener.spot()
    }

    /// Serves the plugin until nobody listens to `events` any more; requests in flight then get no answer.
    pub async fn run(mut self, events: mpsc::Sender<Event>) {
        let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
        let mut requests = JoinSet::new();
        loop {
            // A slot first: without one, callers wait in the kernel's queue and not in our memory.
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot,
                () = events.closed() => break,
            };
            let conn = tokio::select! {
                conn = self.listener.accept() => conn,
                () = events.closed() => break,
            };
            while requests.try_join_next().is_some() {}
            match conn {
                Ok(conn) => {
                    let (events, metrics) = (events.clone(), self.metrics.clone());
                    requests.spawn(async move {
                        serve(&conn, &events, &metrics).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::error!(%error, socket = %self.listener.path().display(), "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let all = async { while requests.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("requests of the plugin were left unanswered");
        }
    }
}

/// Takes one request and answers it.
async fn serve(conn: &Conn, events: &mpsc::Sender<Event>, metrics: &Metrics) {
    let (verb, netns) = match receive(conn).await {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(refusal) => {
            tracing::warn!(
                code = refusal.code,
                "a message on the plugin's socket was refused: {}",
                refusal.why
            );
            metrics.source_error(SourceKind::Cni);
            let reply = refusal.into();
            metrics.plugin_request("invalid", &reply);
            answer(conn, &reply).await;
            return;
        }
    };
    let name = message::verb_name(&verb);
    if let Verb::Log { level, message } = &verb {
        message::log(level, message);
        return;
    }
    let (sender, receiver) = oneshot::channel();
    let call = Event::Cni(CniCall { verb, netns, reply: sender });
    let reply = tokio::select! {
        reply = ask(events, call, receiver) => reply,
        () = hung_up(conn) => {
            tracing::info!(verb = name, "the plugin stopped waiting for its answer");
            return;
        }
    };
    // Without an answer the plugin goes by the membership file: a pod outside the mesh starts, another one waits.
    let Some(reply) = reply else {
        tracing::info!(verb = name, "the agent stops; the plugin decides for itself");
        return;
    };
    metrics.plugin_request(name, &reply);
    answer(conn, &reply).await;
}

/// Waits for the one message, and reads it. `None` when the caller left without one.
async fn receive(conn: &Conn) -> Result<Option<message::Request>, Refusal> {
    let mut buf = vec![0; MAX_MESSAGE];
    let received = match tokio::time::timeout(READ_TIMEOUT, conn.recv(&mut buf)).await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => return Err(Refusal::io(format!("receiving failed: {error}"))),
        Err(_) => return Err(Refusal::io(format!("no message came within {} s", READ_TIMEOUT.as_secs()))),
    };
    // After the message is read: closing with it unread would reset the connection, and lose the answer.
    let peer = conn.peer_cred().map_err(|error| Refusal::io(format!("SO_PEERCRED: {error}")))?;
    if peer.uid != 0 {
        let why = format!("only root may use this socket; process {} has uid {}", peer.pid, peer.uid);
        return Err(Refusal { code: code::INVALID_ENVIRONMENT, why });
    }
    if received.len == 0 && received.fds.is_empty() {
        return Ok(None);
    }
    message::read(&buf[..received.len], received.truncated, received.fds, received.ctrl_truncated).map(Some)
}

/// Hands the request over and waits for its answer. `None` when the agent stops before there is one.
async fn ask(events: &mpsc::Sender<Event>, call: Event, answer: oneshot::Receiver<Reply>) -> Option<Reply> {
    // When nobody takes it, the call and its sender are dropped, and the answer's absence says so.
    drop(events.send(call).await);
    match answer.await {
        Ok(reply) => Some(reply),
        Err(_) if events.is_closed() => None,
        Err(_) => Some(Reply::Error {
            code: code::INTERNAL,
            msg: "the node agent gave up on this request (a defect; its log says more)".to_owned(),
            details: String::new(),
        }),
    }
}

/// Waits until the caller is gone. Anything else that it sends is not looked at.
async fn hung_up(conn: &Conn) {
    let mut rest = [0; 16];
    while conn.recv(&mut rest).await.is_ok_and(|received| received.len > 0) {}
}

async fn answer(conn: &Conn, reply: &Reply) {
    if let Err(error) = conn.send(&message::encode(reply), None).await {
        tracing::info!(%error, "the plugin did not take its answer");
    }
}
