//! 15008 and 15006: what reaches the pod, by mTLS and in plaintext. The application sees the client's own address.

use super::hbone::{CONNECTION_WINDOW, HANDSHAKE_TIMEOUT, MAX_STREAMS, STREAM_WINDOW};
use super::pod::{Direction, Pod};
use super::workloads::STRICT;
use super::{identity, relay, sockets};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use serde_json::json;
use sluice_shared::contract::{PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

type H2<T> = h2::server::Connection<tokio_rustls::server::TlsStream<T>, Bytes>;

/// Takes one mTLS connection, and each CONNECT stream on it to the application.
pub async fn hbone(pod: Arc<Pod>, stream: TcpStream, source: SocketAddr) {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(&pod, stream)).await;
    let (mut connection, local, peer) = match handshake.unwrap_or_else(|_| Err("it took too long".into())) {
        Ok(established) => established,
        Err(error) => {
            let said = json!({"event": "conn-refused", "uid": pod.uid, "direction": Direction::InboundHbone.as_str(),
                "src": source.to_string(), "error": format!("HBONE handshake: {error}")});
            return pod.shared.events.say(said);
        }
    };
    // An error here ends the connection; each stream has said its own.
    while let Some(Ok((request, respond))) = connection.accept().await {
        let stream = Inbound { pod: pod.clone(), source, local, peer: peer.clone() };
        pod.spawn(stream.serve(request, respond));
    }
}

/// Takes one plaintext connection to the application.
pub async fn passthrough(pod: Arc<Pod>, mut stream: TcpStream, source: SocketAddr) {
    let destination = match sockets::original_destination(&stream) {
        Ok(destination) => destination,
        Err(error) => {
            let said = json!({"event": "conn-refused", "uid": pod.uid, "src": source.to_string(),
                "error": format!("no original destination: {error}")});
            return pod.shared.events.say(said);
        }
    };
    let mut connection = pod.connection(Direction::InboundPassthrough, source, destination, json!({}));
    let result = async {
        if [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE].contains(&destination.port()) {
            return Err(format!("{destination} is ztunnel itself"));
        }
        let (workload, _) = pod.identify().await?;
        if workload.is_strict() {
            return Err(format!("connection closed due to policy rejection: explicitly denied by: {STRICT}"));
        }
        let mut application = pod.connect(source.ip(), destination).await?;
        let relayed = relay::sockets(&mut stream, &mut application, &connection.count).await;
        relayed.map_err(|error| error.to_string())
    }
    .await;
    if result.is_err() {
        sockets::reset_on_close(&stream);
    }
    connection.ended(result);
}

/// One CONNECT stream.
struct Inbound {
    pod: Arc<Pod>,
    source: SocketAddr,
    local: SocketAddr,
    peer: String,
}

impl Inbound {
    async fn serve(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let Self { pod, source, local, peer } = self;
        let destination = match destination(&request, local) {
            Ok(destination) => destination,
            Err((status, why)) => {
                pod.shared.events.say(json!({"event": "conn-refused", "uid": pod.uid,
                    "direction": Direction::InboundHbone.as_str(), "src": source.to_string(), "error": why}));
                return refuse(&mut respond, status);
            }
        };
        let more = json!({"mtls": true, "identity": peer});
        let mut connection = pod.connection(Direction::InboundHbone, source, destination, more);
        let result = match pod.connect(source.ip(), destination).await {
            Err(error) => {
                refuse(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
                Err(error)
            }
            Ok(mut application) => match respond.send_response(Response::new(()), false) {
                Err(error) => Err(error.to_string()),
                Ok(send) => {
                    let count = &connection.count;
                    let body = request.into_body();
                    relay::stream(&mut application, send, body, &count.received, &count.sent)
                        .await
                        .map_err(|error| error.to_string())
                }
            },
        };
        connection.ended(result);
    }
}

async fn handshake(pod: &Arc<Pod>, stream: TcpStream) -> Result<(H2<TcpStream>, SocketAddr, String), String> {
    let local = sockets::canonical(stream.local_addr().map_err(|error| error.to_string())?);
    let (_, own) = pod.identify().await?;
    let config = own.server().map_err(|error| error.to_string())?;
    let tls = TlsAcceptor::from(Arc::new(config)).accept(stream).await.map_err(|error| error.to_string())?;
    let peer = identity::peer_identity(tls.get_ref().1.peer_certificates());
    let peer = peer.ok_or("the peer's certificate has no spiffe identity")?;
    let connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .handshake(tls)
        .await
        .map_err(|error| error.to_string())?;
    Ok((connection, local, peer))
}

/// Where a stream wants to go: CONNECT, to the address that was called, and not to ztunnel itself.
fn destination(request: &Request<RecvStream>, local: SocketAddr) -> Result<SocketAddr, (StatusCode, String)> {
    if request.method() != Method::CONNECT {
        return Err((StatusCode::NOT_FOUND, format!("{} is not CONNECT", request.method())));
    }
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let destination: SocketAddr = authority
        .parse()
        .map_err(|_| (StatusCode::BAD_REQUEST, format!("the authority {authority:?} is no address")))?;
    if destination.ip().to_canonical() != local.ip() {
        return Err((StatusCode::BAD_REQUEST, format!("CONNECT {destination} came to {}", local.ip())));
    }
    if [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE].contains(&destination.port()) {
        return Err((StatusCode::BAD_REQUEST, format!("CONNECT {destination} is ztunnel itself")));
    }
    Ok(destination)
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::REFUSED_STREAM);
    }
}
