//! One neutral rule as lines of iptables: one, or several where iptables has no set to look up.

use super::{InnerChain, base};
use crate::ids::{Family, Mark};
use crate::netfilter::{
    ChainName, Elements, Iface, Match, Proto, Rule, Ruleset, SetName, SocketTest, Target, Test, flows_of,
};
use crate::plan::Flow;
use std::net::IpAddr;

/// xt_multiport's limit.
const PORTS_PER_RULE: usize = 15;

/// The rules of a chain for one family, without `-A CHAIN`.
pub(super) fn lines(rules: &Ruleset, chain: ChainName, family: Family) -> Vec<String> {
    let own = rules.chains.iter().filter(|candidate| candidate.name == chain).flat_map(|found| &found.rules);
    own.filter(|rule| rule.applies_to(family)).flat_map(|rule| render(rules, rule)).collect()
}

/// One rule for each direction of each kept connection. The chain is two jumps deep, so what matches is accepted: to
/// return would lead to the rules after the jump.
pub(super) fn kept(rules: &Ruleset, family: Family) -> Vec<String> {
    let Some(Elements::Flows(_, flows)) = rules.elements(SetName::Kept(family)) else {
        return Vec::new();
    };
    let mut lines: Vec<String> = flows_of(family, flows)
        .into_iter()
        .flat_map(|flow| [flow, Flow { local: flow.remote, remote: flow.local }])
        .map(|Flow { local: from, remote: to }| {
            let ports = format!("--sport {} --dport {}", from.1, to.1);
            format!("-s {} -d {} -p tcp {ports} -j ACCEPT", host(from.0), host(to.0))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn render(rules: &Ruleset, rule: &Rule) -> Vec<String> {
    let mut target = target(&rule.target);
    // The prefixes so far, one a line: a match that iptables has no set for multiplies them.
    let mut lines = vec![String::new()];
    let mut before = Vec::new();
    for matched in &rule.matches {
        if let Match::Socket(SocketTest::MarkIsNot(mark)) = matched {
            before.extend(lines.iter().map(|line| format!("{line}-j MARK --set-xmark {mark}")));
        }
        if let Match::TupleIn(_) = matched {
            target = format!("-j {}", InnerChain::Kept.name());
        }
        let alternatives = condition(rules, matched);
        lines = lines
            .iter()
            .flat_map(|line| alternatives.iter().map(move |alternative| format!("{line}{alternative}")))
            .collect();
    }
    let comment = format!("-m comment --comment {}", quoted(&rule.why));
    before.into_iter().chain(lines.into_iter().map(|line| format!("{line}{comment} {target}"))).collect()
}

/// The ways to meet a condition, each with a space at its end; none means that nothing meets it.
fn condition(rules: &Ruleset, matched: &Match) -> Vec<String> {
    match matched {
        Match::Proto(Proto::Tcp) => vec!["-p tcp ".to_owned()],
        Match::Proto(Proto::Udp) => vec!["-p udp ".to_owned()],
        Match::Iif(test) => vec![interface("-i", test)],
        Match::Oif(test) => vec![interface("-o", test)],
        Match::Mark(test) => vec![mark("mark", *test)],
        Match::CtMark(value) => vec![mark("connmark", Test::Is(*value))],
        Match::CtLabel(bit) => vec![format!("-m connlabel --label {bit} ")],
        Match::OpeningSyn(Test::Is(())) => vec!["--syn ".to_owned()],
        Match::OpeningSyn(Test::Not(())) => vec!["! --syn ".to_owned()],
        // xt_tcp knows whether an option is there, not what it says.
        Match::Cookie(_) => Vec::new(),
        Match::SrcPort(port) => vec![format!("--sport {port} ")],
        Match::DstPort(Test::Is(port)) => vec![format!("--dport {port} ")],
        Match::DstPort(Test::Not(port)) => vec![format!("! --dport {port} ")],
        Match::DstPortIn(set) => ports(rules.elements(*set)),
        Match::Src(address) => vec![format!("-s {} ", host(*address))],
        Match::Dst(address) => vec![format!("-d {} ", host(*address))],
        Match::SrcIn(set) => addresses("-s", rules.elements(*set)),
        Match::DstIn(set) => addresses("-d", rules.elements(*set)),
        // The chain that the rule jumps to looks.
        Match::TupleIn(_) => vec![String::new()],
        Match::SocketCgroupIn(_, set) => cgroups(rules.elements(*set)),
        Match::Socket(test) => vec![socket(*test)],
    }
}

/// Conditions on the receiving socket. iptables cannot ask for a socket without `IP_TRANSPARENT`, but any socket will
/// do after the rule that takes those with it. Nor can it compare a socket's mark: that is copied to the packet, which
/// the rule before has given the mark wanted, so that a socket with no mark to copy (in TIME_WAIT) passes.
fn socket(test: SocketTest) -> String {
    match test {
        SocketTest::Transparent => "-m socket --transparent --nowildcard ".to_owned(),
        SocketTest::Plain => "-m socket --nowildcard ".to_owned(),
        SocketTest::MarkIsNot(wanted) => {
            format!("-m socket --nowildcard --restore-skmark {}", mark("mark", Test::Not(wanted)))
        }
    }
}

fn interface(option: &str, test: &Test<Iface>) -> String {
    let (Test::Is(iface) | Test::Not(iface)) = test;
    let name = match iface {
        Iface::Loopback => "lo",
        Iface::Named(name) => name.as_str(),
    };
    format!("{}{option} {} ", not(test), quoted(name))
}

fn mark(module: &str, test: Test<Mark>) -> String {
    let (Test::Is(value) | Test::Not(value)) = test;
    format!("-m {module} {}--mark {value} ", not(&test))
}

const fn not<T>(test: &Test<T>) -> &'static str {
    match test {
        Test::Is(_) => "",
        Test::Not(_) => "! ",
    }
}

fn ports(elements: Option<&Elements>) -> Vec<String> {
    let Some(Elements::Ports(ports)) = elements else { return Vec::new() };
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports.chunks(PORTS_PER_RULE).map(|some| format!("-m multiport --dports {} ", some.join(","))).collect()
}

fn addresses(option: &str, elements: Option<&Elements>) -> Vec<String> {
    let Some(Elements::Addresses(_, addresses)) = elements else { return Vec::new() };
    addresses.keys().map(|address| format!("{option} {} ", host(*address))).collect()
}

fn cgroups(elements: Option<&Elements>) -> Vec<String> {
    let Some(Elements::Cgroups(cgroups)) = elements else { return Vec::new() };
    cgroups.iter().map(|cgroup| format!("-m cgroup --path {} ", quoted(&cgroup.path))).collect()
}

fn target(target: &Target) -> String {
    match target {
        // Nothing more from us: what others have after the jump to our chain still sees the packet.
        Target::Accept => "-j RETURN".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::RejectReset => "-j REJECT --reject-with tcp-reset".to_owned(),
        Target::Jump(ChainName::Hold) => format!("-j {}", InnerChain::Hold.name()),
        Target::Jump(ChainName::Base(_, hook)) => format!("-j {}", base(*hook)),
        Target::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Target::Snat(source) => format!("-j SNAT --to-source {source}"),
        Target::SetCtZone(zone) => format!("-j CT --zone {zone}"),
        Target::SetCtMark(mark) => format!("-j CONNMARK --set-xmark {mark}"),
        Target::RestoreMark => {
            "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff".to_owned()
        }
        Target::SetCtLabel(bit) => format!("-m connlabel --label {bit} --set"),
    }
}

/// One address, with the prefix that iptables prints back.
fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// A word for iptables-restore: in double quotes a backslash takes the meaning from a quote or a backslash, and a line
/// ends at its end.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars().filter(|c| !c.is_control()) {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}
