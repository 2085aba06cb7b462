//! As much of the kernel's packet path as the rules can tell: hooks in order, NAT for the first packet of a connection
//! only, redirected packets coming back over `lo`.

use sluice_shared::contract::{PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use sluice_shared::cookie::Cookie;
use sluice_shared::netfilter::Hook;
use sluice_shared::plan::{CgroupRef, Kind, Packet, Path, Receiver, Verdict};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;

/// One way to run a packet through the rules of one hook.
pub trait Machine {
    fn hook(&self, hook: Hook, skb: &mut Skb) -> Fate;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Continue,
    Drop,
    Reset,
}

/// A packet on its way, with its connection.
#[derive(Clone, Debug)]
pub struct Skb {
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub protocol: u8,
    pub tcp_flags: u8,
    /// What follows the first twenty bytes of a TCP header.
    pub tcp_options: Vec<u8>,
    pub mark: u32,
    pub iif: Option<(u32, String)>,
    pub oif: Option<(u32, String)>,
    /// The cgroup of the sending socket and its ancestors.
    pub maker: BTreeSet<CgroupRef>,
    pub receiver: Option<Socket>,
    pub ct_mark: u32,
    pub ct_zone: u16,
    pub ct_label: u128,
    /// Whether NAT chains are asked.
    pub nat: bool,
    pub redirected: Option<u16>,
    pub snat: Option<IpAddr>,
}

/// The socket that would get a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub transparent: bool,
    /// `None` in TIME_WAIT.
    pub mark: Option<u32>,
}

/// Everything that the rules did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub mark: u32,
    pub ct_mark: u32,
    pub ct_zone: u16,
}

/// Runs a packet. With `known`, conntrack knows its connection, which has that mark.
pub fn walk(machine: &dyn Machine, packet: &Packet, known: Option<u32>) -> Outcome {
    let mut skb = Skb::new(packet, known);
    let lo = Some((1, "lo".to_owned()));
    let eth0 = Some((2, "eth0".to_owned()));
    let (delivered, mut fate) = match &packet.path {
        Path::Out | Path::OverLo => {
            skb.oif = if packet.path == Path::OverLo { lo.clone() } else { eth0 };
            let mut fate = machine.hook(Hook::Output, &mut skb);
            skb.oif = None;
            let comes_back = skb.redirected.is_some() || packet.path == Path::OverLo;
            if comes_back && fate == Fate::Continue {
                skb.iif = lo;
                // Bound at output; the socket is not seen any more.
                skb.nat = false;
                skb.maker.clear();
                skb.destination.1 = skb.redirected.unwrap_or(skb.destination.1);
                fate = machine.hook(Hook::Prerouting, &mut skb);
            }
            (comes_back, fate)
        }
        Path::In(name) => {
            skb.iif = Some((3, name.to_string()));
            let fate = machine.hook(Hook::Prerouting, &mut skb);
            skb.destination.1 = skb.redirected.unwrap_or(skb.destination.1);
            (true, fate)
        }
    };
    let mark = skb.mark;
    if delivered && fate == Fate::Continue {
        skb.receiver = receiver(packet, skb.destination.1);
        fate = machine.hook(Hook::Input, &mut skb);
    }
    let verdict = match (fate, skb.redirected) {
        (Fate::Drop, _) => Verdict::Held,
        (Fate::Reset, _) => Verdict::Rejected,
        (_, None) => Verdict::Direct,
        (_, Some(PORT_OUTBOUND)) => Verdict::ToOutbound,
        (_, Some(PORT_INBOUND)) => Verdict::ToInbound,
        (_, Some(PORT_DNS_PROXY)) => Verdict::ToDns,
        (_, Some(port)) => panic!("redirected to port {port}, where nobody is"),
    };
    Outcome { verdict, mark, ct_mark: skb.ct_mark, ct_zone: skb.ct_zone }
}

/// The socket on a local port, as ztunnel and others open theirs: all but the DNS listener are transparent.
fn receiver(packet: &Packet, port: u16) -> Option<Socket> {
    let listeners = packet.listeners;
    let (who, transparent) = match port {
        PORT_OUTBOUND => (listeners.outbound, true),
        PORT_INBOUND => (listeners.inbound, true),
        PORT_HBONE => (listeners.hbone, true),
        PORT_DNS_PROXY => (listeners.dns, false),
        _ => (Receiver::Application, false),
    };
    match who {
        Receiver::Nobody => None,
        Receiver::Ztunnel => Some(Socket { transparent, mark: Some(0x539) }),
        Receiver::ZtunnelTimeWait => Some(Socket { transparent, mark: None }),
        Receiver::Application => Some(Socket { transparent: false, mark: Some(0) }),
    }
}

/// As Linux writes an opening SYN's: segment size, selective acknowledgement and timestamps, window scale, then ours.
fn options(cookie: Option<Cookie>) -> Vec<u8> {
    let mut options = vec![2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    options.extend(cookie.iter().flat_map(|cookie| cookie.option()));
    options
}

impl Skb {
    /// The packet where it begins.
    pub fn new(packet: &Packet, known: Option<u32>) -> Self {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        const ECE_CWR: u8 = 0xc0;
        let (protocol, tcp_flags) = match packet.kind {
            Kind::OpeningSyn if packet.source.1.is_multiple_of(2) => (IPPROTO_TCP, SYN | ECE_CWR),
            Kind::OpeningSyn => (IPPROTO_TCP, SYN),
            Kind::MidStream if packet.source.1.is_multiple_of(2) => (IPPROTO_TCP, SYN | ACK),
            Kind::MidStream => (IPPROTO_TCP, ACK),
            Kind::Udp => (IPPROTO_UDP, 0),
        };
        Self {
            source: packet.source,
            destination: packet.destination,
            protocol,
            tcp_flags,
            tcp_options: options(packet.cookie),
            mark: packet.mark,
            iif: None,
            oif: None,
            maker: packet.maker.clone(),
            receiver: None,
            ct_mark: known.unwrap_or(0),
            ct_zone: 0,
            ct_label: 0,
            nat: known.is_none(),
            redirected: None,
            snat: None,
        }
    }
}
