//! One neutral rule as nf_tables expressions.

use super::expr::{Cmp, CtKey, Expr, Header, MetaKey, Register, SocketKey, nf_proto};
use super::message::{Batch, Kind};
use super::set::comment;
use crate::contract::NFT_TABLE;
use crate::cookie::{Cookie, OPTION_BYTES};
use crate::ids::{Family, Mark};
use crate::netfilter::{ChainName, Iface, Match, Proto, Rule, SetName, SocketTest, Target, Test, family_of};
use std::net::IpAddr;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT`
const UDATA_RULE_COMMENT: u8 = 0;

/// `IFNAMSIZ`
const IFNAME_BYTES: usize = 16;
/// fin, syn, rst and ack in the flags byte of a TCP header.
const TCP_OPENING_MASK: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

/// Appends a rule to its chain.
pub(super) fn append(batch: &mut Batch, chain: ChainName, index: usize, rule: &Rule) {
    batch.message(Kind::NewRule, format!("rule {index} of {chain} ({})", rule.why), |message| {
        message.string(NFTA_RULE_TABLE, NFT_TABLE);
        message.string(NFTA_RULE_CHAIN, &chain.to_string());
        message.nested(NFTA_RULE_EXPRESSIONS, |list| {
            for expr in expressions(rule) {
                expr.encode(list);
            }
        });
        message.bytes(NFTA_RULE_USERDATA, &comment(UDATA_RULE_COMMENT, &rule.why));
    });
}

fn expressions(rule: &Rule) -> Vec<Expr> {
    let mut list = Vec::new();
    let only = rule.only();
    if let Some(family) = only {
        list.push(Expr::Meta(MetaKey::NfProto));
        list.push(Expr::Cmp(Cmp::Equal, vec![nf_proto(family)]));
    }
    for matched in &rule.matches {
        list.extend(condition(matched, only));
    }
    list.extend(target(&rule.target));
    list
}

fn condition(matched: &Match, only: Option<Family>) -> Vec<Expr> {
    // A set of addresses has a family, so this is never a guess.
    let family = only.unwrap_or(Family::V4);
    match matched {
        Match::Proto(proto) => vec![Expr::Meta(MetaKey::L4Proto), equal(vec![proto_number(*proto)])],
        Match::Iif(test) => interface(test, MetaKey::Iif, MetaKey::IifName),
        Match::Oif(test) => interface(test, MetaKey::Oif, MetaKey::OifName),
        Match::Mark(test) => masked(Expr::Meta(MetaKey::Mark), *test),
        Match::CtMark(mark) => masked(Expr::Ct(CtKey::Mark), Test::Is(*mark)),
        Match::CtLabel(bit) => {
            let mask = label(*bit);
            let none = vec![0; mask.len()];
            let pick = Expr::Bitwise { mask, xor: none.clone() };
            vec![Expr::Ct(CtKey::Labels), pick, Expr::Cmp(Cmp::NotEqual, none)]
        }
        Match::OpeningSyn(test) => {
            let pick = Expr::Bitwise { mask: vec![TCP_OPENING_MASK], xor: vec![0] };
            vec![transport(13, 1, Register::FIRST), pick, Expr::Cmp(op(test), vec![TCP_SYN])]
        }
        Match::Cookie(cookie) => {
            let load = Expr::TcpOption { kind: Cookie::kind(), length: OPTION_BYTES as u32 };
            vec![load, equal(cookie.option().to_vec())]
        }
        Match::SrcPort(port) => vec![source_port(Register::FIRST), equal(port.to_be_bytes().to_vec())],
        Match::DstPort(test) => {
            let (Test::Is(port) | Test::Not(port)) = test;
            vec![destination_port(Register::FIRST), Expr::Cmp(op(test), port.to_be_bytes().to_vec())]
        }
        Match::DstPortIn(set) => vec![destination_port(Register::FIRST), lookup(set)],
        Match::Src(ip) => vec![source(family_of(*ip), Register::FIRST), equal(octets(*ip))],
        Match::Dst(ip) => vec![destination(family_of(*ip), Register::FIRST), equal(octets(*ip))],
        Match::SrcIn(set) => vec![source(family, Register::FIRST), lookup(set)],
        Match::DstIn(set) => vec![destination(family, Register::FIRST), lookup(set)],
        Match::TupleIn(set) => {
            let words = address_bytes(family) / 4;
            vec![
                source(family, Register::word(0)),
                source_port(Register::word(words)),
                destination(family, Register::word(words + 1)),
                destination_port(Register::word(2 * words + 1)),
                lookup(set),
            ]
        }
        Match::SocketCgroupIn(level, set) => vec![Expr::Socket(SocketKey::Cgroup(*level)), lookup(set)],
        Match::Socket(SocketTest::Transparent) => {
            vec![Expr::Socket(SocketKey::Transparent), equal(vec![1])]
        }
        Match::Socket(SocketTest::Plain) => vec![Expr::Socket(SocketKey::Transparent), equal(vec![0])],
        Match::Socket(SocketTest::MarkIsNot(mark)) => masked(Expr::Socket(SocketKey::Mark), Test::Not(*mark)),
    }
}

fn target(target: &Target) -> Vec<Expr> {
    match target {
        Target::Accept => vec![Expr::ACCEPT],
        Target::Drop => vec![Expr::DROP],
        Target::RejectReset => vec![Expr::RejectReset],
        Target::Jump(chain) => vec![Expr::Jump(chain.to_string())],
        Target::Redirect(port) => vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Redirect],
        Target::Snat(source) => vec![Expr::Immediate(octets(*source)), Expr::Snat(family_of(*source))],
        // Two bytes, in the machine's order.
        Target::SetCtZone(zone) => {
            vec![Expr::Immediate(zone.to_ne_bytes().to_vec()), Expr::SetCt(CtKey::Zone)]
        }
        Target::SetCtMark(mark) => {
            let write = Expr::Bitwise {
                mask: (!mark.mask).to_ne_bytes().to_vec(),
                xor: mark.value.to_ne_bytes().to_vec(),
            };
            vec![Expr::Ct(CtKey::Mark), write, Expr::SetCt(CtKey::Mark)]
        }
        Target::RestoreMark => vec![Expr::Ct(CtKey::Mark), Expr::SetMeta(MetaKey::Mark)],
        Target::SetCtLabel(bit) => vec![Expr::Immediate(label(*bit)), Expr::SetCt(CtKey::Labels)],
    }
}

fn interface(test: &Test<Iface>, index: MetaKey, name: MetaKey) -> Vec<Expr> {
    let (Test::Is(iface) | Test::Not(iface)) = test;
    match iface {
        Iface::Loopback => vec![Expr::Meta(index), Expr::Cmp(op(test), 1u32.to_ne_bytes().to_vec())],
        Iface::Named(ifname) => {
            let mut padded = ifname.as_str().as_bytes().to_vec();
            padded.resize(IFNAME_BYTES, 0);
            vec![Expr::Meta(name), Expr::Cmp(op(test), padded)]
        }
    }
}

/// Compares under the mark's mask. Marks are in the machine's byte order.
fn masked(load: Expr, test: Test<Mark>) -> Vec<Expr> {
    let (Test::Is(mark) | Test::Not(mark)) = test;
    let pick = Expr::Bitwise { mask: mark.mask.to_ne_bytes().to_vec(), xor: vec![0; 4] };
    vec![load, pick, Expr::Cmp(op(&test), mark.value.to_ne_bytes().to_vec())]
}

/// A 128-bit connection label with one bit set, in the kernel's layout: 64-bit longs, the lowest bits first.
fn label(bit: u8) -> Vec<u8> {
    let bits = 1u128 << (bit & 127);
    let longs = [bits as u64, (bits >> 64) as u64];
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

const fn op<T>(test: &Test<T>) -> Cmp {
    match test {
        Test::Is(_) => Cmp::Equal,
        Test::Not(_) => Cmp::NotEqual,
    }
}

const fn equal(operand: Vec<u8>) -> Expr {
    Expr::Cmp(Cmp::Equal, operand)
}

fn lookup(name: &SetName) -> Expr {
    Expr::Lookup(name.to_string())
}

const fn transport(offset: u32, length: u32, into: Register) -> Expr {
    Expr::Payload { header: Header::Transport, offset, length, into }
}

const fn source_port(into: Register) -> Expr {
    transport(0, 2, into)
}

const fn destination_port(into: Register) -> Expr {
    transport(2, 2, into)
}

const fn source(family: Family, into: Register) -> Expr {
    let offset = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    Expr::Payload { header: Header::Network, offset, length: address_bytes(family), into }
}

const fn destination(family: Family, into: Register) -> Expr {
    let offset = match family {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    Expr::Payload { header: Header::Network, offset, length: address_bytes(family), into }
}

const fn address_bytes(family: Family) -> u32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `IPPROTO_*`
const fn proto_number(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
    }
}
