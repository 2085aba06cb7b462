//! From a plan to what the kernel seam does, in an order that is fixed here and tested without root.

use crate::op::KernelOp;
use crate::plan::RedirectPlan;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How rules get into a kernel. A closed set: every match on it is exhaustive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// One nf_tables netlink transaction; no program is executed.
    Nftables,
    /// `iptables-restore`, for kernels that refuse the first.
    Iptables,
}

/// What is done to a pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Put the plan in force in a namespace that has none of ours yet (or remains of ours that nobody vouches for).
    /// Rule and route come first, then, for a pod that ran before, conntrack is flushed, then the rules commit.
    Enroll {
        /// The plan.
        plan: &'a RedirectPlan,
        /// Whether processes of the pod may already have connections.
        live: bool,
    },
    /// Replace the plan that is in force by this one, in one transaction; conntrack is left alone.
    Replace(&'a RedirectPlan),
    /// Take everything of ours away: rules, then policy rule and route, then conntrack.
    Remove,
}

/// Lowers a step. Pure: the same input gives the same bytes.
#[must_use]
pub fn lower(_backend: Backend, _step: Step<'_>) -> Vec<KernelOp> {
    Vec::new()
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}
