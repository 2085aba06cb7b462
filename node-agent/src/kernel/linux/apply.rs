//! Ops, and a look at what they made of the namespace, with nobody in between.

use super::{Means, carry_out, observation, observed_on_host, observed_rules, ruleset, shared_tables};
use crate::kernel::{Fingerprint, KernelError, Observation};
use sluice_shared::iptables::extent;
use sluice_shared::op::KernelOp;
use std::io;

/// How often the ops are carried out when others change rules meanwhile. Each attempt takes milliseconds.
const ATTEMPTS: usize = 5;

/// Carries out `ops` in the calling thread's namespace and looks at what is there then.
///
/// With nftables the look shows our commits and nothing else: it is taken at the generation that they alone lead to.
/// ip_tables counts nothing, so with iptables it shows what is there a moment later.
pub(super) fn apply(ops: &[KernelOp], means: Means<'_>) -> Result<Observation, KernelError> {
    let batches = ops.iter().filter(|op| matches!(op, KernelOp::NftBatch(_))).count();
    let first = ops.iter().position(|op| matches!(op, KernelOp::NftBatch(_)));
    let counted = !ops.iter().any(|op| matches!(op, KernelOp::ClearIptables | KernelOp::IptablesRestore(_)));
    let Some(first) = first.filter(|_| counted) else {
        carry_out(ops, means)?;
        return observation(observed_rules()?);
    };
    let (preparation, rest) = ops.split_at(first);
    for _ in 0..ATTEMPTS {
        carry_out(preparation, means)?;
        let before = ruleset::current_generation()?;
        carry_out(rest, means)?;
        let rules = observed_rules()?;
        if rules.commits == before.map(|before| after(before, batches)) {
            return observation(rules);
        }
    }
    Err(KernelError::Call {
        call: "see our own rules as they were committed".into(),
        source: io::Error::from_raw_os_error(libc::EBUSY),
        detail: format!(
            "somebody else changed nf_tables rules in the namespace during each of {ATTEMPTS} attempts; has the pod \
             CAP_NET_ADMIN?"
        ),
    })
}

/// Carries out `ops`, which write our table on a host whole, and gives what they alone have made of it.
///
/// With nftables the generation tells. With iptables, whose replacements count on jumps that an earlier run wrote, as much of
/// ours must be there after the look as was written, and before what others have: who flushed a chain at any moment before
/// left less.
pub(super) fn write(ops: &[KernelOp], means: Means<'_>) -> Result<Option<Fingerprint>, KernelError> {
    let batches = ops.iter().filter(|op| matches!(op, KernelOp::NftBatch(_))).count();
    let scripts = ops.iter().filter_map(|op| match op {
        KernelOp::IptablesRestore(script) => Some(script),
        _ => None,
    });
    let written = extent(scripts);
    let before = ruleset::current_generation()?;
    carry_out(ops, means)?;
    let made = observed_on_host()?;
    let alone = match batches {
        0 => shared_tables::extent()? == written,
        _ => made.commits == before.map(|before| after(before, batches)),
    };
    Ok(made.rules.filter(|_| alone))
}

/// Carries out `ops`, one transaction at most, where our rules are `before`, and gives what they alone have made of them.
pub(super) fn amend(
    before: Fingerprint,
    ops: &[KernelOp],
    means: Means<'_>,
) -> Result<Option<Fingerprint>, KernelError> {
    let found = observed_rules()?;
    if found.rules != Some(before) {
        return Ok(None);
    }
    if ops.is_empty() {
        return Ok(Some(before));
    }
    carry_out(ops, means)?;
    let made = observed_rules()?;
    let alone = found.commits.map(next) == made.commits && made.commits.is_some();
    Ok(made.rules.filter(|_| alone))
}

/// The generation that so many commits lead to.
fn after(generation: u32, commits: usize) -> u32 {
    (0..commits).fold(generation, |count, _| next(count))
}

/// The generation after this one: the kernel leaves 0 out (`nf_tables_commit`).
fn next(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::next;

    #[test]
    fn generations_leave_zero_out() {
        assert_eq!((next(1), next(u32::MAX)), (2, 1));
    }
}
