//! What could be istio-cni's in a namespace, read by netlink and socket options. No program is executed.
//!
//! Tables in which no name looks like istio-cni's are not read any further.

use super::netlink::{Conversation, Kept, Refused, attribute, attributes, string};
use super::ruleset::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_EXPR_NAME, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, Table, chain_name, consistent, dump, nf_attribute,
};
use super::{ipset, legacy, target};
use crate::kernel::KernelError;
use sluice_shared::ids::Family;
use sluice_shared::istio::{Chain, Does, Listing, NftFamily, Rule, RuleId, Table as Whose};
use std::collections::BTreeSet;

/// How istio-cni's names begin: chains of iptables', and tables of its own.
const CHAIN_PREFIX: &str = "ISTIO_";
const TABLE_PREFIX: &str = "istio-ambient-";
/// The tables that its iptables chains are in.
const LEGACY_TABLES: [&str; 3] = ["nat", "mangle", "raw"];

// include/uapi/linux/netfilter/nf_tables.h
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_REV: u16 = 2;
const NFTA_TARGET_INFO: u16 = 3;
/// `NFTA_META_SREG`, `NFTA_CT_SREG`: the expression writes.
const NFTA_META_SREG: u16 = 3;
const NFTA_CT_SREG: u16 = 4;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

/// Lists the calling thread's namespace, and which of these ipsets are there.
pub(super) fn list(sets: &[&str]) -> Result<Listing, KernelError> {
    let mut listing = consistent(nf_tables)?.unwrap_or_default();
    for family in Family::BOTH {
        for name in legacy::table_names(family).iter().filter(|name| LEGACY_TABLES.contains(&name.as_str())) {
            let chains = legacy::blob(family, name)?.chains(name);
            if chains.iter().any(|chain| chain.name.starts_with(CHAIN_PREFIX)) {
                listing.chains.extend(chains);
            }
        }
    }
    for set in sets {
        if ipset::is_there(set)? {
            listing.ipsets.insert((*set).to_owned());
        }
    }
    Ok(listing)
}

fn nf_tables(conversation: &mut Conversation, generation: u32) -> Result<Listing, Refused> {
    let chains = dump(conversation, libc::NFT_MSG_GETCHAIN, 0, &[])?;
    let table_of = |chain: &Kept| Table::of(chain, NFTA_CHAIN_TABLE);
    let concerned = |chain: &&Kept| {
        chain_name(chain).starts_with(CHAIN_PREFIX)
            || table_of(chain).is_some_and(|table| table.name.starts_with(TABLE_PREFIX))
    };
    let tables: BTreeSet<Table> = chains.iter().filter(concerned).filter_map(table_of).collect();
    let mut listing = Listing { generation: Some(generation), ..Listing::default() };
    for table in &tables {
        let Some(whose) = whose(table) else { continue };
        let rules =
            dump(conversation, libc::NFT_MSG_GETRULE, table.family, &[(NFTA_RULE_TABLE, &table.name)])?;
        for chain in chains.iter().filter(|chain| table_of(chain).as_ref() == Some(table)) {
            let name = chain_name(chain);
            let of_it =
                |rule: &&Kept| nf_attribute(rule, NFTA_RULE_CHAIN).map(string).as_deref() == Some(&*name);
            let policy = nf_attribute(chain, NFTA_CHAIN_POLICY).and_then(|value| value.try_into().ok());
            listing.chains.push(Chain {
                table: whose.clone(),
                base: nf_attribute(chain, NFTA_CHAIN_HOOK).is_some(),
                passes: policy.is_none_or(|policy| u32::from_be_bytes(policy) == libc::NF_ACCEPT as u32),
                rules: rules.iter().filter(of_it).map(|found| rule(found, table.family)).collect(),
                name,
            });
        }
    }
    Ok(listing)
}

fn whose(table: &Table) -> Option<Whose> {
    let family = match i32::from(table.family) {
        libc::NFPROTO_IPV4 => NftFamily::Ip,
        libc::NFPROTO_IPV6 => NftFamily::Ip6,
        libc::NFPROTO_INET => NftFamily::Inet,
        _ => return None,
    };
    Some(Whose::Nft(family, table.name.clone()))
}

/// A rule is conditions, then what it does; a second thing that it does makes it something else.
fn rule(found: &Kept, family: u8) -> Rule {
    let id = nf_attribute(found, NFTA_RULE_HANDLE).and_then(|value| value.try_into().ok());
    let (mut bare, mut does, mut loaded) = (true, None, None);
    for (_, expression) in attributes(nf_attribute(found, NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
        let done = match attribute(expression, NFTA_EXPR_NAME).map(string).unwrap_or_default().as_str() {
            "counter" => continue,
            "immediate" => match verdict(data) {
                Some(verdict) => verdict,
                // A number for the expression after it.
                None => {
                    loaded = loaded_number(data);
                    continue;
                }
            },
            "target" => by_target(data, family),
            "redir" => loaded.map_or(Does::Else, Does::Redirect),
            "meta" if attribute(data, NFTA_META_SREG).is_none() => {
                bare = false;
                continue;
            }
            "ct" if attribute(data, NFTA_CT_SREG).is_none() => {
                bare = false;
                continue;
            }
            "match" | "cmp" | "payload" | "bitwise" | "lookup" | "range" => {
                bare = false;
                continue;
            }
            _ => Does::Else,
        };
        does = Some(if does.is_some() { Does::Else } else { done });
    }
    Rule { id: RuleId(id.map_or(0, u64::from_be_bytes)), bare, does: does.unwrap_or(Does::Else) }
}

/// Whether it goes on in a chain with a name like this.
pub(super) fn jumps_to(found: &Kept, chain: impl Fn(&str) -> bool) -> bool {
    let expressions = nf_attribute(found, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    attributes(expressions).any(|(_, expression)| {
        let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
        let is_verdict = attribute(expression, NFTA_EXPR_NAME).map(string).as_deref() == Some("immediate");
        is_verdict && matches!(verdict(data), Some(Does::Jump(name)) if chain(&name))
    })
}

fn verdict(data: &[u8]) -> Option<Does> {
    let verdict = attribute(attribute(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    let code = attribute(verdict, NFTA_VERDICT_CODE)?.try_into().ok().map(i32::from_be_bytes)?;
    let chain = attribute(verdict, NFTA_VERDICT_CHAIN).map(string);
    Some(match (code, chain) {
        (libc::NF_ACCEPT, _) => Does::Accept,
        (NFT_RETURN, _) => Does::Return,
        (NFT_JUMP | NFT_GOTO, Some(chain)) => Does::Jump(chain),
        _ => Does::Else,
    })
}

fn loaded_number(data: &[u8]) -> Option<u16> {
    let value = attribute(attribute(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VALUE)?;
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn by_target(data: &[u8], family: u8) -> Does {
    let family = if i32::from(family) == libc::NFPROTO_IPV6 { Family::V6 } else { Family::V4 };
    let name = attribute(data, NFTA_TARGET_NAME).map(string).unwrap_or_default();
    let revision = attribute(data, NFTA_TARGET_REV).and_then(|value| value.try_into().ok());
    let revision = revision.map_or(0, u32::from_be_bytes) as u8;
    target::does(family, &name, revision, attribute(data, NFTA_TARGET_INFO).unwrap_or_default())
}
