//! HBONE, the calling side: one mTLS connection a peer, and an HTTP/2 CONNECT stream a connection.

use super::pod::Pod;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Uri};
use rustls::pki_types::ServerName;
use sluice_shared::contract::PORT_HBONE;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// A stream's window. Small against the connection's, so that some hundred streams whose readers are slow cannot
/// starve the others.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// A connection's window.
pub const CONNECTION_WINDOW: u32 = 512 * 1024 * 1024;
/// How many streams a connection may have.
pub const MAX_STREAMS: u32 = 100_000;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept (ztunnel's `POOL_UNUSED_RELEASE_TIMEOUT`).
const IDLE: Duration = Duration::from_secs(300);

/// The open connections of one pod.
#[derive(Default)]
pub struct Pool(Mutex<HashMap<Peer, Arc<Slot>>>);

/// A connection's other end, and the address that it is called from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The application's address.
    pub source: IpAddr,
    /// The peer's address.
    pub destination: IpAddr,
    /// Of which it must show one.
    pub identities: Vec<String>,
}

/// Holds the connection; locked while it is being made, so that a burst makes one.
type Slot = tokio::sync::Mutex<Option<Live>>;

#[derive(Clone)]
struct Live {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
    /// As many owners as there are streams, and the pool.
    used: Arc<()>,
}

/// A CONNECT stream to an application behind a peer.
pub struct Tunnel {
    /// To the application.
    pub send: SendStream<Bytes>,
    /// From it.
    pub receive: RecvStream,
    /// Keeps the connection from being released as unused.
    _lease: Arc<()>,
}

/// Opens a stream to `target` through `peer`.
///
/// # Errors
/// In words: no connection, no handshake, or the peer's refusal.
pub async fn open(pod: &Arc<Pod>, peer: &Peer, target: SocketAddr) -> Result<Tunnel, String> {
    // A pooled connection may have died unnoticed, so a failed one is replaced once.
    let first = live(pod, peer, None).await?;
    match request(first.clone(), target).await {
        Err(Refusal::Connection(_)) => {}
        Err(Refusal::Peer(said)) => return Err(said),
        Ok(tunnel) => return Ok(tunnel),
    }
    request(live(pod, peer, Some(&first)).await?, target).await.map_err(|refusal| match refusal {
        Refusal::Connection(said) | Refusal::Peer(said) => said,
    })
}

enum Refusal {
    /// The connection failed before the peer answered.
    Connection(String),
    /// The peer said no.
    Peer(String),
}

async fn live(pod: &Arc<Pod>, peer: &Peer, failed: Option<&Live>) -> Result<Live, String> {
    let slot = {
        let mut slots = pod.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(peer.clone()).or_default().clone()
    };
    let mut held = slot.lock().await;
    let usable = |live: &&Live| {
        !live.closed.load(Ordering::Acquire)
            && !failed.is_some_and(|it| Arc::ptr_eq(&it.closed, &live.closed))
    };
    if let Some(live) = held.as_ref().filter(usable) {
        return Ok(live.clone());
    }
    let live = dial(pod, peer).await?;
    *held = Some(live.clone());
    Ok(live)
}

async fn dial(pod: &Arc<Pod>, peer: &Peer) -> Result<Live, String> {
    let address = SocketAddr::new(peer.destination, PORT_HBONE);
    let failed = |error: &dyn std::fmt::Display| format!("no HBONE connection to {address}: {error}");
    let (_, identity) = pod.identify().await?;
    let config = identity.client(peer.identities.clone()).map_err(|error| failed(&error))?;
    let stream = pod.connect(peer.source, address).await?;
    let name = ServerName::IpAddress(peer.destination.into());
    let handshake = async {
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| failed(&e))?;
        h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(|error| failed(&error))
    };
    let (sender, connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| failed(&"the handshake took too long"))??;
    let closed = Arc::new(AtomicBool::new(false));
    let live = Live { sender, closed: closed.clone(), used: Arc::default() };
    let used = Arc::downgrade(&live.used);
    pod.spawn(async move {
        tokio::select! {
            _ = connection => {}
            () = unused(used) => {}
        }
        closed.store(true, Ordering::Release);
    });
    Ok(live)
}

async fn request(live: Live, target: SocketAddr) -> Result<Tunnel, Refusal> {
    let lost = |error: h2::Error| Refusal::Connection(format!("HBONE stream to {target}: {error}"));
    let uri = Uri::builder().authority(target.to_string()).build();
    let uri = uri.map_err(|error| Refusal::Peer(error.to_string()))?;
    let request = Request::builder().method(Method::CONNECT).uri(uri).body(());
    let request = request.map_err(|error| Refusal::Peer(error.to_string()))?;
    let mut sender = live.sender.ready().await.map_err(lost)?;
    let (response, send) = sender.send_request(request, false).map_err(lost)?;
    let response = response.await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(Refusal::Peer(format!("the peer refused CONNECT {target}: {}", response.status())));
    }
    Ok(Tunnel { send, receive: response.into_body(), _lease: live.used })
}

/// Ends once nobody but the pool used the connection for [`IDLE`].
async fn unused(used: Weak<()>) {
    let mut since = Instant::now();
    while since.elapsed() < IDLE {
        tokio::time::sleep(IDLE / 10).await;
        if used.strong_count() > 1 {
            since = Instant::now();
        }
    }
}
