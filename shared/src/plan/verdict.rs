//! What a plan means for a packet: the yardstick that every backend is tested against.
//!
//! It is written from the plan, not from the rules, and knows nothing of chains, hooks or marks on connections. It
//! answers for packets that conntrack does not know: those that open a connection, and those of connections that it
//! never saw or has forgotten. All others go where the first packet of their connection went.

use super::{CgroupRef, Flow, Hold, MarkGuard, Older, ProbeDoor, RedirectPlan, Stage};
use crate::contract::{MARK_ZTUNNEL, PORT_DNS, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use crate::cookie::Cookie;
use crate::ids::Ifname;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A packet that conntrack does not know, in a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it begins.
    pub path: Path,
    /// What it carries.
    pub kind: Kind,
    /// Its source address and port.
    pub source: (IpAddr, u16),
    /// Its destination address and port, of the same family.
    pub destination: (IpAddr, u16),
    /// The cookie in its TCP header.
    pub cookie: Option<Cookie>,
    /// Its mark. Packets from outside have none: a mark does not survive the way between namespaces.
    pub mark: u32,
    /// The cgroup of the socket that sends it, and that cgroup's ancestors. Empty for packets from outside.
    pub maker: BTreeSet<CgroupRef>,
    /// Who listens on ztunnel's ports in the pod.
    pub listeners: Listeners,
}

/// Where a packet begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// At a socket of the pod, for somebody outside.
    Out,
    /// At a socket of the pod, for the pod itself.
    OverLo,
    /// Outside, for the pod, coming in by this interface.
    In(Ifname),
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first segment of a TCP connection.
    OpeningSyn,
    /// Any other TCP segment.
    MidStream,
    /// A UDP datagram.
    Udp,
}

/// Who would receive a packet on each of ztunnel's TCP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Port 15001.
    pub outbound: Receiver,
    /// Port 15006.
    pub inbound: Receiver,
    /// Port 15008.
    pub hbone: Receiver,
    /// Port 15053.
    pub dns: Receiver,
}

/// Who would receive a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Nobody.
    Nobody,
    /// ztunnel's listener.
    Ztunnel,
    /// A connection of ztunnel's that ended a moment ago and whose client uses its port again.
    ZtunnelTimeWait,
    /// An application that took the port.
    Application,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Where it is addressed to.
    Direct,
    /// To ztunnel, as the pod's outbound.
    ToOutbound,
    /// To ztunnel, as plaintext for the pod.
    ToInbound,
    /// To ztunnel's DNS resolver.
    ToDns,
    /// Nowhere, since no ztunnel listens there. Its sender tries again.
    Held,
    /// Nowhere, and its sender is told so.
    Rejected,
}

/// What the plan means for a packet.
#[must_use]
pub fn verdict(plan: &RedirectPlan, packet: &Packet) -> Verdict {
    if packet.source.0.is_ipv6() && !plan.ipv6 {
        return Verdict::Direct;
    }
    let redirected = match &plan.stage {
        Stage::Drain => Verdict::Direct,
        Stage::Redirect(older) if older.keeps(packet) => Verdict::Direct,
        Stage::Redirect(_) => match &packet.path {
            Path::Out => leaving(plan, packet),
            Path::OverLo => Verdict::Direct,
            Path::In(interface) => arriving(plan, packet, interface),
        },
    };
    if packet.kind == Kind::OpeningSyn && !packet.receiver(redirected).is_none_or(Receiver::is_ztunnel) {
        return match plan.hold {
            Hold::Drop => Verdict::Held,
            Hold::Reject => Verdict::Rejected,
        };
    }
    redirected
}

fn leaving(plan: &RedirectPlan, packet: &Packet) -> Verdict {
    let (address, port) = packet.destination;
    if packet.is_ztunnels(&plan.guard) || plan.is_probe_answer(packet, address) {
        Verdict::Direct
    } else if plan.capture_dns && port == PORT_DNS {
        Verdict::ToDns
    } else if packet.kind == Kind::Udp {
        Verdict::Direct
    } else {
        Verdict::ToOutbound
    }
}

fn arriving(plan: &RedirectPlan, packet: &Packet, interface: &Ifname) -> Verdict {
    if packet.kind == Kind::Udp {
        Verdict::Direct
    } else if plan.virtual_interfaces.contains(interface) {
        Verdict::ToOutbound
    } else if !plan.capture_inbound || packet.destination.1 == PORT_HBONE || plan.probe.lets_in(packet) {
        Verdict::Direct
    } else {
        Verdict::ToInbound
    }
}

impl RedirectPlan {
    /// Whether it answers a probe on a connection that conntrack forgot.
    fn is_probe_answer(&self, packet: &Packet, to: IpAddr) -> bool {
        let Some((v4, v6)) = self.probe.snat() else { return false };
        self.capture_inbound && packet.kind == Kind::MidStream && (to == v4 || to == v6)
    }
}

impl Older {
    /// Whether the packet's connection is older than the rules.
    fn keeps(&self, packet: &Packet) -> bool {
        let (source, destination) = (packet.source, packet.destination);
        packet.kind == Kind::MidStream
            && match self {
                Self::None => false,
                Self::AnyMidStream => true,
                Self::Kept(flows) => {
                    flows.contains(&Flow { local: source, remote: destination })
                        || flows.contains(&Flow { local: destination, remote: source })
                }
            }
    }
}

impl ProbeDoor {
    fn lets_in(&self, packet: &Packet) -> bool {
        let to_probe =
            self.addresses().contains(&packet.source.0) && self.ports().contains(&packet.destination.1);
        self.doors().any(|door| door.is_open_to(packet, to_probe))
    }

    /// `to_probe` says whether it comes from the node, and goes to a declared port.
    fn is_open_to(&self, packet: &Packet, to_probe: bool) -> bool {
        let (source, port) = packet.source;
        match self {
            Self::Closed | Self::Several(_) => false,
            Self::Snat { v4, v6 } => source == *v4 || source == *v6,
            Self::Source { .. } => to_probe,
            Self::Cookie { cookies, .. } => {
                packet.cookie.is_some_and(|cookie| cookies.contains(&cookie)) && to_probe
            }
            Self::Trial(trial) => {
                source == trial.from
                    && trial.from_port.is_none_or(|from| from == port)
                    && packet.destination == trial.to
                    && trial.cookie.is_none_or(|cookie| packet.cookie == Some(cookie))
            }
        }
    }
}

impl Packet {
    /// Whether it counts as sent by ztunnel.
    fn is_ztunnels(&self, guard: &MarkGuard) -> bool {
        MARK_ZTUNNEL.matches(self.mark)
            && match guard {
                MarkGuard::Off => true,
                MarkGuard::Cgroups(trusted) => !trusted.is_disjoint(&self.maker),
            }
    }

    /// Who would receive it, when it goes to one of ztunnel's TCP ports in the pod.
    fn receiver(&self, redirected: Verdict) -> Option<Receiver> {
        let port = match redirected {
            Verdict::ToOutbound => PORT_OUTBOUND,
            Verdict::ToInbound => PORT_INBOUND,
            Verdict::ToDns => PORT_DNS_PROXY,
            _ if self.path == Path::Out => return None,
            _ => self.destination.1,
        };
        match port {
            PORT_OUTBOUND => Some(self.listeners.outbound),
            PORT_INBOUND => Some(self.listeners.inbound),
            PORT_HBONE => Some(self.listeners.hbone),
            PORT_DNS_PROXY => Some(self.listeners.dns),
            _ => None,
        }
    }
}

impl Receiver {
    const fn is_ztunnel(self) -> bool {
        matches!(self, Self::Ztunnel | Self::ZtunnelTimeWait)
    }
}
