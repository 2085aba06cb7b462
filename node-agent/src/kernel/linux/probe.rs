//! Which backend works on this node: found by carrying out the real plan in a namespace of its own.

use super::iptables::Variant;
use super::scratch::scratch;
use super::{LinuxKernel, carry_out, observed_rules};
use crate::kernel::KernelError;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{CgroupRef, MarkGuard, RedirectPlan};
use std::collections::BTreeSet;
use std::io;

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
                Backend::Nftables => {
                    try_plan(plan, backend, None).map(|()| "the kernel took the whole plan".into())
                }
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
        let mut failures = Vec::new();
        for variant in Variant::ALL {
            match try_plan(plan, Backend::Iptables, Some(variant)) {
                Ok(()) => {
                    self.use_iptables(variant);
                    return Ok(variant);
                }
                Err(error) => failures.push(format!("{variant}: {error}")),
            }
        }
        Err(KernelError::Call {
            call: "find iptables programs that work".into(),
            source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            detail: failures.join("; "),
        })
    }

    /// Whether rules can tell ztunnel's sockets by their cgroup: tries `plan` with a guard in a scratch namespace. A
    /// kernel may lack the match (nf_tables has it since 5.13), and iptables the extension.
    ///
    /// # Errors
    /// Says why not; every plan with a guard would then be refused.
    pub fn guard_works(&self, backend: Backend, plan: &RedirectPlan) -> Result<(), KernelError> {
        let variant = (backend == Backend::Iptables).then(|| self.variant()).transpose()?;
        // The root: nf_tables compares any number, and iptables finds this path wherever it finds one.
        let root = CgroupRef { level: 1, id: 1, path: "/".into() };
        let guard = MarkGuard::Cgroups(BTreeSet::from([root]));
        try_plan(&RedirectPlan { guard, ..plan.clone() }, backend, variant)
    }

    /// Tries host rules in a scratch namespace, so that the host is not touched to find out what its kernel can do.
    /// Whether a security module forbids them in the host itself is then what `run_host` says.
    ///
    /// # Errors
    /// As `run_host`.
    pub fn try_host(&self, ops: &[KernelOp]) -> Result<(), KernelError> {
        let variant = self.variant_if_needed(ops)?;
        scratch(|| carry_out(ops, variant))
    }
}

/// Enrols, replaces and removes, and looks whether rules came and went.
fn try_plan(plan: &RedirectPlan, backend: Backend, variant: Option<Variant>) -> Result<(), KernelError> {
    let failed = |what: &str| KernelError::Call {
        call: format!("try {backend}"),
        source: io::Error::from_raw_os_error(libc::EPROTO),
        detail: what.into(),
    };
    scratch(|| {
        carry_out(&lower(backend, Step::Enroll { plan, live: true }), variant)?;
        if observed_rules()?.rules.is_none() {
            return Err(failed("no error was reported, but no rule is there"));
        }
        carry_out(&lower(backend, Step::Replace(plan)), variant)?;
        carry_out(&lower(backend, Step::Remove), variant)?;
        match observed_rules()?.rules {
            None => Ok(()),
            Some(_) => Err(failed("no error was reported, but rules are left after their removal")),
        }
    })
}
