//! The Linux kernel behind the seam. Programs are executed by `program` alone, for the iptables backend.

mod apply;
mod bpf;
pub mod cgroup;
mod conntrack;
mod cookies;
mod half_closed;
mod ipset;
pub mod iptables;
mod istio;
mod kept;
mod legacy;
mod link;
pub(super) mod loaded;
mod netlink;
mod netns;
mod nft;
mod probe;
mod program;
mod retiring;
mod rivals;
mod route;
mod ruleset;
mod scratch;
mod shared_tables;
mod sockdiag;
mod target;
mod trial;
pub(super) mod trials;
pub mod watch;
mod xtables;

use super::{Attached, Fingerprint, HostProc, Kernel, KernelError, Netns, Observation, TcpSocket, Trial};
use iptables::Variant;
use legacy::Legacy;
use netlink::Conversation;
use netns::Namespaces;
use ruleset::{Hash, Ruleset};
use sluice_shared::cookie::Cookie;
use sluice_shared::enroll::Overrides;
use sluice_shared::ids::{Family, NetnsId};
use sluice_shared::istio::{Listing, PROBE_SETS};
use sluice_shared::lower::Backend;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{self, CgroupRef, Flow, Hold, MarkGuard, Older, ProbeDoor, RedirectConfig, Stage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

/// By what ops are carried out, besides system calls.
#[derive(Clone, Copy)]
struct Means<'a> {
    /// Always there when there is an op of iptables'.
    iptables: Option<Variant>,
    proc: &'a HostProc,
}

/// The kernel that the agent runs on.
#[derive(Debug)]
pub struct LinuxKernel {
    namespaces: Namespaces,
    proc: HostProc,
    /// The iptables programs that work; found when first needed, unless a probe found them before.
    variant: RwLock<Option<Variant>>,
    stamp: cookies::Stamp,
}

impl LinuxKernel {
    /// Takes the calling thread's network namespace as the agent's own, to which every thread comes back, and the one
    /// at `host` (`/proc/1/ns/net`, or `/proc/self/ns/net` with hostNetwork) as the host's.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn new(host: &Path) -> Result<Self, KernelError> {
        retiring::start_closer();
        Ok(Self {
            namespaces: Namespaces::new(host)?,
            proc: HostProc::default(),
            variant: RwLock::new(None),
            stamp: cookies::Stamp::default(),
        })
    }

    /// Looks for the host's processes there.
    #[must_use]
    pub fn with_host_proc(self, proc: HostProc) -> Self {
        Self { proc, ..self }
    }

    /// The namespaces in which no pod's rules are ever written: the host's and the agent's own.
    #[must_use]
    pub fn ours(&self) -> [NetnsId; 2] {
        [self.namespaces.host_id(), self.namespaces.own_id()]
    }

    /// Uses these iptables programs for every later op, whatever else would work.
    pub fn use_iptables(&self, variant: Variant) {
        *self.variant.write().unwrap_or_else(PoisonError::into_inner) = Some(variant);
    }

    fn known_variant(&self) -> Option<Variant> {
        *self.variant.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The iptables programs to use, found by trying a plan with everything in it if nobody has asked before.
    fn variant(&self) -> Result<Variant, KernelError> {
        if let Some(variant) = self.known_variant() {
            return Ok(variant);
        }
        let config = RedirectConfig { dns_capture: true, ipv6: true };
        let stage = Stage::Redirect(Older::AnyMidStream);
        let overrides = Overrides::default();
        self.probe_iptables(&plan::redirect(
            &overrides,
            &config,
            stage,
            ProbeDoor::Closed,
            MarkGuard::Off,
            Hold::Drop,
        ))
    }

    /// iptables' programs are looked for in the agent's own namespace, before any other is entered.
    fn means_for(&self, ops: &[KernelOp]) -> Result<Means<'_>, KernelError> {
        let needs = |op: &KernelOp| matches!(op, KernelOp::IptablesRestore(_) | KernelOp::ClearIptables);
        let iptables = ops.iter().any(needs).then(|| self.variant()).transpose()?;
        Ok(self.means(iptables))
    }

    fn means(&self, iptables: Option<Variant>) -> Means<'_> {
        Means { iptables, proc: &self.proc }
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
        let means = self.means_for(ops)?;
        self.namespaces.enter_pod(netns, || carry_out(ops, means))
    }

    fn apply(&self, netns: &Netns, ops: &[KernelOp]) -> Result<Observation, KernelError> {
        let means = self.means_for(ops)?;
        self.namespaces.enter_pod(netns, || apply::apply(ops, means))
    }

    fn run_host(&self, ops: &[KernelOp]) -> Result<(), KernelError> {
        let means = self.means_for(ops)?;
        self.namespaces.enter_host(|| carry_out(ops, means))
    }

    fn write_host(&self, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError> {
        let means = self.means_for(ops)?;
        self.namespaces.enter_host(|| apply::write(ops, means))
    }

    fn amend_host(&self, before: Fingerprint, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError> {
        let means = self.means_for(ops)?;
        self.namespaces.enter_host(|| apply::amend(before, ops, means))
    }

    fn observe(&self, netns: &Netns) -> Result<Observation, KernelError> {
        self.namespaces.enter_pod(netns, || observation(observed_rules()?))
    }

    fn observe_since(&self, netns: &Netns, before: &Observation) -> Result<Observation, KernelError> {
        self.namespaces.enter_pod(netns, || observation(rules_since(before)?))
    }

    fn observe_host(&self) -> Result<Option<Fingerprint>, KernelError> {
        self.namespaces.enter_host(|| Ok(observed_on_host()?.rules))
    }

    fn sockets(&self, netns: &Netns) -> Result<Vec<TcpSocket>, KernelError> {
        self.namespaces.enter_pod(netns, sockdiag::all)
    }

    fn kept_flows(&self, netns: &Netns) -> Result<BTreeSet<Flow>, KernelError> {
        let variant = self.known_variant();
        self.namespaces.enter_pod(netns, || kept::flows(variant))
    }

    fn istio(&self, netns: &Netns) -> Result<Listing, KernelError> {
        self.namespaces.enter_pod(netns, || istio::list(&[]))
    }

    fn istio_on_host(&self) -> Result<Listing, KernelError> {
        self.namespaces.enter_host(|| istio::list(&PROBE_SETS))
    }

    fn addresses(&self, netns: &Netns) -> Result<Vec<IpAddr>, KernelError> {
        self.namespaces.enter_pod(netns, || route::addresses(&mut route::open()?))
    }

    fn host_source_for(&self, pod_ip: IpAddr) -> Result<IpAddr, KernelError> {
        self.namespaces.enter_host(|| route::source_for(&mut route::open()?, pod_ip))
    }

    fn cgroup_of(&self, pid: i32) -> Result<CgroupRef, KernelError> {
        cgroup::of_process(&self.proc, pid)
    }

    fn cgroup_at(&self, path: &str) -> Result<CgroupRef, KernelError> {
        cgroup::at_path(&self.proc, path)
    }

    fn attach_cookies(&self, kubelet: &CgroupRef) -> Result<Attached, KernelError> {
        self.stamp.attach(&self.proc, kubelet)
    }

    fn detach_cookies(&self, kubelet: &CgroupRef) -> Result<bool, KernelError> {
        self.stamp.detach(&self.proc, kubelet)
    }

    fn cookies(&self) -> Result<BTreeMap<IpAddr, Cookie>, KernelError> {
        self.stamp.given()
    }

    fn give_cookie(&self, to: IpAddr, cookie: Option<Cookie>) -> Result<(), KernelError> {
        self.stamp.give(to, cookie)
    }

    fn new_cookie(&self) -> Result<Cookie, KernelError> {
        cookies::random()
    }

    fn trial(&self, netns: &Netns, address: IpAddr) -> Result<Trial, KernelError> {
        let source = self.host_source_for(address)?;
        let on_host = || Ok((trial::connector(source)?, trial::connector(source)?));
        let (probe, control) = self.namespaces.enter_host(on_host)?;
        let listener = self.namespaces.enter_pod(netns, || trial::listener(address))?;
        Ok(Trial { listener, probe, control })
    }

    fn carry_cookies(&self, given: &[(IpAddr, Cookie)]) -> Result<Box<dyn Send>, KernelError> {
        Ok(Box::new(trial::OwnStamp::attach(&self.proc, given)?))
    }

    fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, KernelError> {
        let all = self.namespaces.enter_host(|| route::addresses(&mut route::open()?))?;
        let of_link = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        Ok(all.into_iter().filter(|ip| !of_link(ip)).collect())
    }
}

/// Our rules as one look at the calling thread's namespace finds them, whichever backend made them.
struct Rules {
    rules: Option<Fingerprint>,
    written_by: BTreeSet<Backend>,
    generation: u32,
    /// What nf_tables alone counts; `None` when the kernel has none.
    commits: Option<u32>,
    foreign_nat: Vec<String>,
}

fn observed_rules() -> Result<Rules, KernelError> {
    Ok(rules_with(Legacy::read()?, Ruleset::read()?))
}

fn observed_on_host() -> Result<Rules, KernelError> {
    Ok(rules_with(Legacy::read()?, Ruleset::read_on_host()?))
}

/// As [`observed_rules`]; with nothing in ip_tables and nf_tables at the generation of `before`, what that shows.
fn rules_since(before: &Observation) -> Result<Rules, KernelError> {
    let legacy = Legacy::read()?;
    let Observation { rules, written_by, generation, foreign_nat, .. } = before;
    let no_legacy = legacy.ours.is_none() && legacy.foreign_nat.is_empty();
    if no_legacy && ruleset::current_generation()? == Some(*generation) {
        return Ok(Rules {
            rules: *rules,
            written_by: written_by.clone(),
            generation: *generation,
            commits: Some(*generation),
            foreign_nat: foreign_nat.clone(),
        });
    }
    Ok(rules_with(legacy, Ruleset::read()?))
}

/// The rest of a look at the calling thread's namespace.
fn observation(rules: Rules) -> Result<Observation, KernelError> {
    let Rules { rules, written_by, generation, commits: _, foreign_nat } = rules;
    let mut routing = route::open()?;
    let [mut policy_rule, mut local_route] = [true; 2];
    for family in Family::BOTH {
        policy_rule &= route::has_rule(&mut routing, family)?;
        local_route &= route::has_route(&mut routing, family)?;
    }
    let loopback = local_route || link::loopback_is_up(&mut routing)?;
    let listening = sockdiag::listening()?;
    Ok(Observation {
        rules,
        written_by,
        generation,
        policy_rule,
        local_route,
        loopback,
        listening,
        foreign_nat,
    })
}

fn rules_with(legacy: Legacy, ruleset: Option<Ruleset>) -> Rules {
    let mut foreign_nat = legacy.foreign_nat;
    let (mut parts, mut commits) = (vec![legacy.ours], None);
    let mut written_by: BTreeSet<Backend> = legacy.ours.map(|_| Backend::Iptables).into_iter().collect();
    if let Some(ruleset) = ruleset {
        parts.extend([ruleset.iptables, ruleset.ours]);
        written_by.extend(ruleset.iptables.map(|_| Backend::Iptables));
        written_by.extend(ruleset.ours.map(|_| Backend::Nftables));
        commits = Some(ruleset.generation);
        foreign_nat.extend(ruleset.foreign_nat);
    }
    let mut generation = commits.unwrap_or(0);
    if let Some(Fingerprint(legacy)) = legacy.ours {
        // ip_tables counts nothing: its content stands in.
        generation = generation.wrapping_add(legacy as u32);
    }
    let found: Vec<Fingerprint> = parts.into_iter().flatten().collect();
    let rules = match found.as_slice() {
        [] => None,
        [only] => Some(*only),
        // Remains of another backend beside ours: equal to neither alone.
        several => {
            let mut hash = Hash::new();
            several.iter().for_each(|part| hash.feed(&part.0.to_le_bytes()));
            Some(Fingerprint(hash.finish()))
        }
    };
    Rules { rules, written_by, generation, commits, foreign_nat }
}

/// Carries out ops in the calling thread's namespace.
fn carry_out(ops: &[KernelOp], means: Means<'_>) -> Result<(), KernelError> {
    let mut routing = None;
    let variant = means.iptables.unwrap_or(Variant::Default);
    for op in ops {
        match op {
            KernelOp::LoopbackUp => link::loopback_up(opened(&mut routing)?)?,
            KernelOp::PolicyRule(family, presence) => {
                route::set_rule(opened(&mut routing)?, *family, *presence)?;
            }
            KernelOp::LocalRoute(family, presence) => {
                route::set_route(opened(&mut routing)?, *family, *presence)?;
            }
            KernelOp::FlushConntrack => conntrack::flush(!observed_rules()?.foreign_nat.is_empty())?,
            KernelOp::ForgetDirect => conntrack::forget_direct()?,
            KernelOp::RememberHalfClosed(presence) => half_closed::remember(*presence, means.proc)?,
            KernelOp::NftBatch(batch) => {
                // Rules may name cgroups by level, which counts from the sender's cgroup namespace.
                cgroup::prefer_hosts_namespace(means.proc);
                nft::commit(batch)?;
            }
            KernelOp::ClearIptables => iptables::clear(variant)?,
            KernelOp::LegacyWithout { family, table, chains } => {
                legacy::remove_chains(*family, table, chains)?;
            }
            KernelOp::DestroyIpset(name) => ipset::destroy(name)?,
            KernelOp::IptablesRestore(script) => {
                // As above, for cgroups by path.
                cgroup::prefer_hosts_namespace(means.proc);
                iptables::restore(variant, script)?;
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
