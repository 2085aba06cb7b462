//! 15001: what the pod's applications send.

use super::hbone::{self, Peer};
use super::pod::{Connection, Direction, Pod};
use super::workloads::{Route, Workload};
use super::{relay, sockets};
use serde_json::json;
use sluice_shared::contract::{PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Takes one connection to where its application meant it to go, by mTLS if its peer has a ztunnel.
pub async fn outbound(pod: Arc<Pod>, mut stream: TcpStream, source: SocketAddr) {
    let destination = match sockets::original_destination(&stream) {
        Ok(destination) => destination,
        Err(error) => {
            let said = json!({"event": "conn-refused", "uid": pod.uid, "src": source.to_string(),
                "error": format!("no original destination: {error}")});
            return pod.shared.events.say(said);
        }
    };
    let route = match pod.identify().await {
        Ok((own, _)) if is_self_call(&own, destination) => Err(format!("{destination} is ztunnel itself")),
        Ok(_) => Ok(pod.shared.directories.current().route(destination)),
        Err(error) => Err(error),
    };
    let more = match &route {
        Ok(Route::Hbone { target, .. }) => json!({"mtls": true, "target": target.to_string()}),
        Ok(Route::Passthrough(target)) => json!({"target": target.to_string()}),
        Ok(Route::NoEndpoint(_)) | Err(_) => json!({}),
    };
    let mut connection = pod.connection(Direction::Outbound, source, destination, more);
    let result = match route {
        Ok(route) => forward(&pod, &mut stream, source, route, &connection).await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        sockets::reset_on_close(&stream);
    }
    connection.ended(result);
}

async fn forward(
    pod: &Arc<Pod>,
    stream: &mut TcpStream,
    source: SocketAddr,
    route: Route,
    connection: &Connection,
) -> Result<(), String> {
    let count = &connection.count;
    match route {
        Route::NoEndpoint(why) => Err(why),
        Route::Passthrough(target) => {
            let mut peer = pod.connect(source.ip(), target).await?;
            relay::sockets(stream, &mut peer, count).await.map_err(|error| error.to_string())
        }
        Route::Hbone { target, identities } => {
            let peer = Peer { source: source.ip(), destination: target.ip(), identities };
            let tunnel = hbone::open(pod, &peer, target).await?;
            relay::stream(stream, tunnel.send, tunnel.receive, &count.sent, &count.received)
                .await
                .map_err(|error| error.to_string())
        }
    }
}

/// Whether a connection would come back to the listener that it came from.
fn is_self_call(own: &Workload, destination: SocketAddr) -> bool {
    let here = destination.ip().is_loopback() || own.workload_ips.contains(&destination.ip());
    here && [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE].contains(&destination.port())
}
