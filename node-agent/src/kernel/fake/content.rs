//! What a place holds, and what ops make of it.

use crate::kernel::{Fingerprint, TcpSocket};
use sluice_shared::host::{self, HostStep};
use sluice_shared::istio::{Listing, Table};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::nft;
use sluice_shared::op::{KernelOp, Presence};
use sluice_shared::plan::Flow;
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) rules: Option<Fingerprint>,
    pub(super) written_by: BTreeSet<Backend>,
    pub(super) generation: u32,
    pub(super) policy_rule: bool,
    pub(super) local_route: bool,
    pub(super) loopback_down: bool,
    pub(super) listening: BTreeSet<u16>,
    pub(super) foreign_nat: Vec<String>,
    pub(super) sockets: Vec<TcpSocket>,
    pub(super) kept: BTreeSet<Flow>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) istio: Listing,
}

impl Content {
    fn lose(&mut self, backend: Backend) {
        self.written_by.remove(&backend);
        if self.written_by.is_empty() {
            self.rules = None;
        }
    }

    pub(super) fn carry_out(&mut self, op: &KernelOp) {
        let mut hasher = DefaultHasher::new();
        match op {
            KernelOp::PolicyRule(_, presence) => self.policy_rule = *presence == Presence::Present,
            KernelOp::LocalRoute(_, presence) => {
                self.local_route = *presence == Presence::Present;
                // A local route needs `lo`, so it is brought up for it.
                self.loopback_down &= !self.local_route;
            }
            KernelOp::LoopbackUp
            | KernelOp::FlushConntrack
            | KernelOp::ForgetDirect
            | KernelOp::RememberHalfClosed(_) => {}
            KernelOp::ClearIptables => self.lose(Backend::Iptables),
            KernelOp::NftBatch(batch) => batch.bytes.hash(&mut hasher),
            KernelOp::IptablesRestore(script) => script.text.hash(&mut hasher),
            KernelOp::LegacyWithout { family, table, chains } => {
                let table = Table::Legacy(*family, table.clone());
                self.istio.chains.retain(|chain| chain.table != table || !chains.contains(&chain.name));
            }
            KernelOp::DestroyIpset(name) => _ = self.istio.ipsets.remove(name),
        }
        if let KernelOp::NftBatch(batch) = op
            && batch.labels.iter().any(|label| label.starts_with("delete istio-cni's"))
        {
            self.istio.chains.retain(|chain| matches!(chain.table, Table::Legacy(..)));
            if !batch.labels.iter().any(|label| label.starts_with("add table")) {
                return;
            }
        }
        if matches!(op, KernelOp::NftBatch(_) | KernelOp::IptablesRestore(_)) {
            self.rules = Some(Fingerprint(hasher.finish()));
            self.generation += 1;
            let wrote =
                if matches!(op, KernelOp::NftBatch(_)) { Backend::Nftables } else { Backend::Iptables };
            self.written_by.insert(wrote);
            if *op == KernelOp::NftBatch(nft::remove()) {
                self.lose(Backend::Nftables);
            }
        }
    }
}

/// Whether this takes everything of ours away.
pub(super) fn removes(ops: &[KernelOp]) -> bool {
    !ops.is_empty()
        && [Backend::Nftables, Backend::Iptables].into_iter().any(|backend| {
            lower(backend, Step::Remove) == ops || host::lower(backend, HostStep::Remove) == ops
        })
}
