//! Reads an nf_tables transaction as the kernel does, and runs packets through it. Written from the kernel's side:
//! the numbers are those of `linux/netfilter/nf_tables.h`, not the encoder's.

use super::nft_wire::{attributes, messages, nested, number, text};
use super::vm::{Fate, IPPROTO_TCP, Machine, Skb};
use sluice_shared::netfilter::Hook;
use sluice_shared::op::NftBatch;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const NFT_BREAK: &str = "no match";

/// The table after a transaction.
#[derive(Debug, Default)]
pub struct Nft {
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Chain>,
}

#[derive(Debug, Default)]
struct Set {
    key_len: usize,
    elements: BTreeSet<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Chain {
    base: Option<Base>,
    rules: Vec<Vec<Expr>>,
}

#[derive(Debug)]
struct Base {
    hook: u32,
    priority: i32,
    kind: String,
}

#[derive(Debug)]
struct Expr {
    name: String,
    data: BTreeMap<u16, Vec<u8>>,
}

impl Nft {
    /// Carries a transaction out; `None` when it leaves no table.
    pub fn load(batch: &NftBatch) -> Option<Self> {
        let mut table: Option<Self> = None;
        let list = messages(batch);
        assert_eq!((list[0].kind, list.last().unwrap().kind), (0x10, 0x11), "begin and end");
        for message in &list[1..list.len() - 1] {
            assert_eq!(message.kind >> 8, 10, "nf_tables' subsystem");
            let a = &message.attributes;
            match message.kind & 0xff {
                0 => {
                    assert_eq!(text(&a[&1]), "sluice");
                    table.get_or_insert_default();
                }
                2 => assert!(table.take().is_some(), "deletes a table that is not there"),
                kind => table.as_mut().expect("a table").add(kind, a),
            }
        }
        table
    }

    fn add(&mut self, kind: u16, a: &BTreeMap<u16, Vec<u8>>) {
        assert_eq!(text(&a[&1]), "sluice");
        match kind {
            3 => {
                let base = a.get(&4).map(|hook| {
                    let hook = nested(hook);
                    let priority = number(&hook[&2]).cast_signed();
                    assert_eq!(number(&a[&5]), 1, "policy accept");
                    Base { hook: number(&hook[&1]), priority, kind: text(&a[&7]) }
                });
                assert!(self.chains.insert(text(&a[&3]), Chain { base, rules: Vec::new() }).is_none());
            }
            6 => {
                let rule = attributes(&a[&4]).into_iter().map(|(_, expr)| Expr::parse(&expr)).collect();
                for expr in &rule {
                    self.check(expr);
                }
                self.chains.get_mut(&text(&a[&2])).expect("a chain for the rule").rules.push(rule);
            }
            9 => {
                let set = Set { key_len: number(&a[&5]) as usize, elements: BTreeSet::new() };
                assert!(self.sets.insert(text(&a[&2]), set).is_none());
            }
            12 => {
                let set = self.sets.get_mut(&text(&a[&2])).expect("a set for the elements");
                for (_, element) in attributes(&a[&3]) {
                    let key = nested(&nested(&element)[&1])[&1].clone();
                    assert_eq!(key.len(), set.key_len);
                    assert!(set.elements.insert(key), "an element twice");
                }
            }
            other => panic!("message {other}"),
        }
    }

    /// What the kernel refuses when a rule comes in.
    fn check(&self, expr: &Expr) {
        match expr.name.as_str() {
            "lookup" => {
                assert!(self.sets.contains_key(&text(&expr.data[&1])), "looks up a set that is not there");
            }
            "immediate" => {
                if let Some(chain) = expr.jump() {
                    assert!(self.chains.contains_key(&chain), "jumps to a chain that is not there");
                }
            }
            _ => {}
        }
    }

    pub fn elements(&self, set: &str) -> Option<&BTreeSet<Vec<u8>>> {
        self.sets.get(set).map(|set| &set.elements)
    }

    fn run(&self, chain: &Chain, skb: &mut Skb) -> Option<Fate> {
        for rule in &chain.rules {
            let mut registers = [0u8; 80];
            for expr in rule {
                match self.step(expr, &mut registers, skb) {
                    Err(NFT_BREAK) => break,
                    Err(other) => panic!("{other}"),
                    Ok(Some(verdict)) => match verdict {
                        Said::Final(fate) => return Some(fate),
                        Said::Jump(name) => {
                            if let Some(fate) = self.run(&self.chains[&name], skb) {
                                return Some(fate);
                            }
                        }
                    },
                    Ok(None) => {}
                }
            }
        }
        None
    }

    fn step(&self, expr: &Expr, regs: &mut [u8; 80], skb: &mut Skb) -> Result<Option<Said>, &'static str> {
        match expr.name.as_str() {
            "meta" => expr.meta(regs, skb),
            "ct" => expr.ct(regs, skb),
            "payload" => {
                let header = if expr.number(2) == 1 { network_header(skb) } else { transport_header(skb) };
                let (at, len) = (expr.number(3) as usize, expr.number(4) as usize);
                let field = header.get(at..at + len).ok_or(NFT_BREAK)?;
                store(regs, expr.number(1), field);
            }
            "exthdr" => {
                assert_eq!((expr.number(6), expr.data[&2].len()), (1, 1), "an option of TCP, by its kind");
                let option = tcp_option(skb, expr.data[&2][0]).ok_or(NFT_BREAK)?;
                let (at, len) = (expr.number(3) as usize, expr.number(4) as usize);
                store(regs, expr.number(1), option.get(at..at + len).ok_or(NFT_BREAK)?);
            }
            "socket" => store(regs, expr.number(2), &expr.socket(skb).ok_or(NFT_BREAK)?),
            "bitwise" => {
                let len = expr.number(3) as usize;
                let (mask, xor) = (expr.value(4), expr.value(5));
                assert_eq!((mask.len(), xor.len()), (len, len));
                let input = load(regs, expr.number(1), len);
                let output: Vec<u8> = (0..len).map(|i| (input[i] & mask[i]) ^ xor[i]).collect();
                store(regs, expr.number(2), &output);
            }
            "cmp" => {
                let operand = expr.value(3);
                let equal = load(regs, expr.number(1), operand.len()) == operand;
                if equal != (expr.number(2) == 0) {
                    return Err(NFT_BREAK);
                }
            }
            "lookup" => {
                let set = &self.sets[&text(&expr.data[&1])];
                if !set.elements.contains(&load(regs, expr.number(2), set.key_len)) {
                    return Err(NFT_BREAK);
                }
            }
            "immediate" if expr.number(1) == 0 => return Ok(Some(expr.verdict())),
            "immediate" => store(regs, expr.number(1), &expr.value(2)),
            "redir" => {
                let port = load(regs, expr.number(1), 2);
                skb.redirected = Some(u16::from_be_bytes([port[0], port[1]]));
                return Ok(Some(Said::Final(Fate::Continue)));
            }
            "nat" => {
                assert_eq!(expr.number(1), 0, "snat");
                skb.snat = Some(match expr.number(2) {
                    2 => IpAddr::from(<[u8; 4]>::try_from(load(regs, expr.number(3), 4)).unwrap()),
                    _ => IpAddr::from(<[u8; 16]>::try_from(load(regs, expr.number(3), 16)).unwrap()),
                });
                return Ok(Some(Said::Final(Fate::Continue)));
            }
            "reject" => {
                assert_eq!((expr.number(1), skb.protocol), (1, IPPROTO_TCP), "a reset answers TCP only");
                return Ok(Some(Said::Final(Fate::Reset)));
            }
            other => panic!("expression {other}"),
        }
        Ok(None)
    }
}

impl Machine for Nft {
    fn hook(&self, hook: Hook, skb: &mut Skb) -> Fate {
        let wanted = match hook {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        };
        let here = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == wanted);
        let mut chains: Vec<&Chain> = self.chains.values().filter(here).collect();
        chains.sort_by_key(|chain| chain.base.as_ref().map(|base| base.priority));
        for chain in chains {
            if chain.base.as_ref().is_some_and(|base| base.kind == "nat") && !skb.nat {
                continue;
            }
            match self.run(chain, skb) {
                None | Some(Fate::Continue) => {}
                Some(fate) => return fate,
            }
        }
        Fate::Continue
    }
}

enum Said {
    Final(Fate),
    Jump(String),
}

impl Expr {
    fn parse(bytes: &[u8]) -> Self {
        let parts = nested(bytes);
        Self { name: text(&parts[&1]), data: nested(&parts[&2]) }
    }

    fn number(&self, kind: u16) -> u32 {
        number(&self.data[&kind])
    }

    fn value(&self, kind: u16) -> Vec<u8> {
        nested(&self.data[&kind])[&1].clone()
    }

    fn jump(&self) -> Option<String> {
        let verdict = nested(nested(&self.data[&2]).get(&2)?);
        verdict.get(&2).map(|chain| text(chain))
    }

    fn verdict(&self) -> Said {
        let code = number(&nested(&nested(&self.data[&2])[&2])[&1]).cast_signed();
        match code {
            0 => Said::Final(Fate::Drop),
            1 => Said::Final(Fate::Continue),
            -3 => Said::Jump(self.jump().expect("a chain to jump to")),
            other => panic!("verdict {other}"),
        }
    }

    fn meta(&self, regs: &mut [u8; 80], skb: &mut Skb) {
        if let Some(source) = self.data.get(&3) {
            assert_eq!(self.number(2), 3, "only the mark is ever written");
            skb.mark = u32::from_ne_bytes(load(regs, number(source), 4).try_into().unwrap());
            return;
        }
        let index =
            |device: &Option<(u32, String)>| device.as_ref().map_or(0, |(index, _)| *index).to_ne_bytes();
        let loaded = match self.number(2) {
            3 => skb.mark.to_ne_bytes().to_vec(),
            4 => index(&skb.iif).to_vec(),
            5 => index(&skb.oif).to_vec(),
            6 => {
                let mut name = skb.iif.as_ref().map_or("", |(_, name)| name).as_bytes().to_vec();
                name.resize(16, 0);
                name
            }
            15 => vec![if skb.source.0.is_ipv4() { 2 } else { 10 }],
            16 => vec![skb.protocol],
            other => panic!("meta key {other}"),
        };
        store(regs, self.number(1), &loaded);
    }

    fn ct(&self, regs: &mut [u8; 80], skb: &mut Skb) {
        let key = self.number(2);
        if let Some(source) = self.data.get(&4) {
            let source = number(source);
            match key {
                3 => skb.ct_mark = u32::from_ne_bytes(load(regs, source, 4).try_into().unwrap()),
                13 => skb.ct_label |= u128::from_ne_bytes(load(regs, source, 16).try_into().unwrap()),
                17 => skb.ct_zone = u16::from_ne_bytes(load(regs, source, 2).try_into().unwrap()),
                other => panic!("ct key {other}"),
            }
            return;
        }
        let loaded = match key {
            3 => skb.ct_mark.to_ne_bytes().to_vec(),
            13 => skb.ct_label.to_ne_bytes().to_vec(),
            other => panic!("ct key {other}"),
        };
        store(regs, self.number(1), &loaded);
    }

    /// `None` is what the kernel answers with a break.
    fn socket(&self, skb: &Skb) -> Option<Vec<u8>> {
        match self.number(1) {
            0 => Some(vec![u8::from(skb.receiver?.transparent)]),
            1 => Some(skb.receiver?.mark?.to_ne_bytes().to_vec()),
            3 => {
                let level = self.number(3);
                let ancestor = skb.maker.iter().find(|cgroup| cgroup.level == level)?;
                Some(ancestor.id.to_ne_bytes().to_vec())
            }
            other => panic!("socket key {other}"),
        }
    }
}

/// Where a register begins: 1 to 4 are 16 bytes wide, 8 to 23 are their 32-bit parts.
fn offset(register: u32) -> usize {
    match register {
        1..=4 => (register as usize - 1) * 16,
        8..=23 => (register as usize - 8) * 4,
        other => panic!("register {other}"),
    }
}

fn load(regs: &[u8; 80], register: u32, len: usize) -> Vec<u8> {
    regs[offset(register)..offset(register) + len].to_vec()
}

/// Whole 32-bit words are written.
fn store(regs: &mut [u8; 80], register: u32, value: &[u8]) {
    let at = offset(register);
    regs[at..at + value.len().next_multiple_of(4)].fill(0);
    regs[at..at + value.len()].copy_from_slice(value);
}

fn network_header(skb: &Skb) -> Vec<u8> {
    match (skb.source.0, skb.destination.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0u8; 12];
            header[9] = skb.protocol;
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0u8; 8];
            header[6] = skb.protocol;
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            header
        }
        mixed => panic!("{mixed:?}"),
    }
}

/// The first option of a kind, found as the kernel walks them.
fn tcp_option(skb: &Skb, kind: u8) -> Option<&[u8]> {
    let mut rest = (skb.protocol == IPPROTO_TCP).then_some(&skb.tcp_options[..])?;
    while rest.len() > 1 {
        let length = if rest[0] <= 1 { 1 } else { usize::from(rest[1]).max(1) };
        if rest[0] == kind {
            return rest.get(..length);
        }
        rest = rest.get(length..)?;
    }
    None
}

fn transport_header(skb: &Skb) -> Vec<u8> {
    let mut header = vec![0u8; if skb.protocol == IPPROTO_TCP { 20 } else { 8 }];
    header[0..2].copy_from_slice(&skb.source.1.to_be_bytes());
    header[2..4].copy_from_slice(&skb.destination.1.to_be_bytes());
    if skb.protocol == IPPROTO_TCP {
        header[13] = skb.tcp_flags;
    }
    header
}
