//! The Linux kernel behind the seam. No program is executed here but by [`iptables`], for kernels that refuse nf_tables.

mod conntrack;
mod netlink;
mod netns;
mod nft;
mod route;
mod ruleset;
mod sockdiag;

use super::{Fingerprint, Kernel, KernelError, Netns, Observation, TcpSocket};
use netlink::Conversation;
use netns::Namespaces;
use ruleset::Ruleset;
use sluice_shared::ids::{Family, NetnsId};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::Flow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The kernel that the agent runs on.
#[derive(Debug)]
pub struct LinuxKernel {
    namespaces: Namespaces,
}

impl LinuxKernel {
    /// Takes the calling thread's network namespace as the agent's own, to which every thread comes back, and the one
    /// at `host` (`/proc/1/ns/net`, or `/proc/self/ns/net` with hostNetwork) as the host's.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn new(host: &Path) -> Result<Self, KernelError> {
        Ok(Self { namespaces: Namespaces::new(host)? })
    }

    /// The namespaces in which no pod's rules are ever written: the host's and the agent's own.
    #[must_use]
    pub fn ours(&self) -> [NetnsId; 2] {
        [self.namespaces.host_id(), self.namespaces.own_id()]
    }
}

impl Kernel for LinuxKernel {
    fn open(&self, path: &Path) -> Result<Netns, KernelError> {
        self.namespaces.open(path)
    }

    fn adopt(&self, fd: OwnedFd) -> Result<Netns, KernelError> {
        self.namespaces.adopt(fd)
    }

    fn run(&self, netns: &Netns, ops: &[KernelOp]) -> Result<(), KernelError> {
        self.namespaces.enter_pod(netns, || carry_out(ops))
    }

    fn run_host(&self, ops: &[KernelOp]) -> Result<(), KernelError> {
        self.namespaces.enter_host(|| carry_out(ops))
    }

    fn observe(&self, netns: &Netns) -> Result<Observation, KernelError> {
        self.namespaces.enter_pod(netns, || {
            let ruleset = Ruleset::read()?;
            let mut routing = route::open()?;
            let [mut policy_rule, mut local_route] = [true; 2];
            for family in Family::BOTH {
                policy_rule &= route::has_rule(&mut routing, family)?;
                local_route &= route::has_route(&mut routing, family)?;
            }
            let listening = sockdiag::listening()?;
            let (rules, generation, foreign_nat) = match ruleset {
                Some(ruleset) => (
                    ruleset.ours.or(ruleset.iptables),
                    ruleset.generation,
                    ruleset.foreign_nat.into_iter().collect(),
                ),
                None => (None, 0, Vec::new()),
            };
            Ok(Observation { rules, generation, policy_rule, local_route, listening, foreign_nat })
        })
    }

    fn observe_host(&self) -> Result<Option<Fingerprint>, KernelError> {
        self.namespaces.enter_host(|| Ok(Ruleset::read()?.and_then(|ruleset| ruleset.ours)))
    }

    fn sockets(&self, netns: &Netns) -> Result<Vec<TcpSocket>, KernelError> {
        self.namespaces.enter_pod(netns, sockdiag::all)
    }

    fn kept_flows(&self, netns: &Netns) -> Result<BTreeSet<Flow>, KernelError> {
        self.namespaces.enter_pod(netns, || {
            let keys = [ruleset::our_set_keys("kept4")?, ruleset::our_set_keys("kept6")?];
            if keys.iter().all(Vec::is_empty) { Ok(BTreeSet::new()) } else { Err(not_yet("read kept flows")) }
        })
    }

    fn addresses(&self, netns: &Netns) -> Result<Vec<IpAddr>, KernelError> {
        self.namespaces.enter_pod(netns, || route::addresses(&mut route::open()?))
    }

    fn host_source_for(&self, pod_ip: IpAddr) -> Result<IpAddr, KernelError> {
        self.namespaces.enter_host(|| route::source_for(&mut route::open()?, pod_ip))
    }
}

/// Carries out ops in the calling thread's namespace.
fn carry_out(ops: &[KernelOp]) -> Result<(), KernelError> {
    let mut routing = None;
    for op in ops {
        match op {
            KernelOp::PolicyRule(family, presence) => {
                route::set_rule(opened(&mut routing)?, *family, *presence)?;
            }
            KernelOp::LocalRoute(family, presence) => {
                route::set_route(opened(&mut routing)?, *family, *presence)?;
            }
            KernelOp::FlushConntrack => {
                let foreign = Ruleset::read()?.is_some_and(|ruleset| !ruleset.foreign_nat.is_empty());
                conntrack::flush(foreign)?;
            }
            KernelOp::NftBatch(batch) => nft::commit(batch)?,
            KernelOp::ForgetDirect => return Err(not_yet("forget direct connections")),
            KernelOp::IptablesRestore(_) | KernelOp::ClearIptables => {
                return Err(not_yet("run iptables-restore"));
            }
        }
    }
    Ok(())
}

/// One routing socket for all ops of a run.
fn opened(routing: &mut Option<Conversation>) -> Result<&mut Conversation, KernelError> {
    match routing {
        Some(conversation) => Ok(conversation),
        None => Ok(routing.insert(route::open()?)),
    }
}

fn not_yet(call: &str) -> KernelError {
    KernelError::Call {
        call: call.into(),
        source: std::io::Error::from_raw_os_error(libc::EOPNOTSUPP),
        detail: "not there yet".into(),
    }
}
