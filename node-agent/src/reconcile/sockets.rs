//! What a pod's sockets say of its connections: which are older than the rules, which are proxied. Pure.

use crate::kernel::TcpSocket;
use sluice_shared::contract::{MARK_ZTUNNEL, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use sluice_shared::plan::Flow;
use std::collections::BTreeSet;
use std::net::IpAddr;

// include/net/tcp_states.h
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

const ZTUNNEL_PORTS: [u16; 4] = [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE, PORT_DNS_PROXY];

/// The connections that began before the rules, and so keep their path.
///
/// Listed just after the commit: a connection that began between the commit and the listing was captured, and is
/// left out because ztunnel holds its other half.
pub(super) fn older_flows(sockets: &[TcpSocket]) -> BTreeSet<Flow> {
    let ztunnels: Vec<&Flow> = sockets.iter().filter(|s| is_ztunnels(s)).map(|s| &s.flow).collect();
    // Outbound: ztunnel accepted what the application opened. Inbound: ztunnel opened what the application accepted.
    let accepted: BTreeSet<(IpAddr, u16)> =
        ztunnels.iter().filter(|f| ZTUNNEL_PORTS.contains(&f.local.1)).map(|f| f.remote).collect();
    let opened: BTreeSet<((IpAddr, u16), (IpAddr, u16))> =
        ztunnels.iter().map(|f| (f.remote, f.local)).collect();
    sockets
        .iter()
        .filter(|socket| is_connection(socket) && !is_ztunnels(socket))
        .map(|socket| socket.flow)
        .filter(|flow| !flow.remote.0.is_loopback() && !ZTUNNEL_PORTS.contains(&flow.local.1))
        .filter(|flow| !accepted.contains(&flow.local) && !opened.contains(&(flow.local, flow.remote)))
        .collect()
}

/// Those of the kept connections that are still there.
pub(super) fn still_open(kept: &BTreeSet<Flow>, sockets: &[TcpSocket]) -> BTreeSet<Flow> {
    let open: BTreeSet<Flow> = sockets.iter().filter(|s| is_connection(s)).map(|s| s.flow).collect();
    kept.intersection(&open).copied().collect()
}

/// How many proxied connections still need ztunnel and the return path. Those that are closing count too: taking
/// ztunnel away from them turns an end of stream into a reset. Pooled HBONE connections do not: they idle for minutes.
pub(super) fn proxied(sockets: &[TcpSocket]) -> usize {
    let counts = |socket: &&TcpSocket| {
        let (local, remote) = (socket.flow.local.1, socket.flow.remote.1);
        let captured = local == PORT_OUTBOUND || local == PORT_INBOUND;
        let upstream = MARK_ZTUNNEL.matches(socket.mark) && local != PORT_HBONE && remote != PORT_HBONE;
        is_connection(socket) && local != PORT_DNS_PROXY && (captured || upstream)
    };
    sockets.iter().filter(counts).count()
}

fn is_connection(socket: &TcpSocket) -> bool {
    !matches!(socket.state, TCP_LISTEN | TCP_TIME_WAIT | TCP_CLOSE | TCP_NEW_SYN_RECV)
}

/// A socket that ztunnel made. Those it accepted have its mark too, but a request socket may not have it yet.
fn is_ztunnels(socket: &TcpSocket) -> bool {
    MARK_ZTUNNEL.matches(socket.mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u8 = 1;
    const FIN_WAIT2: u8 = 5;

    fn socket(local: &str, remote: &str, state: u8, mark: u32) -> TcpSocket {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            (address.ip(), address.port())
        };
        TcpSocket { flow: Flow { local: end(local), remote: end(remote) }, state, mark, cgroup: None }
    }

    #[test]
    fn a_connection_that_ztunnel_has_no_half_of_is_older() {
        let sockets = [
            socket("10.0.0.2:8080", "0.0.0.0:0", TCP_LISTEN, 0),
            socket("10.0.0.2:40000", "10.9.9.9:80", ESTABLISHED, 0),
            socket("10.0.0.2:8080", "10.7.7.7:5000", ESTABLISHED, 0),
            socket("[fd00::2]:40000", "[fd00::9]:80", FIN_WAIT2, 0),
        ];
        assert_eq!(older_flows(&sockets), sockets[1..].iter().map(|s| s.flow).collect());
    }

    #[test]
    fn a_captured_connection_is_not_older() {
        let sockets = [
            // outbound: the application's half, ztunnel's accepted half, ztunnel's way out
            socket("10.0.0.2:40000", "10.9.9.9:80", ESTABLISHED, 0),
            socket("127.0.0.1:15001", "10.0.0.2:40000", ESTABLISHED, 0x539),
            socket("10.0.0.2:50000", "10.9.9.9:15008", ESTABLISHED, 0x539),
            // inbound: the client at ztunnel, ztunnel as the client at the application, the application's half
            socket("10.0.0.2:15006", "10.7.7.7:5000", ESTABLISHED, 0x539),
            socket("10.7.7.7:6000", "10.0.0.2:8080", ESTABLISHED, 0x539),
            socket("10.0.0.2:8080", "10.7.7.7:6000", ESTABLISHED, 0),
        ];
        assert_eq!(older_flows(&sockets), BTreeSet::new());
        assert_eq!(proxied(&sockets), 3);
    }

    #[test]
    fn loopback_and_ended_connections_are_not_kept() {
        let sockets = [
            socket("127.0.0.1:40000", "127.0.0.1:80", ESTABLISHED, 0),
            socket("10.0.0.2:40000", "10.9.9.9:80", TCP_TIME_WAIT, 0),
        ];
        assert_eq!(older_flows(&sockets), BTreeSet::new());
    }

    #[test]
    fn a_pooled_tunnel_does_not_hold_up_a_drain_and_a_closing_connection_does() {
        let tunnel = socket("10.0.0.2:50000", "10.9.9.9:15008", ESTABLISHED, 0x539);
        assert_eq!(proxied(std::slice::from_ref(&tunnel)), 0);
        let closing = socket("127.0.0.1:15001", "10.0.0.2:40000", FIN_WAIT2, 0x539);
        assert_eq!(proxied(&[tunnel, closing]), 1);
    }

    #[test]
    fn kept_connections_go_with_their_sockets() {
        let open = socket("10.0.0.2:40000", "10.9.9.9:80", ESTABLISHED, 0);
        let gone = socket("10.0.0.2:40001", "10.9.9.9:80", ESTABLISHED, 0);
        let kept = BTreeSet::from([open.flow, gone.flow]);
        assert_eq!(still_open(&kept, std::slice::from_ref(&open)), BTreeSet::from([open.flow]));
    }
}
