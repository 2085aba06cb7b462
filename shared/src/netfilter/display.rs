//! Rules as people read them: nft's own syntax, near enough to compare with `nft list table inet sluice`.

use super::{
    Chain, ChainName, Elements, Hook, Iface, Layer, Match, Proto, Rule, Ruleset, Set, SetName, SocketTest,
    Target, Test,
};
use crate::cookie::Cookie;
use crate::ids::Family;
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for chain in &self.chains {
            writeln!(f, "{chain}")?;
        }
        Ok(())
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "set {} {{", self.name)?;
        for line in self.elements.lines() {
            writeln!(f, "\t{line}")?;
        }
        f.write_str("}")
    }
}

impl Elements {
    fn lines(&self) -> Vec<String> {
        let noted = |value: String, note: &str| {
            if note.is_empty() { value } else { format!("{value} comment \"{note}\"") }
        };
        match self {
            Self::Flows(_, flows) => {
                flows.iter().map(|flow| format!("{} <-> {}", end(flow.local), end(flow.remote))).collect()
            }
            Self::Addresses(_, addresses) => {
                addresses.iter().map(|(address, note)| noted(address.to_string(), note)).collect()
            }
            Self::Ports(ports) => ports.iter().map(ToString::to_string).collect(),
            Self::Cgroups(cgroups) => {
                cgroups.iter().map(|cgroup| format!("\"{}\" (id {})", cgroup.path, cgroup.id)).collect()
            }
        }
    }
}

fn end((address, port): (IpAddr, u16)) -> String {
    format!("{address} . {port}")
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "chain {} {{", self.name)?;
        if let ChainName::Base(layer, hook) = self.name {
            let kind = self.name.kind().unwrap_or_default();
            writeln!(f, "\ttype {kind} hook {hook} priority {}", layer.priority(hook))?;
        }
        for rule in &self.rules {
            writeln!(f, "\t{rule}")?;
        }
        f.write_str("}")
    }
}

impl ChainName {
    /// The nft chain type; `None` for a chain that no hook calls.
    #[must_use]
    pub const fn kind(self) -> Option<&'static str> {
        match self {
            Self::Base(Layer::Nat, _) => Some("nat"),
            // Only this type routes a packet again when its mark has changed.
            Self::Base(Layer::Mangle, Hook::Output) => Some("route"),
            Self::Base(..) => Some("filter"),
            Self::Hold => None,
        }
    }
}

impl Layer {
    /// When, among the chains of a hook, it comes (`enum nf_ip_hook_priorities`).
    #[must_use]
    pub const fn priority(self, hook: Hook) -> i32 {
        match (self, hook) {
            (Self::Raw, _) => -300,
            (Self::Mangle, _) => -150,
            (Self::Nat, Hook::Postrouting | Hook::Input) => 100,
            (Self::Nat, _) => -100,
            (Self::Filter, _) => 0,
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.only() {
            Some(Family::V4) => f.write_str("meta nfproto ipv4 ")?,
            Some(Family::V6) => f.write_str("meta nfproto ipv6 ")?,
            None => {}
        }
        let mut proto = "";
        for matched in &self.matches {
            if let Match::Proto(named) = matched {
                proto = named.name();
            }
            matched.write(f, proto)?;
            f.write_str(" ")?;
        }
        write!(f, "{} comment \"{}\"", self.target, self.why)
    }
}

impl Match {
    fn write(&self, f: &mut Formatter<'_>, proto: &str) -> fmt::Result {
        let ip = |address: &IpAddr| if address.is_ipv4() { "ip" } else { "ip6" };
        match self {
            Self::Proto(proto) => write!(f, "meta l4proto {}", proto.name()),
            Self::Iif(test) => write!(f, "iif {test}"),
            Self::Oif(test) => write!(f, "oif {test}"),
            Self::Mark(Test::Is(mark)) => write!(f, "meta mark & {:#x} == {:#x}", mark.mask, mark.value),
            Self::Mark(Test::Not(mark)) => write!(f, "meta mark & {:#x} != {:#x}", mark.mask, mark.value),
            Self::CtMark(mark) => write!(f, "ct mark & {:#x} == {:#x}", mark.mask, mark.value),
            Self::CtLabel(bit) => write!(f, "ct label {bit}"),
            Self::OpeningSyn(Test::Is(())) => f.write_str("tcp flags & (fin|syn|rst|ack) == syn"),
            Self::OpeningSyn(Test::Not(())) => f.write_str("tcp flags & (fin|syn|rst|ack) != syn"),
            Self::Cookie(cookie) => {
                write!(f, "tcp option @{},0,96 0x", Cookie::kind())?;
                cookie.option().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::SrcPort(port) => write!(f, "{proto} sport {port}"),
            Self::DstPort(test) => write!(f, "{proto} dport {test}"),
            Self::DstPortIn(set) => write!(f, "{proto} dport @{set}"),
            Self::Src(address) => write!(f, "{} saddr {address}", ip(address)),
            Self::Dst(address) => write!(f, "{} daddr {address}", ip(address)),
            Self::SrcIn(set) => write!(f, "saddr @{set}"),
            Self::DstIn(set) => write!(f, "daddr @{set}"),
            Self::TupleIn(set) => write!(f, "saddr . {proto} sport . daddr . {proto} dport @{set}"),
            Self::SocketCgroupIn(level, set) => write!(f, "socket cgroupv2 level {level} @{set}"),
            Self::Socket(SocketTest::Transparent) => f.write_str("socket transparent 1"),
            Self::Socket(SocketTest::Plain) => f.write_str("socket transparent 0"),
            Self::Socket(SocketTest::MarkIsNot(mark)) => {
                write!(f, "socket mark & {:#x} != {:#x}", mark.mask, mark.value)
            }
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::RejectReset => f.write_str("reject with tcp reset"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Snat(source) => write!(f, "snat to {source}"),
            Self::SetCtZone(zone) => write!(f, "ct zone set {zone}"),
            Self::SetCtMark(mark) => write!(f, "ct mark set ct mark & {:#x} | {:#x}", !mark.mask, mark.value),
            Self::RestoreMark => f.write_str("meta mark set ct mark"),
            Self::SetCtLabel(bit) => write!(f, "ct label set {bit}"),
        }
    }
}

impl<T: Display> Display for Test<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => write!(f, "{value}"),
            Self::Not(value) => write!(f, "!= {value}"),
        }
    }
}

impl Display for Iface {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("\"lo\""),
            Self::Named(name) => write!(f, "\"{name}\""),
        }
    }
}

impl Proto {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// The nft chain's name: `out_nat`, `in_filter`, …
impl Display for ChainName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self::Base(layer, hook) = self else { return f.write_str("hold") };
        let hook = match hook {
            Hook::Prerouting => "pre",
            Hook::Input => "in",
            Hook::Output => "out",
            Hook::Postrouting => "post",
        };
        let layer = match layer {
            Layer::Raw => "raw",
            Layer::Mangle => "mangle",
            Layer::Nat => "nat",
            Layer::Filter => "filter",
        };
        write!(f, "{hook}_{layer}")
    }
}

/// The nft set's name: `kept4`, `ztunnel_ports`, …
impl Display for SetName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digit = |family: &Family| if *family == Family::V4 { '4' } else { '6' };
        match self {
            Self::Kept(family) => write!(f, "kept{}", digit(family)),
            Self::Ztunnel(level) => write!(f, "ztunnel_level{level}"),
            Self::ProbeSources(family) => write!(f, "probe_sources{}", digit(family)),
            Self::ProbePorts => f.write_str("probe_ports"),
            Self::ZtunnelPorts => f.write_str("ztunnel_ports"),
            Self::Kubelet => f.write_str("kubelet"),
            Self::Pods(family) => write!(f, "pods{}", digit(family)),
        }
    }
}
