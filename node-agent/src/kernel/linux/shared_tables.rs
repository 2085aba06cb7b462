//! Our chains in tables that others write to as well: iptables' own on a host, where kube-proxy, the primary CNI and port
//! mappings come and go. What they change is no drift of ours.

use super::istio::jumps_to;
use super::netlink::{Conversation, Kept, Refused, attributes, string};
use super::ruleset::{
    Hash, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, Table, chain_name, dump, hash_chains,
    hash_header, nf_attribute, without_counts,
};
use sluice_shared::contract::IPTABLES_PREFIX;
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

fn is_ours(chain: &str) -> bool {
    chain.starts_with(IPTABLES_PREFIX)
}
