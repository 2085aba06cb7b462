//! Which connections the rules in force keep: how a restarted agent learns what the one before it kept.

use super::iptables::{self, Variant};
use super::{route, ruleset};
use crate::kernel::KernelError;
use sluice_shared::nft::flow_of_key;
use sluice_shared::plan::Flow;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What the rules in the calling thread's namespace keep, whichever backend made them. Both hold each connection in
/// both directions: its local end is the one with an address of the namespace.
pub(super) fn flows(variant: Option<Variant>) -> Result<BTreeSet<Flow>, KernelError> {
    let mut flows = BTreeSet::new();
    for set in ["kept4", "kept6"] {
        flows.extend(ruleset::our_set_keys(set)?.iter().filter_map(|key| flow_of_key(key)));
    }
    flows.append(&mut iptables::kept(variant)?);
    if !flows.is_empty() {
        let own: BTreeSet<IpAddr> = route::all_addresses(&mut route::open()?)?.into_iter().collect();
        flows.retain(|flow| own.contains(&flow.local.0));
    }
    Ok(flows)
}
