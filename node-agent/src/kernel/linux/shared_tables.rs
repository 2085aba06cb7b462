//! Our chains in tables that others write to as well: iptables' own on a host, where kube-proxy, the primary CNI and port
//! mappings come and go. What they change is no drift of ours.

use super::istio::jumps_to;
use super::legacy;
use super::netlink::{Conversation, Kept, Refused, attributes, string};
use super::ruleset::{
    Hash, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, Table, chain_name, consistent, dump,
    hash_chains, hash_header, iptables_tables, nf_attribute, without_counts,
};
use crate::kernel::KernelError;
use sluice_shared::contract::IPTABLES_PREFIX;
use sluice_shared::ids::Family;
use sluice_shared::istio::{Does, Rule};
use sluice_shared::op::Extent;
use std::collections::BTreeSet;

/// Hashes our chains, their rules and the jumps to them, and whether a rule of somebody else's comes before a jump: it may
/// take packets away.
pub(super) fn hash_ours(
    conversation: &mut Conversation,
    table: &Table,
    header: &Kept,
    chains: &[Kept],
    hash: &mut Hash,
) -> Result<(), Refused> {
    hash_header(table, header, hash);
    hash_chains(table, chains.iter().filter(|chain| is_ours(&chain_name(chain))), hash);
    let mut begun = BTreeSet::new();
    for rule in dump(conversation, libc::NFT_MSG_GETRULE, table.family, &[(NFTA_RULE_TABLE, &table.name)])? {
        let chain = nf_attribute(&rule, NFTA_RULE_CHAIN).map(string).unwrap_or_default();
        let ours = is_ours(&chain);
        let first = begun.insert(chain.clone());
        if !ours && !jumps_to(&rule, is_ours) {
            continue;
        }
        hash.feed(chain.as_bytes());
        hash.feed(&[u8::from(ours || first)]);
        for (_, expression) in attributes(nf_attribute(&rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
            hash.feed(without_counts(expression));
        }
    }
    Ok(())
}

/// How much of ours there is, whichever of iptables' programs wrote it.
pub(super) fn extent() -> Result<Extent, KernelError> {
    let in_nftables = consistent(|conversation, _| {
        let chains = dump(conversation, libc::NFT_MSG_GETCHAIN, 0, &[])?;
        let mut extent = Extent::default();
        for table in iptables_tables(&chains) {
            let which = [(NFTA_RULE_TABLE, table.name.as_str())];
            let mut begun = BTreeSet::new();
            for rule in dump(conversation, libc::NFT_MSG_GETRULE, table.family, &which)? {
                let chain = nf_attribute(&rule, NFTA_RULE_CHAIN).map(string).unwrap_or_default();
                let (ours, first) = (is_ours(&chain), begun.insert(chain));
                extent.rules += usize::from(ours);
                extent.jumps += usize::from(!ours && first && jumps_to(&rule, is_ours));
            }
        }
        Ok(extent)
    });
    let mut extent = in_nftables?.unwrap_or_default();
    for family in Family::BOTH {
        for table in legacy::table_names(family) {
            for chain in legacy::blob(family, &table)?.chains(&table) {
                let to_us = |rule: &&Rule| matches!(&rule.does, Does::Jump(name) if is_ours(name));
                match is_ours(&chain.name) {
                    true => extent.rules += chain.rules.len(),
                    false => extent.jumps += chain.rules.iter().take(1).filter(to_us).count(),
                }
            }
        }
    }
    Ok(extent)
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(IPTABLES_PREFIX)
}
