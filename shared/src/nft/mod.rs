//! Rules as one nf_tables netlink transaction for the table `inet sluice`, ready to send.
//!
//! The encoder is ours because it is small, and because the same plan must give the same bytes: a batch can be made
//! once, compared and sent to many pods. Attributes and values are those of `linux/netfilter/nf_tables.h`; what `nft`
//! needs beyond them to print the table well (key types, comments) is libnftnl's user data.

mod expr;
mod istio;
mod message;
mod rule;
mod set;

pub use istio::{dismantle, take_over};
pub use set::flow_of_key;

use crate::contract::NFT_TABLE;
use crate::netfilter::{Chain, ChainName, Hook, Ruleset, Set};
use crate::op::NftBatch;
use message::{Batch, Kind};

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;

/// `NF_ACCEPT`, as a chain's policy.
const NF_ACCEPT: u32 = 1;

/// Makes the table exactly `rules`, whatever it was before, even if it was not there.
///
/// The last message before `NFNL_MSG_BATCH_END` asks for an acknowledgement. The kernel answers a committed batch with
/// that one alone, and a refused one with an error for each message at fault (and perhaps that one too).
#[must_use]
pub fn replace(rules: &Ruleset) -> NftBatch {
    let mut batch = Batch::begin();
    install(&mut batch, rules);
    batch.end()
}

/// Makes the table exactly `rules`.
fn install(batch: &mut Batch, rules: &Ruleset) {
    clear(batch);
    table(batch, Kind::NewTable);
    for (index, definition) in rules.sets.iter().enumerate() {
        set::define(batch, definition, index);
    }
    // Every chain before the first rule: rules name chains to jump to.
    for definition in &rules.chains {
        chain(batch, definition.name);
    }
    for Chain { name, rules } in &rules.chains {
        for (index, definition) in rules.iter().enumerate() {
            rule::append(batch, *name, index, definition);
        }
    }
}

/// Takes elements out of sets of the table, and puts others in; all else stays as it is. The kernel refuses the whole of
/// it when something that is to go is not there.
#[must_use]
pub fn amend(gone: &[Set], new: &[Set]) -> NftBatch {
    let mut batch = Batch::begin();
    // What only changes its note goes and comes back.
    gone.iter().for_each(|set| set::amend(&mut batch, Kind::DelSetElem, set));
    new.iter().for_each(|set| set::amend(&mut batch, Kind::NewSetElem, set));
    batch.end()
}

/// Takes the table away; it may be gone already.
#[must_use]
pub fn remove() -> NftBatch {
    let mut batch = Batch::begin();
    clear(&mut batch);
    batch.end()
}

/// Deletes the table. It is made first, so that the deletion cannot fail for want of one.
fn clear(batch: &mut Batch) {
    table(batch, Kind::NewTable);
    table(batch, Kind::DelTable);
}

fn table(batch: &mut Batch, kind: Kind) {
    let label = match kind {
        Kind::DelTable => format!("delete table inet {NFT_TABLE}"),
        _ => format!("add table inet {NFT_TABLE}"),
    };
    batch.message(kind, label, |message| {
        message.string(NFTA_TABLE_NAME, NFT_TABLE);
        if kind == Kind::NewTable {
            message.u32(NFTA_TABLE_FLAGS, 0);
        }
    });
}

fn chain(batch: &mut Batch, name: ChainName) {
    batch.message(Kind::NewChain, format!("add chain inet {NFT_TABLE} {name}"), |message| {
        message.string(NFTA_CHAIN_TABLE, NFT_TABLE);
        message.string(NFTA_CHAIN_NAME, &name.to_string());
        if let (ChainName::Base(layer, hook), Some(kind)) = (name, name.kind()) {
            message.nested(NFTA_CHAIN_HOOK, |attributes| {
                attributes.u32(NFTA_HOOK_HOOKNUM, hook_number(hook));
                attributes.u32(NFTA_HOOK_PRIORITY, layer.priority(hook).cast_unsigned());
            });
            message.u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
            message.string(NFTA_CHAIN_TYPE, kind);
        }
    });
}

/// `enum nf_inet_hooks`
const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}
