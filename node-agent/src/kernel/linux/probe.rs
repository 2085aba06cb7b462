//! Which backend works on this node: found by carrying out the real plan in a namespace of its own.

use super::iptables::Variant;
use super::program;
use super::scratch::scratch;
use super::{LinuxKernel, Means, carry_out, cgroup, observed_rules};
use crate::kernel::KernelError;
use sluice_shared::ids::Family;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::netfilter::{
    Chain, ChainName, Elements, Hook, Layer, Match, Rule, Ruleset, Set, SetName, Target,
};
use sluice_shared::nft;
use sluice_shared::op::{KernelOp, RestoreScript};
use sluice_shared::plan::{CgroupRef, MarkGuard, RedirectPlan};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// What to do where no iptables is installed: an operator who asked for it has most likely not thought of the image.
const NO_PROGRAMS: &str = "Sluice's own image has no programs but its own: use the backend nftables, or an image that has \
     iptables too (docs/install.md, \"The backend iptables\")";

impl LinuxKernel {
    /// Tries the backends with `plan` in a scratch namespace, nftables first, or only the one that the operator
    /// chose. Gives the one to use, and in one line why, with what was tried before it and failed.
    ///
    /// # Errors
    /// When none works: then no pod can be captured on this node.
    pub fn probe_backends(
        &self,
        plan: &RedirectPlan,
        only: Option<Backend>,
    ) -> Result<(Backend, String), KernelError> {
        let candidates = only.map_or(vec![Backend::Nftables, Backend::Iptables], |backend| vec![backend]);
        let mut failures = Vec::new();
        for backend in candidates {
            let tried = match backend {
                Backend::Nftables => try_plan(plan, backend, self.means(None))
                    .map(|()| "the kernel took the whole plan".into()),
                Backend::Iptables => {
                    self.probe_iptables(plan).map(|variant| format!("{variant} took the whole plan"))
                }
            };
            match tried {
                Ok(because) => {
                    let chosen = if only.is_some() { "; chosen by the configuration" } else { "" };
                    let before: String = failures.iter().map(|failure| format!("; {failure}")).collect();
                    return Ok((backend, format!("{because}{chosen}{before}")));
                }
                Err(error) => failures.push(format!("{backend} does not work: {error}")),
            }
        }
        Err(KernelError::Call {
            call: "find a way to redirect traffic".into(),
            source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            detail: failures.join("; "),
        })
    }

    /// Finds the iptables programs that take `plan`, and remembers them for every later op.
    ///
    /// # Errors
    /// When none does, with what each said.
    pub fn probe_iptables(&self, plan: &RedirectPlan) -> Result<Variant, KernelError> {
        let (mut failures, mut none_is_there) = (Vec::new(), true);
        for variant in Variant::ALL {
            match try_plan(plan, Backend::Iptables, self.means(Some(variant))) {
                Ok(()) => {
                    self.use_iptables(variant);
                    return Ok(variant);
                }
                Err(error) => {
                    none_is_there &= program::is_missing(&error);
                    failures.push(format!("{variant}: {error}"));
                }
            }
        }
        if none_is_there {
            failures.push(NO_PROGRAMS.to_owned());
        }
        Err(KernelError::Call {
            call: "find iptables programs that work".into(),
            source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            detail: failures.join("; "),
        })
    }

    /// Whether this kernel takes a plan: tried in a scratch namespace.
    ///
    /// # Errors
    /// Says why not.
    pub fn takes(&self, backend: Backend, plan: &RedirectPlan) -> Result<(), KernelError> {
        try_plan(plan, backend, self.means(self.programs_of(backend)?))
    }

    /// Whether rules can tell ztunnel's sockets by their cgroup: tries `plan` with a guard in a scratch namespace. A
    /// kernel may lack the match (nf_tables has it since 5.13), and iptables the extension.
    ///
    /// # Errors
    /// Says why not; every plan with a guard would then be refused.
    pub fn guard_works(&self, backend: Backend, plan: &RedirectPlan) -> Result<(), KernelError> {
        let iptables = self.programs_of(backend)?;
        // The root: nf_tables compares any number, and iptables finds this path wherever it finds one.
        let root = CgroupRef { level: 1, id: 1, path: "/".into() };
        let guard = MarkGuard::Cgroups(BTreeSet::from([root]));
        try_plan(&RedirectPlan { guard, ..plan.clone() }, backend, self.means(iptables))?;
        self.cgroups_are_told_apart(backend)
    }

    /// Whether a rule that names a cgroup finds a socket of it: tried with the agent's own, in a scratch namespace. On a
    /// node that is a container, kernels before 6.11 count levels from elsewhere than the rule's writer does.
    ///
    /// # Errors
    /// Says why not: rules by cgroup would take nobody for anybody. At the root of the tree there is nothing to try.
    pub fn cgroups_are_told_apart(&self, backend: Backend) -> Result<(), KernelError> {
        let means = self.means(self.programs_of(backend)?);
        // On a thread that ends: whoever asks stays in its own cgroup namespace.
        scratch(|| {
            let Some(own) = cgroup::own(&self.proc)? else { return Ok(()) };
            carry_out(&[KernelOp::LoopbackUp, own_packets_dropped(backend, &own)], means)?;
            let failed = |source, detail: &str| KernelError::Call {
                call: format!("tell the sockets of the cgroup /{} by a rule", own.path),
                source,
                detail: detail.into(),
            };
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| failed(error, ""))?;
            match socket.local_addr().and_then(|to| socket.send_to(&[0], to)) {
                // What becomes of a packet that a rule drops where it is sent.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                Err(error) => Err(failed(error, "sending to itself")),
                Ok(_) => Err(failed(
                    io::Error::from_raw_os_error(libc::EPROTO),
                    "the kernel took the rule, which does not match: where nodes are containers that takes Linux 6.11",
                )),
            }
        })
    }

    fn programs_of(&self, backend: Backend) -> Result<Option<Variant>, KernelError> {
        (backend == Backend::Iptables).then(|| self.variant()).transpose()
    }

    /// Tries host rules in a scratch namespace, so that the host is not touched to find out what its kernel can do.
    /// Whether a security module forbids them in the host itself is then what `run_host` says.
    ///
    /// # Errors
    /// As `run_host`.
    pub fn try_host(&self, ops: &[KernelOp]) -> Result<(), KernelError> {
        let means = self.means_for(ops)?;
        scratch(|| carry_out(ops, means))
    }
}

/// A rule at output against everything that comes from the sockets of a cgroup.
fn own_packets_dropped(backend: Backend, own: &CgroupRef) -> KernelOp {
    let set = Set { name: SetName::Kubelet, elements: Elements::Cgroups(BTreeSet::from([own.clone()])) };
    let rule = Rule {
        family: None,
        matches: vec![Match::SocketCgroupIn(own.level, SetName::Kubelet)],
        target: Target::Drop,
        why: Cow::Borrowed("to see whether it matches"),
    };
    let chain = Chain { name: ChainName::Base(Layer::Filter, Hook::Output), rules: vec![rule] };
    match backend {
        Backend::Nftables => {
            KernelOp::NftBatch(nft::replace(&Ruleset { sets: vec![set], chains: vec![chain] }))
        }
        Backend::Iptables => KernelOp::IptablesRestore(RestoreScript {
            family: Family::V4,
            text: format!("*filter\n-A OUTPUT -m cgroup --path \"{}\" -j DROP\nCOMMIT\n", own.path),
        }),
    }
}

/// Enrols, replaces and removes, and looks whether rules came and went.
fn try_plan(plan: &RedirectPlan, backend: Backend, means: Means<'_>) -> Result<(), KernelError> {
    let failed = |what: &str| KernelError::Call {
        call: format!("try {backend}"),
        source: io::Error::from_raw_os_error(libc::EPROTO),
        detail: what.into(),
    };
    scratch(|| {
        carry_out(&lower(backend, Step::Enroll { plan, live: true }), means)?;
        if observed_rules()?.rules.is_none() {
            return Err(failed("no error was reported, but no rule is there"));
        }
        carry_out(&lower(backend, Step::Replace(plan)), means)?;
        carry_out(&lower(backend, Step::Remove), means)?;
        match observed_rules()?.rules {
            None => Ok(()),
            Some(_) => Err(failed("no error was reported, but rules are left after their removal")),
        }
    })
}
