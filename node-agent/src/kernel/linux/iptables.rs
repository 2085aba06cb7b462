//! The backend for kernels that refuse nf_tables: `iptables-restore`, run in the pod's namespace.
//!
//! Which iptables works on a node is found by trying: names and versions say little (a legacy program on a kernel
//! without ip_tables, an nft program on one without nf_tables).

use super::legacy;
use super::nft;
use super::program;
use super::ruleset::{Ruleset, Table};
use crate::kernel::KernelError;
use iptables::IPTables;
use sluice_shared::contract::IPTABLES_PREFIX;
use sluice_shared::ids::Family;
use sluice_shared::op::RestoreScript;
use sluice_shared::plan::Flow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

/// Which programs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `iptables`, whichever the system's default is.
    Default,
    /// `iptables-legacy`, for ip_tables.
    Legacy,
    /// `iptables-nft`, for nf_tables in tables of iptables' own.
    Nft,
}

/// The tables of one family that hold chains of ours, in the order in which they are cleared.
type Remains = BTreeMap<Family, Vec<String>>;

/// NAT goes first: nothing is redirected while the marks that bring answers back are missing.
const CLEARING_ORDER: [&str; 4] = ["nat", "filter", "mangle", "raw"];

impl Variant {
    /// In the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Default, Self::Legacy, Self::Nft];

    /// The program that shows and changes single rules.
    #[must_use]
    pub const fn program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Default, Family::V4) => "iptables",
            (Self::Default, Family::V6) => "ip6tables",
            (Self::Legacy, Family::V4) => "iptables-legacy",
            (Self::Legacy, Family::V6) => "ip6tables-legacy",
            (Self::Nft, Family::V4) => "iptables-nft",
            (Self::Nft, Family::V6) => "ip6tables-nft",
        }
    }

    /// The program that changes many rules at once.
    #[must_use]
    pub const fn restore_program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Default, Family::V4) => "iptables-restore",
            (Self::Default, Family::V6) => "ip6tables-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
            (Self::Nft, Family::V4) => "iptables-nft-restore",
            (Self::Nft, Family::V6) => "ip6tables-nft-restore",
        }
    }

    /// The crate's constructor asks the program for its version, only to learn that it is newer than 1.4.20 (2013).
    const fn single(self, family: Family) -> IPTables {
        IPTables { cmd: self.program(family), has_check: true, has_wait: true, is_numeric: false }
    }
}

/// Runs a script in the calling thread's namespace. Each of its tables changes at once or not at all.
pub(super) fn restore(variant: Variant, script: &RestoreScript) -> Result<(), KernelError> {
    run_restore(variant, script.family, &script.text)
}

/// Takes every chain of ours, and every jump to one, out of the calling thread's namespace. Remains of another variant
/// (a node's default may have changed) go too. No program runs where nothing of ours is.
pub(super) fn clear(variant: Variant) -> Result<(), KernelError> {
    let mut remaining = remains()?;
    if remaining.is_empty() {
        return Ok(());
    }
    let mut said = None;
    let others = Variant::ALL.into_iter().filter(|other| *other != variant);
    for program in std::iter::once(variant).chain(others) {
        for (family, tables) in &remaining {
            said = clear_with(program, *family, tables).err().or(said);
        }
        remaining = remains()?;
        if remaining.is_empty() {
            return nft::drop_empty_iptables_tables();
        }
    }
    Err(said.unwrap_or_else(|| KernelError::Call {
        call: "take our chains out of iptables".into(),
        source: io::Error::from_raw_os_error(libc::EEXIST),
        detail: format!("there are still some: {remaining:?}"),
    }))
}

/// The connections that the chain `SLUICE_KEPT` keeps, in both directions. No program runs where nothing of ours is.
pub(super) fn kept(variant: Option<Variant>) -> Result<BTreeSet<Flow>, KernelError> {
    let chain = format!("{IPTABLES_PREFIX}KEPT");
    let programs = variant.map_or(Variant::ALL.to_vec(), |variant| vec![variant]);
    let mut flows = BTreeSet::new();
    for (family, _) in remains()?.into_iter().filter(|(_, tables)| tables.iter().any(|table| table == "nat"))
    {
        for program in &programs {
            // A program of the other kind does not see the chain, and lists nothing.
            let lines = program.single(family).list("nat", &chain).unwrap_or_default();
            flows.extend(lines.iter().filter_map(|line| kept_flow(line)));
        }
    }
    Ok(flows)
}

/// `-A SLUICE_KEPT -s 10.0.0.1/32 -d 10.0.0.2/32 -p tcp -m tcp --sport 1 --dport 2 -j ACCEPT`
fn kept_flow(line: &str) -> Option<Flow> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
    let address = |option| after(option)?.split('/').next()?.parse::<IpAddr>().ok();
    let port = |option| after(option)?.parse::<u16>().ok();
    Some(Flow { local: (address("-s")?, port("--sport")?), remote: (address("-d")?, port("--dport")?) })
}

fn run_restore(variant: Variant, family: Family, text: &str) -> Result<(), KernelError> {
    let program = variant.restore_program(family);
    let ended = program::run(program, &["--noflush", "--wait=5"], text)?;
    if ended.status.success() {
        return Ok(());
    }
    // What it says names a line of its input: show that line.
    let line = ended
        .stderr
        .split_once("line ")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok())
        .and_then(|number| text.lines().nth(number.checked_sub(1)?));
    let line = line.map_or(String::new(), |line| format!(" [{line}]"));
    Err(KernelError::Call {
        call: format!("{program} ended with {}", ended.status),
        source: io::Error::from_raw_os_error(libc::EINVAL),
        detail: format!("{}{line}", ended.stderr),
    })
}

/// What of ours there is in iptables' tables, of either kind.
fn remains() -> Result<Remains, KernelError> {
    let mut remains = Remains::new();
    for family in Family::BOTH {
        for table in legacy::table_names(family) {
            if legacy::has_our_chains(family, &table) {
                remains.entry(family).or_default().push(table);
            }
        }
    }
    for Table { family, name } in Ruleset::read()?.map(|ruleset| ruleset.iptables_tables).unwrap_or_default()
    {
        let family = if i32::from(family) == libc::NFPROTO_IPV4 { Family::V4 } else { Family::V6 };
        remains.entry(family).or_default().push(name);
    }
    for tables in remains.values_mut() {
        tables.sort_by_key(|table| CLEARING_ORDER.iter().position(|name| name == table));
        tables.dedup();
    }
    Ok(remains)
}

/// Clears those of the tables that this program sees.
fn clear_with(variant: Variant, family: Family, tables: &[String]) -> Result<(), KernelError> {
    let mut text = String::new();
    for table in tables {
        // An error gives nothing to clear; whether all is gone is looked at afterwards.
        let rules = variant.single(family).list_table(table).unwrap_or_default();
        text += &clearing(table, &rules);
    }
    if text.is_empty() { Ok(()) } else { run_restore(variant, family, &text) }
}

/// One table's clearing script from its rules as `iptables -S` prints them; empty when nothing there is ours.
fn clearing(table: &str, rules: &[String]) -> String {
    let ours: Vec<&str> = rules
        .iter()
        .filter_map(|line| line.strip_prefix("-N "))
        .filter(|chain| chain.starts_with(IPTABLES_PREFIX))
        .collect();
    if ours.is_empty() {
        return String::new();
    }
    let jumps = rules.iter().filter_map(|line| line.strip_prefix("-A ")).filter(|rule| {
        let foreign = !rule.starts_with(IPTABLES_PREFIX);
        // The target is last: a comment before it may say anything.
        let target =
            rule.rsplit_once(" -j ").or_else(|| rule.rsplit_once(" -g ")).map_or("", |(_, target)| target);
        foreign && target.starts_with(IPTABLES_PREFIX)
    });
    // A line for a chain empties it, which parts our chains from each other.
    let emptied = ours.iter().map(|chain| format!(":{chain} - [0:0]"));
    let parted = jumps.map(|rule| format!("-D {rule}"));
    let deleted = ours.iter().map(|chain| format!("-X {chain}"));
    let lines: Vec<String> = emptied.chain(parted).chain(deleted).collect();
    format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program(Family::V4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn clearing_takes_our_chains_and_the_jumps_to_them() {
        let rules = lines(&[
            "-P OUTPUT ACCEPT",
            "-N SLUICE_OUTPUT",
            "-N OTHERS",
            "-A OUTPUT -p tcp -m comment --comment \"for -j SLUICE_X\" -j OTHERS",
            "-A OUTPUT -j SLUICE_OUTPUT",
            "-A SLUICE_OUTPUT -p tcp -j REDIRECT --to-ports 15001",
        ]);
        let expected = "*nat\n:SLUICE_OUTPUT - [0:0]\n-D OUTPUT -j SLUICE_OUTPUT\n-X SLUICE_OUTPUT\nCOMMIT\n";
        assert_eq!(clearing("nat", &rules), expected);
        assert_eq!(clearing("nat", &lines(&["-P OUTPUT ACCEPT", "-N OTHERS"])), "");
    }

    #[test]
    fn a_kept_connection_is_read_back() {
        let line = "-A SLUICE_KEPT -s 10.0.0.1/32 -d fd00::2/128 -p tcp -m tcp --sport 1 --dport 2 -j ACCEPT";
        let flow = kept_flow(line).unwrap();
        assert_eq!(flow.local, ("10.0.0.1".parse().unwrap(), 1));
        assert_eq!(flow.remote, ("fd00::2".parse().unwrap(), 2));
        assert_eq!(kept_flow("-N SLUICE_KEPT"), None);
    }
}
