//! The host's part of the probe strategy `snat`: the kubelet's own connections to enrolled pods get a source address
//! that the pods' rules let pass. The only rules that Sluice ever writes outside a pod, and optional.

use crate::ids::{Family, PodUid};
use crate::iptables::{self, Skeleton};
use crate::lower::{Backend, iptables_ops};
use crate::netfilter::{host_by_label, host_by_socket, host_changes};
use crate::nft;
use crate::op::KernelOp;
use crate::plan::{CgroupRef, Flow};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Everything that the host's table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlan {
    /// Whose connections are let through: the kubelet's cgroup.
    pub kubelet: CgroupRef,
    /// The source they get, IPv4.
    pub source_v4: Ipv4Addr,
    /// The source they get, IPv6.
    pub source_v6: Ipv6Addr,
    /// The addresses of enrolled pods, by uid: an address that a new pod reuses has the new pod as its owner.
    pub pods: BTreeMap<PodUid, Vec<IpAddr>>,
    /// Connections that the agent makes itself, to try this way: they get the source, too. The pod's end is the local one.
    pub trials: BTreeSet<Flow>,
}

/// What is done to the host's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostStep<'a> {
    /// Make the table exactly this, in one transaction, whatever was there. With iptables, what was there is cleaned
    /// up before: use [`HostStep::Replace`] where the table is known to be ours and whole.
    Install(&'a HostPlan),
    /// Replace the plan that is in force by this one, in one transaction.
    Replace(&'a HostPlan),
    /// Take it away.
    Remove,
}

impl HostPlan {
    /// What makes `to` of a table that is exactly this plan, without writing the rest of it anew: the kernel takes
    /// milliseconds to tear a table down, and one pod's coming or going need not wait for that. One transaction, or
    /// nothing where the rules say the same. `None` where more than pods has changed, or more pods than the sets
    /// have room for, and with iptables, which has no sets.
    #[must_use]
    pub fn amended(&self, backend: Backend, to: &Self) -> Option<Vec<KernelOp>> {
        let rules = |plan: &Self| (plan.kubelet.clone(), plan.source_v4, plan.source_v6, plan.trials.clone());
        if backend != Backend::Nftables || rules(self) != rules(to) {
            return None;
        }
        let (gone, new) = host_changes(self, to)?;
        let changed = gone.iter().chain(&new).any(|set| !set.elements.is_empty());
        Some(if changed { vec![KernelOp::NftBatch(nft::amend(&gone, &new))] } else { Vec::new() })
    }
}

/// Lowers a step on the host. Pure.
#[must_use]
pub fn lower(backend: Backend, step: HostStep<'_>) -> Vec<KernelOp> {
    match backend {
        Backend::Nftables => vec![KernelOp::NftBatch(match step {
            HostStep::Install(plan) | HostStep::Replace(plan) => nft::replace(&host_by_label(plan)),
            HostStep::Remove => nft::remove(),
        })],
        Backend::Iptables => match step {
            HostStep::Install(plan) => {
                iptables_ops(true, iptables::install(&host_by_socket(plan), Skeleton::Host, &Family::BOTH))
            }
            HostStep::Replace(plan) => {
                iptables_ops(false, iptables::refill(&host_by_socket(plan), Skeleton::Host, &Family::BOTH))
            }
            HostStep::Remove => iptables_ops(true, Vec::new()),
        },
    }
}
