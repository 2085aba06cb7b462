//! Reads `iptables-restore --noflush` input, and runs packets through what it leaves.

use super::vm::{Fate, IPPROTO_TCP, IPPROTO_UDP, Machine, Skb};
use sluice_shared::ids::Family;
use sluice_shared::netfilter::Hook;
use sluice_shared::op::KernelOp;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Both families' tables.
#[derive(Debug, Default)]
pub struct Iptables {
    v4: Tables,
    v6: Tables,
}

type Tables = BTreeMap<String, BTreeMap<String, Vec<Vec<String>>>>;

/// Which kernel chain belongs to which hook, by table.
const BUILTIN: [(&str, &[&str]); 4] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];

impl Iptables {
    /// A kernel with nobody's rules.
    pub fn new() -> Self {
        let empty = || {
            let chains = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
            BUILTIN.iter().map(|(table, names)| ((*table).to_owned(), chains(names))).collect()
        };
        Self { v4: empty(), v6: empty() }
    }

    /// Carries out what of `ops` concerns iptables.
    pub fn apply(&mut self, ops: &[KernelOp]) {
        for op in ops {
            match op {
                KernelOp::ClearIptables => self.clear(),
                KernelOp::IptablesRestore(script) => {
                    let tables = match script.family {
                        Family::V4 => &mut self.v4,
                        Family::V6 => &mut self.v6,
                    };
                    restore(tables, &script.text);
                }
                _ => {}
            }
        }
    }

    fn clear(&mut self) {
        for chains in self.v4.values_mut().chain(self.v6.values_mut()) {
            chains.retain(|name, _| !name.starts_with("SLUICE_"));
            for rules in chains.values_mut() {
                rules.retain(|rule| !rule.iter().any(|word| word.starts_with("SLUICE_")));
            }
        }
    }

    /// How many rules of the kernel's own chains lead to ours.
    pub fn jumps(&self) -> usize {
        let rules = self.v4.values().chain(self.v6.values()).flat_map(|chains| {
            chains.iter().filter(|(name, _)| !name.starts_with("SLUICE_")).flat_map(|(_, rules)| rules)
        });
        rules.filter(|rule| rule.iter().any(|word| word.starts_with("SLUICE_"))).count()
    }

    /// Whether nothing of ours is there.
    pub fn is_clean(&self) -> bool {
        self.jumps() == 0
            && self
                .v4
                .values()
                .chain(self.v6.values())
                .all(|chains| chains.keys().all(|name| !name.starts_with("SLUICE_")))
    }
}

fn restore(tables: &mut Tables, text: &str) {
    let mut current: Option<String> = None;
    for line in text.lines() {
        let words = split(line);
        match words[0].as_str() {
            "COMMIT" => assert!(current.take().is_some(), "COMMIT outside of a table"),
            first if first.starts_with('*') => current = Some(first[1..].to_owned()),
            first if first.starts_with(':') => {
                let chains = tables.get_mut(current.as_ref().expect("a table")).expect("a known table");
                assert_eq!(words[1], "-", "only user chains are declared");
                chains.insert(first[1..].to_owned(), Vec::new());
            }
            verb @ ("-A" | "-I") => {
                let chains = tables.get_mut(current.as_ref().expect("a table")).expect("a known table");
                let target = words.iter().position(|word| word == "-j").map(|at| words[at + 1].clone());
                if let Some(own) = target.filter(|name| name.starts_with("SLUICE_")) {
                    assert!(chains.contains_key(&own), "jumps to {own}, which is not there");
                }
                let rules = chains.get_mut(&words[1]).expect("a chain that is there");
                let at = if verb == "-A" { rules.len() } else { 0 };
                rules.insert(at, words[2..].to_vec());
            }
            other => panic!("{other:?} in {line:?}"),
        }
    }
    assert!(current.is_none(), "a table without COMMIT");
}

/// Words, with double quotes and backslashes as iptables-restore reads them.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(chars.next().expect("a character after \\")),
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "an open quote in {line:?}");
    words.extend(word);
    words
}

impl Machine for Iptables {
    fn hook(&self, hook: Hook, skb: &mut Skb) -> Fate {
        let tables = if skb.source.0.is_ipv4() { &self.v4 } else { &self.v6 };
        let chain = match hook {
            Hook::Prerouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        };
        for (table, _) in BUILTIN {
            if table == "nat" && !skb.nat {
                continue;
            }
            let chains = &tables[table];
            if !chains.contains_key(chain) {
                continue;
            }
            match run(chains, table, chain, skb) {
                None | Some(Fate::Continue) => {}
                Some(fate) => return fate,
            }
        }
        Fate::Continue
    }
}

fn run(chains: &BTreeMap<String, Vec<Vec<String>>>, table: &str, chain: &str, skb: &mut Skb) -> Option<Fate> {
    for rule in &chains[chain] {
        let Some(target) = matches(rule, skb) else { continue };
        match target[0].as_str() {
            "ACCEPT" => return Some(Fate::Continue),
            "RETURN" => return None,
            "DROP" => return Some(Fate::Drop),
            "REJECT" => {
                assert_eq!(target[1..], ["--reject-with", "tcp-reset"]);
                assert_eq!(skb.protocol, IPPROTO_TCP);
                return Some(Fate::Reset);
            }
            "REDIRECT" => {
                assert_eq!((table, target[1].as_str()), ("nat", "--to-ports"));
                skb.redirected = Some(target[2].parse().unwrap());
                return Some(Fate::Continue);
            }
            "SNAT" => {
                assert_eq!((table, target[1].as_str()), ("nat", "--to-source"));
                skb.snat = Some(target[2].parse().unwrap());
                return Some(Fate::Continue);
            }
            "CT" => {
                assert_eq!((table, target[1].as_str()), ("raw", "--zone"));
                skb.ct_zone = target[2].parse().unwrap();
            }
            "CONNMARK" => match target[1].as_str() {
                "--set-xmark" => skb.ct_mark = xmark(&target[2], skb.ct_mark),
                _ => skb.mark = skb.ct_mark,
            },
            "MARK" => skb.mark = xmark(&target[2], skb.mark),
            own => {
                if let Some(fate) = run(chains, table, own, skb) {
                    return Some(fate);
                }
            }
        }
    }
    None
}

fn xmark(text: &str, mark: u32) -> u32 {
    let (value, mask) = value_and_mask(text);
    (mark & !mask) ^ value
}

fn value_and_mask(text: &str) -> (u32, u32) {
    let hex = |word: &str| u32::from_str_radix(word.strip_prefix("0x").expect("hex"), 16).unwrap();
    let (value, mask) = text.split_once('/').expect("value/mask");
    (hex(value), hex(mask))
}

/// The rule's target when all of its matches hold.
fn matches<'a>(rule: &'a [String], skb: &mut Skb) -> Option<&'a [String]> {
    let mut words = rule.iter().enumerate();
    let mut module = String::new();
    let mut wanted = true;
    while let Some((at, word)) = words.next() {
        let mut next = || words.next().expect("an argument").1.as_str();
        let held = match word.as_str() {
            "-j" => return Some(&rule[at + 1..]),
            "!" => {
                wanted = false;
                continue;
            }
            "-m" => {
                module = next().to_owned();
                if module != "socket" {
                    continue;
                }
                socket(rule, at, skb)
            }
            "--nowildcard" | "--transparent" | "--restore-skmark" => continue,
            "--comment" => {
                next();
                continue;
            }
            "-p" => skb.protocol == if next() == "tcp" { IPPROTO_TCP } else { IPPROTO_UDP },
            "-s" => address(next()) == skb.source.0,
            "-d" => address(next()) == skb.destination.0,
            "-i" => skb.iif.as_ref().is_some_and(|(_, name)| name == next()),
            "-o" => {
                let name = next();
                skb.oif.as_ref().is_some_and(|(_, device)| device == name)
            }
            "--syn" => skb.tcp_flags & 0x17 == 0x02,
            "--sport" => next().parse() == Ok(skb.source.1),
            "--dport" => next().parse() == Ok(skb.destination.1),
            "--dports" => next().split(',').any(|port| port.parse() == Ok(skb.destination.1)),
            "--mark" => {
                let (value, mask) = value_and_mask(next());
                let mark = if module == "connmark" { skb.ct_mark } else { skb.mark };
                mark & mask == value
            }
            "--path" => {
                let path = next();
                skb.maker.iter().any(|cgroup| cgroup.path == path)
            }
            other => panic!("{other:?} in {rule:?}"),
        };
        if held != wanted {
            return None;
        }
        wanted = true;
    }
    panic!("no target in {rule:?}")
}

/// `-m socket` with the options that follow it.
fn socket(rule: &[String], at: usize, skb: &mut Skb) -> bool {
    let Some(socket) = skb.receiver else { return false };
    let options: Vec<&str> =
        rule[at + 2..].iter().map(String::as_str).take_while(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--nowildcard"), "would overlook sockets bound to no address");
    let held = !options.contains(&"--transparent") || socket.transparent;
    if let (true, true, Some(mark)) = (held, options.contains(&"--restore-skmark"), socket.mark) {
        skb.mark = mark;
    }
    held
}

fn address(text: &str) -> IpAddr {
    let (address, prefix) = text.split_once('/').expect("a prefix");
    let address: IpAddr = address.parse().unwrap();
    assert_eq!(prefix, if address.is_ipv4() { "32" } else { "128" });
    address
}
