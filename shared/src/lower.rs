//! From a plan to what the kernel seam does, in an order that is fixed here and tested without root.

use crate::ids::Family;
use crate::iptables::{self, Skeleton};
use crate::istio::Remains;
use crate::netfilter::from_plan;
use crate::nft;
use crate::op::{KernelOp, Presence, RestoreScript};
use crate::plan::RedirectPlan;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How rules get into a kernel. A closed set: every match on it is exhaustive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    ///
    /// Remains of ours go first: with nftables in the same transaction, with iptables by [`KernelOp::ClearIptables`].
    Enroll {
        /// The plan.
        plan: &'a RedirectPlan,
        /// Whether processes of the pod may already have connections.
        live: bool,
    },
    /// Put the plan in force in a namespace whose traffic istio-cni's rules redirect, and take those away: with nftables
    /// in the same transaction, as far as they are in nf_tables. Whatever is in ip_tables goes right after ours has come:
    /// both redirect to the same ports until then. Policy rule and route are the same as ours, and stay. Conntrack is left
    /// alone: what ztunnel carries goes on.
    TakeOver {
        /// The plan.
        plan: &'a RedirectPlan,
        /// What there is of istio-cni's.
        remains: &'a Remains,
    },
    /// Take what is left of istio-cni's away where the rules in force are ours, or, on the host, have no need of it.
    Dismantle(&'a Remains),
    /// Replace the plan that is in force by this one, in one transaction; conntrack is left alone. With iptables the
    /// two plans must agree on `ipv6`.
    Replace(&'a RedirectPlan),
    /// The plan is in force, but somebody has changed what is there: put everything back. Connections that began past
    /// the rules meanwhile are forgotten, so that their packets meet the rules; proxied ones live on.
    Repair(&'a RedirectPlan),
    /// Take away only the rules that this backend wrote: the other one's are in force now, and count on the policy rule,
    /// the route and what conntrack remembers.
    GiveWay,
    /// Take everything of ours away: rules, then policy rule and route, then conntrack.
    Remove,
}

/// Lowers a step. Pure: the same input gives the same bytes.
#[must_use]
pub fn lower(backend: Backend, step: Step<'_>) -> Vec<KernelOp> {
    match step {
        Step::Enroll { plan, live } => {
            let mut ops = prepared();
            if live {
                // An entry from an earlier stay in the mesh would let a new connection with the same tuple bypass it.
                ops.push(KernelOp::FlushConntrack);
            }
            ops.extend(rules(backend, &Rules::Install(plan)));
            ops
        }
        Step::TakeOver { plan, remains } => {
            let mut ops = prepared();
            match backend {
                Backend::Nftables => {
                    ops.push(KernelOp::NftBatch(nft::take_over(&from_plan(plan), remains)));
                    ops.extend(outside_nftables(remains));
                }
                Backend::Iptables => {
                    ops.extend(rules(backend, &Rules::Install(plan)));
                    // The handles are those of another generation now: they are looked up anew.
                    ops.extend(outside_nftables(remains));
                }
            }
            ops
        }
        Step::Dismantle(remains) => {
            let batch = remains.in_nftables().then(|| KernelOp::NftBatch(nft::dismantle(remains)));
            batch.into_iter().chain(outside_nftables(remains)).collect()
        }
        Step::Repair(plan) => {
            let mut ops = prepared();
            ops.extend(rules(backend, &Rules::Install(plan)));
            ops.push(KernelOp::ForgetDirect);
            ops
        }
        Step::Replace(plan) => rules(backend, &Rules::Refill(plan)),
        Step::GiveWay => rules(backend, &Rules::Delete),
        Step::Remove => {
            let mut ops = rules(backend, &Rules::Delete);
            ops.extend(routing(Presence::Absent));
            ops.push(KernelOp::FlushConntrack);
            ops.push(KernelOp::RememberHalfClosed(Presence::Absent));
            ops
        }
    }
}

/// What the rules count on, loopback first: no route leads to it while it is down.
///
/// Policy rule and route are there for both families, whatever the plan captures: an observation needs no plan then to
/// tell whether they are missing, and packets without our mark never meet them.
fn prepared() -> Vec<KernelOp> {
    let mut ops = vec![KernelOp::LoopbackUp];
    ops.extend(routing(Presence::Present));
    ops.push(KernelOp::RememberHalfClosed(Presence::Present));
    ops
}

/// What of istio-cni's is in ip_tables, and its ipsets, which rules name. NAT goes first: nothing is redirected while the
/// marks that bring answers back are missing.
fn outside_nftables(remains: &Remains) -> Vec<KernelOp> {
    let mut tables: Vec<_> = remains.legacy.iter().collect();
    tables.sort_by_key(|((_, table), _)| table != "nat");
    let without = tables.into_iter().map(|((family, table), chains)| KernelOp::LegacyWithout {
        family: *family,
        table: table.clone(),
        chains: chains.clone(),
    });
    without.chain(remains.ipsets.iter().cloned().map(KernelOp::DestroyIpset)).collect()
}

/// What happens to the rules in a step.
enum Rules<'a> {
    Install(&'a RedirectPlan),
    Refill(&'a RedirectPlan),
    Delete,
}

fn rules(backend: Backend, what: &Rules<'_>) -> Vec<KernelOp> {
    match backend {
        Backend::Nftables => vec![KernelOp::NftBatch(match what {
            Rules::Install(plan) | Rules::Refill(plan) => nft::replace(&from_plan(plan)),
            Rules::Delete => nft::remove(),
        })],
        Backend::Iptables => match what {
            Rules::Install(plan) => {
                let scripts = iptables::install(&from_plan(plan), Skeleton::Pod, families(plan.ipv6));
                iptables_ops(true, scripts)
            }
            Rules::Refill(plan) => {
                iptables_ops(false, iptables::refill(&from_plan(plan), Skeleton::Pod, families(plan.ipv6)))
            }
            Rules::Delete => iptables_ops(true, Vec::new()),
        },
    }
}

/// The scripts, after a clean-up or not.
pub(crate) fn iptables_ops(clear: bool, scripts: Vec<RestoreScript>) -> Vec<KernelOp> {
    let clear = clear.then_some(KernelOp::ClearIptables);
    clear.into_iter().chain(scripts.into_iter().map(KernelOp::IptablesRestore)).collect()
}

/// The policy rules, then the routes that they lead to.
fn routing(presence: Presence) -> Vec<KernelOp> {
    let policy = Family::BOTH.map(|family| KernelOp::PolicyRule(family, presence)).into_iter();
    let routes = Family::BOTH.map(|family| KernelOp::LocalRoute(family, presence));
    policy.chain(routes).collect()
}

/// Whose rules `iptables-restore` writes; nf_tables has one table for both.
const fn families(ipv6: bool) -> &'static [Family] {
    if ipv6 { &Family::BOTH } else { &[Family::V4] }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}
