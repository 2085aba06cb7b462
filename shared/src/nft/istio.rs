//! Taking istio-cni's rules out of nf_tables, in the transaction that puts ours in.

use super::install;
use super::message::{Batch, Kind, NFPROTO_INET};
use crate::istio::{NftFamily, Remains, RuleId, Table};
use crate::netfilter::Ruleset;
use crate::op::NftBatch;

// include/uapi/linux/netfilter/nf_tables.h
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;

/// Makes our table exactly `rules`, and takes istio-cni's chains and tables away. The kernel refuses all of it when
/// anything has changed since `remains` was listed.
#[must_use]
pub fn take_over(rules: &Ruleset, remains: &Remains) -> NftBatch {
    let mut batch = Batch::begin_at(remains.generation);
    install(&mut batch, rules);
    take_away(&mut batch, remains);
    batch.end()
}

/// Takes istio-cni's chains and tables away, under the same condition.
#[must_use]
pub fn dismantle(remains: &Remains) -> NftBatch {
    let mut batch = Batch::begin_at(remains.generation);
    take_away(&mut batch, remains);
    batch.end()
}

/// A chain can be deleted when no rule leads to it and none is in it.
fn take_away(batch: &mut Batch, remains: &Remains) {
    for (table, chain, id) in &remains.jumps {
        delete_rules(batch, table, chain, Some(*id));
    }
    for (table, chain) in &remains.chains {
        delete_rules(batch, table, chain, None);
    }
    let hooks =
        remains.emptied.iter().flat_map(|(table, chains)| chains.iter().map(move |chain| (table, chain)));
    for (table, chain) in remains.chains.iter().map(|(table, chain)| (table, chain)).chain(hooks) {
        in_table(batch, table, Kind::DelChain, &format!("chain {table} {chain}"), |message, name| {
            message.string(NFTA_CHAIN_TABLE, name);
            message.string(NFTA_CHAIN_NAME, chain);
        });
    }
    for table in remains.emptied.iter().map(|(table, _)| table).chain(&remains.tables) {
        in_table(batch, table, Kind::DelTable, &format!("table {table}"), |message, name| {
            message.string(NFTA_TABLE_NAME, name);
        });
    }
}

/// One rule of a chain, or all of them.
fn delete_rules(batch: &mut Batch, table: &Table, chain: &str, id: Option<RuleId>) {
    let what = match id {
        Some(RuleId(handle)) => format!("rule {handle} of {table} {chain}"),
        None => format!("the rules of {table} {chain}"),
    };
    in_table(batch, table, Kind::DelRule, &what, |message, name| {
        message.string(NFTA_RULE_TABLE, name);
        message.string(NFTA_RULE_CHAIN, chain);
        if let Some(RuleId(handle)) = id {
            message.bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
        }
    });
}

fn in_table(
    batch: &mut Batch,
    table: &Table,
    kind: Kind,
    what: &str,
    fill: impl FnOnce(&mut super::message::Attributes<'_>, &str),
) {
    // What is in ip_tables is not this transaction's to take away.
    let Table::Nft(family, name) = table else { return };
    let number = match family {
        NftFamily::Inet => NFPROTO_INET,
        NftFamily::Ip => 2,
        NftFamily::Ip6 => 10,
    };
    batch.message_in(number, kind, format!("delete istio-cni's {what}"), |message| fill(message, name));
}
