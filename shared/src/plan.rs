//! What happens to one pod's packets, in types, before any backend is named.
//!
//! [`RedirectPlan`] is the one description; `netfilter` (and one day eBPF) lowers it. What a plan means is written
//! down once more, for any packet, as its verdict: the yardstick that every backend is tested against.

mod verdict;

pub use verdict::{Kind, Listeners, Packet, Path, Receiver, Verdict, verdict};

use crate::cookie::Cookie;
use crate::enroll::Overrides;
use crate::ids::Ifname;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's part of every plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Capture DNS unless the pod's annotation says otherwise.
    pub dns_capture: bool,
    /// Capture IPv6 too. Off is for kernels without IPv6 netfilter: a pod's IPv6 then bypasses the mesh.
    pub ipv6: bool,
}

/// What is captured, bypassed, marked and routed in one pod: both families, whatever the pod's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectPlan {
    /// Whether IPv6 is captured as IPv4 is.
    pub ipv6: bool,
    /// Whether new connections are redirected, and which older ones are left alone.
    pub stage: Stage,
    /// Redirect plaintext that comes in to port 15006.
    pub capture_inbound: bool,
    /// Redirect DNS to port 15053.
    pub capture_dns: bool,
    /// What arrives on these interfaces counts as the pod's outbound.
    pub virtual_interfaces: Vec<Ifname>,
    /// How the kubelet's probes reach the application in plaintext.
    pub probe: ProbeDoor,
    /// Whose sockets may carry ztunnel's mark.
    pub guard: MarkGuard,
    /// What happens to opening SYNs to ztunnel's ports while it does not listen.
    pub hold: Hold,
}

/// How far a pod's redirection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Everything that begins is redirected.
    Redirect(Older),
    /// The pod is leaving: nothing new is redirected, and what is proxied keeps its marks, rule and route until it
    /// ends. The NAT chains are empty but there, or the kernel would stop translating live connections.
    Drain,
}

/// Connections that are older than the rules, which keep their path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Older {
    /// There are none: the rules came before the pod's first process.
    None,
    /// Any mid-stream packet may belong to one. True at the moment of the commit only: a proxied connection that
    /// conntrack has forgotten would leak (facts in docs/decisions/0003-kept-connections.md).
    AnyMidStream,
    /// Exactly these.
    Kept(BTreeSet<Flow>),
}

/// A TCP connection as the pod's own socket sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// The pod's end. IPv4-mapped addresses are written as IPv4.
    pub local: (IpAddr, u16),
    /// The other end, of the same family.
    pub remote: (IpAddr, u16),
}

/// How the kubelet's probes pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeDoor {
    /// They do not: they are captured like everything else.
    Closed,
    /// By the source address that the host's table gives them.
    Snat {
        /// For IPv4 pods.
        v4: Ipv4Addr,
        /// For IPv6 pods.
        v6: Ipv6Addr,
    },
    /// By the node's own addresses as the pod sees them, to the pod's declared probe ports only.
    Source {
        /// Where the node's own connections to the pod come from.
        addresses: BTreeSet<IpAddr>,
        /// The declared probe ports; none means that nothing passes.
        ports: BTreeSet<u16>,
    },
    /// As [`ProbeDoor::Source`], and with a secret of the pod's own in the opening SYN. iptables cannot compare it: there
    /// nothing passes.
    Cookie {
        /// The secrets that pass: one, or two while one follows the other.
        cookies: BTreeSet<Cookie>,
        /// Where the node's own connections to the pod come from.
        addresses: BTreeSet<IpAddr>,
        /// The declared probe ports; none means that nothing passes.
        ports: BTreeSet<u16>,
    },
    /// For one connection that the agent makes itself, to try another door.
    Trial(TrialDoor),
    /// Several beside each other, none of them of this kind. What they say of addresses and ports is put together: those are
    /// the node's and the pod's, and the same for each.
    Several(Vec<ProbeDoor>),
}

/// Lets one connection of the agent's own pass: the very addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialDoor {
    /// Where it comes from, as the pod is to see it.
    pub from: IpAddr,
    /// And by which port; `None` where the host's table may choose another.
    pub from_port: Option<u16>,
    /// The agent's own listener in the pod.
    pub to: (IpAddr, u16),
    /// What its opening SYN carries.
    pub cookie: Option<Cookie>,
}

/// Whose sockets may use ztunnel's mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkGuard {
    /// Anybody's: there is no cgroup v2 tree to tell them apart.
    Off,
    /// Only sockets made in one of these cgroups. Empty means nobody's.
    Cgroups(BTreeSet<CgroupRef>),
}

/// A cgroup v2 directory, as both backends name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CgroupRef {
    /// Its depth below the root that the rules' author sees: `/kubepods/x` has 2. At least 1.
    pub level: u32,
    /// Its 64-bit id (the directory's inode).
    pub id: u64,
    /// Its path from that root, with no leading slash.
    pub path: String,
}

/// What happens to an opening SYN to one of ztunnel's ports that no ztunnel listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is dropped, so that the client's retransmit succeeds.
    Drop,
    /// It is answered with a reset, so that applications see an error.
    Reject,
}

impl ProbeDoor {
    /// These doors beside each other.
    #[must_use]
    pub fn several(doors: impl IntoIterator<Item = Self>) -> Self {
        let mut open = Vec::new();
        for door in doors.into_iter().flat_map(Self::into_doors) {
            if !open.contains(&door) {
                open.push(door);
            }
        }
        match open.len() {
            0 => Self::Closed,
            1 => open.remove(0),
            _ => Self::Several(open),
        }
    }

    fn into_doors(self) -> Vec<Self> {
        match self {
            Self::Closed => Vec::new(),
            Self::Several(doors) => doors,
            one => vec![one],
        }
    }

    /// Each door that is open.
    pub fn doors(&self) -> impl Iterator<Item = &Self> {
        let doors = match self {
            Self::Closed => &[],
            Self::Several(doors) => doors.as_slice(),
            one => std::slice::from_ref(one),
        };
        doors.iter()
    }

    /// The sources of strategy `snat`, if that is among them.
    #[must_use]
    pub fn snat(&self) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.doors().find_map(|door| match door {
            Self::Snat { v4, v6 } => Some((*v4, *v6)),
            _ => None,
        })
    }

    /// The node's own addresses, where a door goes by them.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let of = |door: &Self| match door {
            Self::Source { addresses, .. } | Self::Cookie { addresses, .. } => addresses.clone(),
            _ => BTreeSet::new(),
        };
        self.doors().flat_map(of).collect()
    }

    /// The declared ports, where a door goes by them.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        let of = |door: &Self| match door {
            Self::Source { ports, .. } | Self::Cookie { ports, .. } => ports.clone(),
            _ => BTreeSet::new(),
        };
        self.doors().flat_map(of).collect()
    }
}

/// The plan for a pod.
#[must_use]
pub fn redirect(
    overrides: &Overrides,
    config: &RedirectConfig,
    stage: Stage,
    probe: ProbeDoor,
    guard: MarkGuard,
    hold: Hold,
) -> RedirectPlan {
    RedirectPlan {
        ipv6: config.ipv6,
        stage,
        capture_inbound: !overrides.bypass_inbound,
        capture_dns: overrides.dns_capture.unwrap_or(config.dns_capture),
        virtual_interfaces: overrides.virtual_interfaces.clone(),
        // A pod whose inbound is not captured needs no door in it.
        probe: if overrides.bypass_inbound { ProbeDoor::Closed } else { probe },
        guard,
        hold,
    }
}
