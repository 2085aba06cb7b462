//! A pod's plan as rules. Tighter than Istio's set, and why is said at each rule that differs.

use super::{
    Chain, ChainName, Elements, Hook, Iface, Layer, Match, Proto, Rule, Ruleset, Set, SetName, SocketTest,
    Target, Test, family_of, flows_of,
};
use crate::contract::{
    DNS_CT_ZONE, MARK_PROXIED, MARK_ZTUNNEL, PORT_DNS, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND,
    PORT_OUTBOUND,
};
use crate::cookie::Cookie;
use crate::ids::Family;
use crate::plan::{Hold, MarkGuard, Older, ProbeDoor, RedirectPlan, Stage, TrialDoor};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const TCP: Match = Match::Proto(Proto::Tcp);
const UDP: Match = Match::Proto(Proto::Udp);
const OPENING: Match = Match::OpeningSyn(Test::Is(()));
const NOT_OPENING: Match = Match::OpeningSyn(Test::Not(()));
const FROM_ZTUNNEL: Match = Match::Mark(Test::Is(MARK_ZTUNNEL));
const NOT_FROM_ZTUNNEL: Match = Match::Mark(Test::Not(MARK_ZTUNNEL));
const TO_DNS: Match = Match::DstPort(Test::Is(PORT_DNS));
const OVER_LO: Match = Match::Oif(Test::Is(Iface::Loopback));
const NOT_OVER_LO: Match = Match::Oif(Test::Not(Iface::Loopback));
const NOT_FROM_LO: Match = Match::Iif(Test::Not(Iface::Loopback));

/// A pod's rules. Pure: equal plans give equal rules.
#[must_use]
pub fn from_plan(plan: &RedirectPlan) -> Ruleset {
    let mut chains = Vec::new();
    if plan.capture_dns {
        chains.extend(raw());
    }
    chains.extend(mangle());
    chains.push(hold(plan.hold));
    chains.push(held_ports());
    // Last, so that where a backend cannot commit all tables at once nothing is redirected before the rest is there.
    chains.push(nat(Hook::Prerouting, plan, nat_prerouting));
    chains.push(nat(Hook::Output, plan, nat_output));
    if !plan.ipv6 {
        only_ipv4(&mut chains);
    }
    Ruleset { sets: sets(plan, &chains), chains }
}

/// ztunnel asks the DNS server in a conntrack zone of its own: the application's captured query may have the very
/// same addresses and ports.
fn raw() -> [Chain; 2] {
    let zone = |hook, matches, why| {
        chain(Layer::Raw, hook, vec![rule(matches, Target::SetCtZone(DNS_CT_ZONE), why)])
    };
    [
        zone(
            Hook::Prerouting,
            vec![UDP, Match::SrcPort(PORT_DNS), NOT_FROM_ZTUNNEL],
            "DNS answers for ztunnel: its own conntrack zone",
        ),
        zone(Hook::Output, vec![UDP, TO_DNS, FROM_ZTUNNEL], "ztunnel's DNS queries: its own conntrack zone"),
    ]
}

/// ztunnel connects to the application with the client's address as source. The application's answers to that
/// address must come back to ztunnel: the connection is marked on its way in, and the mark turns answers to `lo`.
fn mangle() -> [Chain; 2] {
    [
        chain(
            Layer::Mangle,
            Hook::Prerouting,
            vec![rule(
                vec![FROM_ZTUNNEL],
                Target::SetCtMark(MARK_PROXIED),
                "remember connections that ztunnel makes to the application",
            )],
        ),
        chain(
            Layer::Mangle,
            Hook::Output,
            vec![rule(
                vec![Match::CtMark(MARK_PROXIED)],
                Target::RestoreMark,
                "answers on those go back to ztunnel, by the routing rule for the mark",
            )],
        ),
    ]
}

/// Opening SYNs to ztunnel's ports are looked at before a socket gets them.
fn held_ports() -> Chain {
    let to_ztunnel = vec![TCP, Match::DstPortIn(SetName::ZtunnelPorts), OPENING];
    let why = "connections to ztunnel's ports: is it ztunnel that listens?";
    chain(Layer::Filter, Hook::Input, vec![rule(to_ztunnel, Target::Jump(ChainName::Hold), why)])
}

/// Lets an opening SYN through to ztunnel's sockets only, so that neither nobody nor an application answers in its
/// place. Its DNS listener alone is not transparent. There the mark tells, but not alone: a client that reuses a port
/// meets a socket in TIME_WAIT, which has no mark, and would be held for good.
fn hold(hold: Hold) -> Chain {
    let to_dns_proxy = |test| vec![TCP, Match::DstPort(Test::Is(PORT_DNS_PROXY)), Match::Socket(test)];
    let (turned_away, nobody) = match hold {
        Hold::Drop => (Target::Drop, "nobody listens: hold, the client tries again"),
        Hold::Reject => (Target::RejectReset, "nobody has listened for too long: refuse"),
    };
    let rules = vec![
        rule(vec![TCP, Match::Socket(SocketTest::Transparent)], Target::Accept, "ztunnel listens"),
        rule(
            to_dns_proxy(SocketTest::MarkIsNot(MARK_ZTUNNEL)),
            turned_away.clone(),
            "somebody else listens on ztunnel's DNS port",
        ),
        rule(
            to_dns_proxy(SocketTest::Plain),
            Target::Accept,
            "ztunnel's DNS listener, or a connection that it just ended",
        ),
        rule(vec![TCP], turned_away, nobody),
    ];
    Chain { name: ChainName::Hold, rules }
}

/// A NAT chain. While a pod leaves it is empty but there: without it the kernel would stop translating connections
/// that ztunnel still carries. Conntrack is then kept on by the mangle chains.
fn nat(hook: Hook, plan: &RedirectPlan, rules: fn(&RedirectPlan, &mut Vec<Rule>)) -> Chain {
    let mut chain = chain(Layer::Nat, hook, Vec::new());
    if let Stage::Redirect(older) = &plan.stage {
        chain.rules.extend(older_connections(older));
        rules(plan, &mut chain.rules);
    }
    chain
}

/// Connections from before the rules keep their path.
fn older_connections(older: &Older) -> Vec<Rule> {
    match older {
        Older::None => Vec::new(),
        Older::AnyMidStream => {
            let why = "at the moment of enrolment: what is mid-stream is older, and keeps its path";
            vec![rule(vec![TCP, NOT_OPENING], Target::Accept, why)]
        }
        Older::Kept(flows) => families(|family| !flows_of(family, flows).is_empty())
            .map(|family| Rule {
                family: Some(family),
                matches: vec![TCP, NOT_OPENING, Match::TupleIn(SetName::Kept(family))],
                target: Target::Accept,
                why: Cow::Borrowed("connections from before enrolment keep their path"),
            })
            .collect(),
    }
}

/// What comes in. Packets over `lo` were decided at output already.
fn nat_prerouting(plan: &RedirectPlan, rules: &mut Vec<Rule>) {
    for name in &plan.virtual_interfaces {
        rules.push(rule(
            vec![Match::Iif(Test::Is(Iface::Named(name.clone()))), TCP],
            Target::Redirect(PORT_OUTBOUND),
            "a virtual interface of the pod: what it brings is outbound",
        ));
    }
    if plan.capture_inbound {
        rules.extend(probe_door(&plan.probe));
        // Istio's set also asks for "no mark of ztunnel's". A mark does not survive the way from another namespace.
        rules.push(rule(
            vec![NOT_FROM_LO, TCP, Match::DstPort(Test::Not(PORT_HBONE))],
            Target::Redirect(PORT_INBOUND),
            "plaintext that comes in; HBONE reaches ztunnel directly",
        ));
    }
}

fn probe_door(probe: &ProbeDoor) -> Vec<Rule> {
    let why = "the kubelet's probes reach the application directly";
    let (addresses, ports) = (probe.addresses(), probe.ports());
    let rules = |door: &ProbeDoor| match door {
        ProbeDoor::Closed | ProbeDoor::Several(_) => Vec::new(),
        ProbeDoor::Snat { v4, v6 } => [IpAddr::V4(*v4), IpAddr::V6(*v6)]
            .into_iter()
            .map(|source| address_rule(source, vec![TCP, Match::Src(source)], why))
            .collect(),
        ProbeDoor::Source { .. } => from_node(&addresses, &ports, None, why).collect(),
        ProbeDoor::Cookie { cookies, .. } => {
            cookies.iter().flat_map(|cookie| from_node(&addresses, &ports, Some(*cookie), why)).collect()
        }
        ProbeDoor::Trial(trial) => trial_door(trial),
    };
    probe.doors().flat_map(rules).collect()
}

/// Accepts one connection of the agent's.
fn trial_door(trial: &TrialDoor) -> Vec<Rule> {
    let TrialDoor { from, from_port, to: (address, port), cookie } = *trial;
    let mut matches = vec![TCP, Match::Src(from), Match::Dst(address)];
    matches.extend(from_port.map(Match::SrcPort));
    matches.push(Match::DstPort(Test::Is(port)));
    matches.extend(cookie.map(Match::Cookie));
    if family_of(from) != family_of(address) {
        return Vec::new();
    }
    vec![address_rule(from, matches, "the agent's own connection, which tries a way for probes")]
}

/// Accepts what comes from these addresses to these ports, with this cookie if there is one. No port means nothing.
fn from_node(
    addresses: &BTreeSet<IpAddr>,
    ports: &BTreeSet<u16>,
    cookie: Option<Cookie>,
    why: &'static str,
) -> impl Iterator<Item = Rule> {
    let there = |family| !ports.is_empty() && addresses.iter().any(|address| family_of(*address) == family);
    families(there).map(move |family| {
        let mut matches =
            vec![TCP, Match::SrcIn(SetName::ProbeSources(family)), Match::DstPortIn(SetName::ProbePorts)];
        matches.extend(cookie.map(Match::Cookie));
        Rule { family: Some(family), matches, target: Target::Accept, why: Cow::Borrowed(why) }
    })
}

/// What goes out.
///
/// Istio's set lets everything pass that carries the mark 0x111. Ours does not: whoever has CAP_NET_RAW can set that
/// mark, bind to `eth0` and leave in plaintext. Nothing needs the rule. Packets that carry the mark rightly are answers
/// on connections that conntrack knows, and NAT chains only see what it does not know.
fn nat_output(plan: &RedirectPlan, rules: &mut Vec<Rule>) {
    if let Some((v4, v6)) = plan.probe.snat()
        && plan.capture_inbound
    {
        let why = "answers to probes that conntrack forgot; a new connection there is captured";
        for source in [IpAddr::V4(v4), IpAddr::V6(v6)] {
            rules.push(address_rule(source, vec![TCP, NOT_OPENING, Match::Dst(source)], why));
        }
    }
    rules.extend(ztunnels_own(&plan.guard));
    if plan.capture_dns {
        for proto in [UDP, TCP] {
            rules.push(rule(
                vec![NOT_OVER_LO, proto, TO_DNS],
                Target::Redirect(PORT_DNS_PROXY),
                "DNS goes to ztunnel's resolver",
            ));
        }
    }
    rules.push(rule(vec![OVER_LO], Target::Accept, "the pod talks to itself"));
    rules.push(rule(vec![TCP], Target::Redirect(PORT_OUTBOUND), "everything else that goes out"));
}

/// What ztunnel sends is not captured again. The mark alone can be forged, so where the guard is on the sending socket
/// must also be of ztunnel's cgroup. No cgroup at all means that nobody passes.
fn ztunnels_own(guard: &MarkGuard) -> Vec<Rule> {
    match guard {
        MarkGuard::Off => vec![rule(vec![FROM_ZTUNNEL], Target::Accept, "ztunnel's own, by its mark")],
        MarkGuard::Cgroups(cgroups) => {
            let levels: BTreeSet<u32> = cgroups.iter().map(|cgroup| cgroup.level).collect();
            let why = "ztunnel's own, by its mark and its cgroup";
            levels
                .into_iter()
                .map(|level| {
                    let made_by_it = Match::SocketCgroupIn(level, SetName::Ztunnel(level));
                    rule(vec![FROM_ZTUNNEL, made_by_it], Target::Accept, why)
                })
                .collect()
        }
    }
}

/// The sets that the rules name.
fn sets(plan: &RedirectPlan, chains: &[Chain]) -> Vec<Set> {
    let mut names = BTreeSet::new();
    for matched in chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches) {
        if let Some(name) = matched.set() {
            names.insert(name);
        }
    }
    names.into_iter().filter_map(|name| elements(plan, name).map(|elements| Set { name, elements })).collect()
}

fn elements(plan: &RedirectPlan, name: SetName) -> Option<Elements> {
    Some(match (name, &plan.stage, &plan.guard) {
        (SetName::Kept(family), Stage::Redirect(Older::Kept(flows)), _) => {
            Elements::Flows(family, flows_of(family, flows))
        }
        (SetName::ProbeSources(family), ..) => {
            let own = plan.probe.addresses().into_iter().filter(|address| family_of(*address) == family);
            Elements::Addresses(
                family,
                own.map(|address| (address, String::new())).collect::<BTreeMap<_, _>>(),
            )
        }
        (SetName::ProbePorts, ..) => Elements::Ports(plan.probe.ports()),
        (SetName::Ztunnel(level), _, MarkGuard::Cgroups(cgroups)) => {
            Elements::Cgroups(cgroups.iter().filter(|cgroup| cgroup.level == level).cloned().collect())
        }
        (SetName::ZtunnelPorts, ..) => {
            Elements::Ports(BTreeSet::from([PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE, PORT_DNS_PROXY]))
        }
        _ => return None,
    })
}

/// Takes IPv6 out of every rule.
fn only_ipv4(chains: &mut [Chain]) {
    for chain in chains {
        chain.rules.retain(|rule| rule.applies_to(Family::V4));
        for rule in &mut chain.rules {
            rule.family = Some(Family::V4);
        }
    }
}

fn families(wanted: impl Fn(Family) -> bool) -> impl Iterator<Item = Family> {
    Family::BOTH.into_iter().filter(move |family| wanted(*family))
}

fn chain(layer: Layer, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name: ChainName::Base(layer, hook), rules }
}

fn rule(matches: Vec<Match>, target: Target, why: &'static str) -> Rule {
    Rule { family: None, matches, target, why: Cow::Borrowed(why) }
}

/// Accepts what matches, in the family of `address`.
fn address_rule(address: IpAddr, matches: Vec<Match>, why: &'static str) -> Rule {
    Rule { family: Some(family_of(address)), ..rule(matches, Target::Accept, why) }
}
