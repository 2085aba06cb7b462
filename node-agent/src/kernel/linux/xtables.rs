//! A table of ip_tables or ip6_tables as the kernel gives it: its chains, and the same table without some of them.
//!
//! A table is one run of entries (`struct ipt_entry`, matches, a target) that name each other by their offset. A
//! kernel's chain begins where the hook says, a user's chain after an entry that only carries its name; each ends with
//! the entry before the next one.

use super::target;
use sluice_shared::ids::Family;
use sluice_shared::istio::{Chain, Does, Rule, RuleId, Table};
use std::collections::{BTreeMap, BTreeSet};

/// `NF_INET_NUMHOOKS`
pub(super) const HOOKS: usize = 5;
/// The kernel's chains by hook.
const HOOK_CHAINS: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `struct xt_entry_target`
const TARGET_HEADER: usize = 32;
const TARGET_NAME: std::ops::Range<usize> = 2..31;
const TARGET_REVISION: usize = 31;
/// `struct xt_counters`
const COUNTERS: usize = 16;
/// The name of the target of entries that carry a chain's name (`XT_ERROR_TARGET`).
const NAMING: &str = "ERROR";
/// Verdicts of the standard target, which has no name: `-NF_ACCEPT - 1`, `XT_RETURN`; others below 0 end elsewhere.
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;

/// What is at which offset in `struct ipt_entry` and `struct ip6t_entry`.
pub(super) struct Layout {
    pub(super) nfcache: usize,
    target: usize,
    pub(super) next: usize,
    pub(super) comefrom: usize,
    pub(super) counters: usize,
    pub(super) header: usize,
}

const V4: Layout = Layout { nfcache: 84, target: 88, next: 90, comefrom: 92, counters: 96, header: 112 };
const V6: Layout = Layout { nfcache: 136, target: 140, next: 142, comefrom: 144, counters: 152, header: 168 };

/// A table's content, with where its hooks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) family: Family,
    /// Which hooks it has, by bit.
    pub(super) hooks: u32,
    pub(super) entry: [u32; HOOKS],
    pub(super) underflow: [u32; HOOKS],
    pub(super) entries: u32,
    pub(super) content: Vec<u8>,
}

/// A table after a change.
pub(super) struct Changed {
    pub(super) blob: Blob,
    /// The packet and byte counters of its entries, as they were before.
    pub(super) counters: Vec<u8>,
}

/// One chain's place among the entries.
struct Span {
    name: String,
    base: bool,
    /// The entry that carries its name is before the first.
    header: Option<usize>,
    /// Where its first entry begins: jumps name this.
    start: usize,
    /// Its entries' numbers; the last is its policy, or its return.
    entries: std::ops::Range<usize>,
}

pub(super) fn layout(family: Family) -> &'static Layout {
    if family == Family::V4 { &V4 } else { &V6 }
}

impl Blob {
    /// Its chains with what their rules do.
    pub(super) fn chains(&self, table: &str) -> Vec<Chain> {
        let offsets = self.offsets();
        let spans = self.spans(&offsets);
        let name_at = |offset: usize| spans.iter().find(|span| span.start == offset).map(|span| &span.name);
        let rule = |number: usize| {
            let next = offsets.get(number + 1).copied().unwrap_or(self.content.len());
            let entry = &self.content[offsets[number]..next];
            let does = match self.verdict(entry) {
                // What has no target goes on with the next rule.
                Some(to) if to == i32::try_from(next).unwrap_or(-1) => Does::Else,
                Some(ACCEPT) => Does::Accept,
                Some(RETURN) => Does::Return,
                Some(to) => usize::try_from(to)
                    .ok()
                    .and_then(name_at)
                    .map_or(Does::Else, |name| Does::Jump(name.clone())),
                None => {
                    let data = self.target(entry);
                    let info = data.get(TARGET_HEADER..).unwrap_or_default();
                    target::does(self.family, &target_name(data), data[TARGET_REVISION], info)
                }
            };
            Rule { id: RuleId(0), bare: self.is_for_all(entry), does }
        };
        let chain = |span: &Span| Chain {
            table: Table::Legacy(self.family, table.to_owned()),
            name: span.name.clone(),
            base: span.base,
            passes: true,
            rules: span.entries.clone().rev().skip(1).rev().map(rule).collect(),
        };
        spans.iter().map(chain).collect()
    }

    /// The same table without these chains and the jumps to them; `None` when it has none of them.
    pub(super) fn without(&self, chains: &BTreeSet<String>) -> Option<Changed> {
        let offsets = self.offsets();
        let spans = self.spans(&offsets);
        let (mut gone, mut starts) = (BTreeSet::new(), BTreeSet::new());
        for span in spans.iter().filter(|span| !span.base && chains.contains(&span.name)) {
            gone.extend(span.header);
            gone.extend(span.entries.clone());
            starts.insert(span.start);
        }
        if gone.is_empty() {
            return None;
        }
        let entry = |number: usize| {
            let end = offsets.get(number + 1).copied().unwrap_or(self.content.len());
            &self.content[offsets[number]..end]
        };
        for number in 0..offsets.len() {
            let leads_there = |to: i32| usize::try_from(to).is_ok_and(|to| starts.contains(&to));
            if self.verdict(entry(number)).is_some_and(leads_there) {
                gone.insert(number);
            }
        }
        // Where each offset leads afterwards: what is gone, to what comes after it.
        let (mut moved, mut at) = (BTreeMap::new(), 0);
        for (number, offset) in offsets.iter().enumerate() {
            moved.insert(*offset, at);
            if !gone.contains(&number) {
                at += entry(number).len();
            }
        }
        let (mut content, mut counters) = (Vec::with_capacity(at), Vec::new());
        for number in (0..offsets.len()).filter(|number| !gone.contains(number)) {
            let mut bytes = entry(number).to_vec();
            counters.extend_from_slice(&bytes[layout(self.family).counters..][..COUNTERS]);
            if let Some(to) = self.verdict(&bytes).and_then(|to| usize::try_from(to).ok()) {
                let to = moved.get(&to).copied().unwrap_or(to) as i32;
                let data = self.target_offset(&bytes) + TARGET_HEADER;
                bytes[data..data + 4].copy_from_slice(&to.to_ne_bytes());
            }
            content.extend_from_slice(&bytes);
        }
        let place = |offset: u32| moved.get(&(offset as usize)).map_or(offset, |to| *to as u32);
        let blob = Self {
            entry: self.entry.map(place),
            underflow: self.underflow.map(place),
            entries: (offsets.len() - gone.len()) as u32,
            content,
            ..*self
        };
        Some(Changed { blob, counters })
    }

    /// Where each entry begins. Stops at one that makes no sense.
    fn offsets(&self) -> Vec<usize> {
        let layout = layout(self.family);
        let (mut offsets, mut at) = (Vec::new(), 0);
        while let Some(entry) = self.content.get(at..).filter(|entry| entry.len() >= layout.header) {
            let next = usize::from(u16::from_ne_bytes([entry[layout.next], entry[layout.next + 1]]));
            let target = self.target_offset(entry);
            if next < target + TARGET_HEADER || target < layout.header || entry.len() < next {
                break;
            }
            offsets.push(at);
            at += next;
        }
        offsets
    }

    fn spans(&self, offsets: &[usize]) -> Vec<Span> {
        let mut starts: Vec<(usize, String, bool, Option<usize>)> = Vec::new();
        for (hook, name) in HOOK_CHAINS.iter().enumerate().filter(|(hook, _)| self.hooks & 1 << hook != 0) {
            if let Ok(number) = offsets.binary_search(&(self.entry[hook] as usize)) {
                starts.push((number, (*name).to_owned(), true, None));
            }
        }
        for (number, offset) in offsets.iter().enumerate() {
            let data = self.target(&self.content[*offset..]);
            if target_name(data) == NAMING {
                let name = text(data.get(TARGET_HEADER..).unwrap_or_default());
                starts.push((number + 1, name, false, Some(number)));
            }
        }
        starts.sort_unstable_by_key(|(number, ..)| *number);
        // The table ends with one more name, of no chain.
        let ends: Vec<usize> =
            starts.iter().skip(1).map(|(number, _, _, header)| header.unwrap_or(*number)).collect();
        starts
            .into_iter()
            .zip(ends)
            .map(|((number, name, base, header), end)| Span {
                name,
                base,
                header,
                start: offsets.get(number).copied().unwrap_or(self.content.len()),
                entries: number..end,
            })
            .collect()
    }

    /// What the standard target says; `None` where there is another target.
    fn verdict(&self, entry: &[u8]) -> Option<i32> {
        let data = self.target(entry);
        let standard = target_name(data).is_empty();
        let bytes = data.get(TARGET_HEADER..TARGET_HEADER + 4)?.try_into().ok()?;
        standard.then_some(i32::from_ne_bytes(bytes))
    }

    fn target_offset(&self, entry: &[u8]) -> usize {
        let at = layout(self.family).target;
        usize::from(u16::from_ne_bytes([entry[at], entry[at + 1]]))
    }

    fn target<'a>(&self, entry: &'a [u8]) -> &'a [u8] {
        entry.get(self.target_offset(entry)..).unwrap_or_default()
    }

    /// Whether it has no match and no condition on address, protocol or interface.
    fn is_for_all(&self, entry: &[u8]) -> bool {
        let layout = layout(self.family);
        self.target_offset(entry) == layout.header && entry[..layout.nfcache].iter().all(|byte| *byte == 0)
    }
}

fn target_name(target: &[u8]) -> String {
    text(target.get(TARGET_NAME).unwrap_or_default())
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
