//! The plan as rules, neutral between nftables and iptables.
//!
//! One [`Ruleset`] is what a backend installs, whole. It is typed to the last bit: text and bytes are made by
//! [`crate::nft`] and [`crate::iptables`], and each rule says in [`Rule::why`] what it is for, which is what an
//! operator reads in `nft list ruleset` and `iptables -S`.
//!
//! Every base chain's policy is accept, so [`Target::Accept`] means "nothing more from us": other people's chains at
//! the same hook still see the packet.

mod display;
mod host;
mod pod;

pub use host::{by_label as host_by_label, by_socket as host_by_socket, changes as host_changes};
pub use pod::from_plan;

use crate::cookie::Cookie;
use crate::ids::{Family, Ifname, Mark};
use crate::plan::{CgroupRef, Flow};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that is installed in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// What the rules look up, in order of definition.
    pub sets: Vec<Set>,
    /// The chains: user chains and base chains, in any order.
    pub chains: Vec<Chain>,
}

/// A list of rules; the first that matches with a final target decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Which.
    pub name: ChainName,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Where a chain is reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainName {
    /// From a hook of the kernel.
    Base(Layer, Hook),
    /// From the rule that sends opening SYNs to ztunnel's ports here (filter input).
    Hold,
}

/// What a chain may do, and when: the iptables table, or the nft chain type and priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// Before conntrack (-300).
    Raw,
    /// After conntrack, before routing is final (-150).
    Mangle,
    /// Address translation: only the first packet of a connection gets here (-100, and 100 at postrouting).
    Nat,
    /// Filtering (0).
    Filter,
}

/// A hook of the kernel's packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// A packet came in by an interface, `lo` included.
    Prerouting,
    /// A packet is for a local socket.
    Input,
    /// A local socket sends.
    Output,
    /// A packet leaves by an interface.
    Postrouting,
}

/// One rule: when every match holds, the target happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Only this family; `None` means both, unless a match names an address or a set of one family.
    pub family: Option<Family>,
    /// All must hold. A match on a port comes after the match on its protocol.
    pub matches: Vec<Match>,
    /// What happens.
    pub target: Target,
    /// What it is for; at most 120 bytes, so that every backend can keep it as a comment.
    pub why: Cow<'static, str>,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test<T> {
    /// It is this.
    Is(T),
    /// It is anything else.
    Not(T),
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// TCP (6)
    Tcp,
    /// UDP (17)
    Udp,
}

/// An interface that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Iface {
    /// `lo`, whose index is 1 in every namespace (`LOOPBACK_IFINDEX`).
    Loopback,
    /// Any other, by name, whether it is there yet or not.
    Named(Ifname),
}

/// One condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The transport protocol.
    Proto(Proto),
    /// The interface it came in by.
    Iif(Test<Iface>),
    /// The interface that routing chose before the hook began.
    Oif(Test<Iface>),
    /// Its mark, under the mark's mask.
    Mark(Test<Mark>),
    /// Its connection's mark, under the mark's mask.
    CtMark(Mark),
    /// A bit, from 0 to 127, of its connection's label.
    CtLabel(u8),
    /// `tcp flags & (fin|syn|rst|ack)` is, or is not, exactly `syn`. The bits of ECN do not count.
    OpeningSyn(Test<()>),
    /// Its TCP header carries this cookie. iptables cannot compare it, and there this holds for no packet.
    Cookie(Cookie),
    /// The source port.
    SrcPort(u16),
    /// The destination port.
    DstPort(Test<u16>),
    /// The destination port is in the set.
    DstPortIn(SetName),
    /// The source address.
    Src(IpAddr),
    /// The destination address.
    Dst(IpAddr),
    /// The source address is in the set.
    SrcIn(SetName),
    /// The destination address is in the set.
    DstIn(SetName),
    /// Source, source port, destination and destination port together are in the set.
    TupleIn(SetName),
    /// The socket that sends it was made in a cgroup whose ancestor of this level is in the set.
    SocketCgroupIn(u32, SetName),
    /// The socket that would receive it.
    Socket(SocketTest),
}

/// A condition on the socket that would receive a packet. With no such socket, none holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketTest {
    /// It has `IP_TRANSPARENT`. The kernel remembers that in TIME_WAIT too.
    Transparent,
    /// It does not have `IP_TRANSPARENT`.
    Plain,
    /// Its `SO_MARK` is another. A socket in TIME_WAIT has none to compare: this does not hold for it.
    MarkIsNot(Mark),
}

/// What happens to a packet that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing more from us.
    Accept,
    /// It is gone.
    Drop,
    /// It is gone, and its sender gets a TCP reset.
    RejectReset,
    /// The rules of that chain come next, then the ones after this.
    Jump(ChainName),
    /// Its connection goes to this port of the machine itself.
    Redirect(u16),
    /// Its connection gets this source address.
    Snat(IpAddr),
    /// Its connection is tracked in this zone. Not final.
    SetCtZone(u16),
    /// Its connection gets this mark; the bits outside of the mask stay. Not final.
    SetCtMark(Mark),
    /// It gets its connection's mark, all 32 bits, and is routed again. Not final.
    RestoreMark,
    /// Its connection's label gets this bit. Not final.
    SetCtLabel(u8),
}

/// How many elements a set is made for at least: 256 bytes in the kernel.
const ROOM: usize = 16;
/// How many addresses a set of pods is made for at least: more than most nodes have pods, and 4 KiB in the kernel.
const PODS_ROOM: usize = 256;

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique in the rule set.
    pub name: SetName,
    /// What is in it.
    pub elements: Elements,
}

/// The sets that rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    /// Connections older than the rules, of one family.
    Kept(Family),
    /// The cgroups of ztunnel's sockets that have this level.
    Ztunnel(u32),
    /// The node's own addresses, of one family.
    ProbeSources(Family),
    /// The ports that the kubelet probes.
    ProbePorts,
    /// The TCP ports that ztunnel listens on.
    ZtunnelPorts,
    /// In the host: the kubelet's cgroup.
    Kubelet,
    /// In the host: the addresses of enrolled pods, of one family.
    Pods(Family),
}

/// What is in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// TCP connections, each found in both directions, all of one family.
    Flows(Family, BTreeSet<Flow>),
    /// Addresses of one family, each with a note (such as a pod's uid), which may be empty.
    Addresses(Family, BTreeMap<IpAddr, String>),
    /// Ports.
    Ports(BTreeSet<u16>),
    /// Cgroups of one level.
    Cgroups(BTreeSet<CgroupRef>),
}

impl Ruleset {
    /// What a set holds.
    #[must_use]
    pub fn elements(&self, name: SetName) -> Option<&Elements> {
        self.sets.iter().find(|set| set.name == name).map(|set| &set.elements)
    }
}

impl Elements {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Flows(_, flows) => flows.is_empty(),
            Self::Addresses(_, addresses) => addresses.is_empty(),
            Self::Ports(ports) => ports.is_empty(),
            Self::Cgroups(cgroups) => cgroups.is_empty(),
        }
    }
}

impl Rule {
    /// The only family whose packets can match: the rule's own, or that of an address or a set in it.
    #[must_use]
    pub fn only(&self) -> Option<Family> {
        self.family.or_else(|| self.matches.iter().find_map(Match::family))
    }

    /// Whether packets of this family can match.
    #[must_use]
    pub fn applies_to(&self, family: Family) -> bool {
        self.only().is_none_or(|only| only == family)
    }
}

impl Match {
    /// The set that it looks up.
    #[must_use]
    pub const fn set(&self) -> Option<SetName> {
        match self {
            Self::DstPortIn(set)
            | Self::SrcIn(set)
            | Self::DstIn(set)
            | Self::TupleIn(set)
            | Self::SocketCgroupIn(_, set) => Some(*set),
            _ => None,
        }
    }

    /// The family of the addresses that it compares.
    fn family(&self) -> Option<Family> {
        match self {
            Self::Src(address) | Self::Dst(address) => Some(family_of(*address)),
            _ => self.set().and_then(SetName::family),
        }
    }
}

impl SetName {
    /// The family of the addresses in it.
    #[must_use]
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::Kept(family) | Self::ProbeSources(family) | Self::Pods(family) => Some(family),
            Self::Ztunnel(_) | Self::ProbePorts | Self::ZtunnelPorts | Self::Kubelet => None,
        }
    }

    /// For how many elements the set is made, given how many it has: a power of two that holds those. One whose elements
    /// come and go with pods has room for more of them.
    ///
    /// A set that may grow without limit is a table that the kernel rehashes in the background, and a dump taken meanwhile
    /// misses elements (`rhashtable_walk_start` in lib/rhashtable.c): a fingerprint taken after a commit, or the
    /// connections that a restarted agent reads back, would not be what the set holds. One with a size never moves.
    #[must_use]
    pub fn room(self, elements: usize) -> usize {
        let least = if matches!(self, Self::Pods(_)) { PODS_ROOM } else { ROOM };
        elements.next_power_of_two().max(least)
    }
}

/// The family of an address.
#[must_use]
pub const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The connections of one family, mixed-up ones left out.
#[must_use]
pub fn flows_of(family: Family, flows: &BTreeSet<Flow>) -> BTreeSet<Flow> {
    let of = |flow: &&Flow| family_of(flow.local.0) == family && family_of(flow.remote.0) == family;
    flows.iter().filter(of).copied().collect()
}
