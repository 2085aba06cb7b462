//! The TCP sockets of a namespace, from sock_diag(7).

use super::netlink::{Conversation, Kept, Request, attribute};
use crate::kernel::{KernelError, TcpSocket};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use sluice_shared::contract::{MARK_ZTUNNEL, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use sluice_shared::plan::Flow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h)
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct inet_diag_msg` (include/uapi/linux/inet_diag.h)
const INET_DIAG_MSG: usize = 72;
/// Given only to those with CAP_NET_ADMIN.
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// include/net/tcp_states.h
const TCP_LISTEN: u8 = 10;
const ALL_STATES: u32 = u32::MAX;

/// Every TCP socket of the calling thread's namespace.
pub(super) fn all() -> Result<Vec<TcpSocket>, KernelError> {
    dump(ALL_STATES)
}

/// Which of ztunnel's TCP ports have a listener with ztunnel's mark.
pub(super) fn listening() -> Result<BTreeSet<u16>, KernelError> {
    let ztunnels = [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE, PORT_DNS_PROXY];
    Ok(dump(1 << TCP_LISTEN)?
        .into_iter()
        .filter(|socket| MARK_ZTUNNEL.matches(socket.mark))
        .map(|socket| socket.flow.local.1)
        .filter(|port| ztunnels.contains(port))
        .collect())
}

fn dump(states: u32) -> Result<Vec<TcpSocket>, KernelError> {
    let mut conversation = Conversation::open(NETLINK_SOCK_DIAG)?;
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match conversation.dump(&request(family as u8, states)) {
            Ok(found) => sockets.extend(found.iter().filter_map(socket)),
            // A kernel without IPv6 has nobody to ask.
            Err(refused) if family == libc::AF_INET6 && refused.errno() == Some(libc::ENOENT) => {}
            Err(refused) => return Err(refused.during("list the TCP sockets")),
        }
    }
    Ok(sockets)
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and an id that selects nothing.
fn request(family: u8, states: u32) -> Request {
    let mut fixed = [0; 56];
    fixed[0] = family;
    fixed[1] = libc::IPPROTO_TCP as u8;
    fixed[4..8].copy_from_slice(&states.to_ne_bytes());
    Request::new(SOCK_DIAG_BY_FAMILY, 0).fixed(&fixed)
}

/// Family, state, timer, retransmits; then the id: source port, destination port, source and destination address.
fn socket(message: &Kept) -> Option<TcpSocket> {
    let payload = &message.payload;
    let family = i32::from(*payload.first()?);
    let port = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| {
        let bytes: [u8; 16] = payload.get(at..at + 16)?.try_into().ok()?;
        Some(match family {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
            _ => Ipv6Addr::from(bytes).to_canonical(),
        })
    };
    let extensions = payload.get(INET_DIAG_MSG..)?;
    let number = |kind: u16| attribute(extensions, kind).map(<[u8]>::to_vec);
    Some(TcpSocket {
        flow: Flow { local: (address(8)?, port(4)?), remote: (address(24)?, port(6)?) },
        state: *payload.get(1)?,
        mark: number(INET_DIAG_MARK).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes),
        cgroup: number(INET_DIAG_CGROUP_ID).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes),
    })
}
