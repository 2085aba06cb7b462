//! Rules as `iptables-restore --noflush` text, one script a family.
//!
//! Each kind of place has a fixed skeleton of chains ([`Skeleton`]), whether its plan fills them or not, so that
//! replacing a plan is refilling: in `--noflush` mode a line `:SLUICE_OUTPUT - [0:0]` empties our chain, or makes it,
//! and touches nobody else's. Jumps are the one thing that no such line makes idempotent: appending doubles what is
//! there, deleting fails on what is not. So only [`install`] writes them, after [`KernelOp::ClearIptables`], and in front
//! of what others have.
//!
//! Every table commits by itself. NAT comes last: nothing is redirected while the marks that bring answers back are
//! missing.
//!
//! [`KernelOp::ClearIptables`]: crate::op::KernelOp::ClearIptables

mod rule;

use crate::contract::IPTABLES_PREFIX;
use crate::ids::Family;
use crate::netfilter::{ChainName, Hook, Layer, Ruleset};
use crate::op::{Extent, RestoreScript};
use std::fmt::Write;
use std::ops::Add;

/// Which chains of ours there are, whatever the plan says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skeleton {
    /// In a pod.
    Pod,
    /// In the host.
    Host,
}

/// A table's chains of ours.
struct Table {
    layer: Layer,
    /// Each is jumped to from the kernel's chain of that hook.
    hooks: &'static [Hook],
    /// Reached from our own chains only.
    inner: &'static [InnerChain],
}

/// A chain of ours that no chain of the kernel's jumps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InnerChain {
    /// [`ChainName::Hold`]
    Hold,
    /// Connections that keep their path, one rule for each direction. Only packets that open no connection get here.
    Kept,
}

/// Makes chains, rules and jumps where nothing of ours is.
#[must_use]
pub fn install(rules: &Ruleset, skeleton: Skeleton, families: &[Family]) -> Vec<RestoreScript> {
    families.iter().map(|family| script(rules, skeleton, *family, true)).collect()
}

/// Gives chains that are there new rules, a table at a time; a packet sees the old ones or the new ones.
#[must_use]
pub fn refill(rules: &Ruleset, skeleton: Skeleton, families: &[Family]) -> Vec<RestoreScript> {
    families.iter().map(|family| script(rules, skeleton, *family, false)).collect()
}

/// How much of ours there is once scripts of [`install`] have run, or of [`refill`] where every jump is in its place.
#[must_use]
pub fn extent<'a>(scripts: impl IntoIterator<Item = &'a RestoreScript>) -> Extent {
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Output, Hook::Postrouting];
    let is_base = |line: &&str| hooks.iter().any(|hook| line.starts_with(&format!(":{} ", base(*hook))));
    let of_one = |script: &RestoreScript| Extent {
        jumps: script.text.lines().filter(is_base).count(),
        rules: script.text.lines().filter(|line| line.starts_with("-A ")).count(),
    };
    scripts.into_iter().map(of_one).fold(Extent::default(), Extent::add)
}

fn script(rules: &Ruleset, skeleton: Skeleton, family: Family, jumps: bool) -> RestoreScript {
    let fill = |table: &Table| {
        let mut text = declared(table);
        for hook in table.hooks {
            if jumps {
                line(&mut text, format_args!("-I {} -j {}", builtin(*hook), base(*hook)));
            }
        }
        for hook in table.hooks {
            let lines = rule::lines(rules, ChainName::Base(table.layer, *hook), family);
            append(&mut text, &base(*hook), &lines);
        }
        for inner in table.inner {
            let lines = match inner {
                InnerChain::Hold => rule::lines(rules, ChainName::Hold, family),
                InnerChain::Kept => rule::kept(rules, family),
            };
            append(&mut text, &inner.name(), &lines);
        }
        text.push_str("COMMIT\n");
        text
    };
    RestoreScript { family, text: skeleton.tables().iter().map(fill).collect() }
}

/// `*table` and its chains, made or emptied.
fn declared(table: &Table) -> String {
    let mut text = format!("*{}\n", table_name(table.layer));
    for chain in chains(table) {
        line(&mut text, format_args!(":{chain} - [0:0]"));
    }
    text
}

fn chains(table: &Table) -> impl Iterator<Item = String> {
    table.hooks.iter().map(|hook| base(*hook)).chain(table.inner.iter().map(|inner| inner.name()))
}

fn append(text: &mut String, chain: &str, lines: &[String]) {
    for rule in lines {
        line(text, format_args!("-A {chain} {rule}"));
    }
}

/// Writing to a string cannot fail.
fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{content}");
}

impl Skeleton {
    /// In the order in which they are filled.
    const fn tables(self) -> &'static [Table] {
        const BOTH_WAYS: &[Hook] = &[Hook::Prerouting, Hook::Output];
        match self {
            Self::Pod => &[
                Table { layer: Layer::Raw, hooks: BOTH_WAYS, inner: &[] },
                Table { layer: Layer::Mangle, hooks: BOTH_WAYS, inner: &[] },
                Table { layer: Layer::Filter, hooks: &[Hook::Input], inner: &[InnerChain::Hold] },
                Table { layer: Layer::Nat, hooks: BOTH_WAYS, inner: &[InnerChain::Kept] },
            ],
            Self::Host => &[Table { layer: Layer::Nat, hooks: &[Hook::Postrouting], inner: &[] }],
        }
    }
}

impl InnerChain {
    fn name(self) -> String {
        match self {
            Self::Hold => format!("{IPTABLES_PREFIX}HOLD"),
            Self::Kept => format!("{IPTABLES_PREFIX}KEPT"),
        }
    }
}

/// Our chain for a hook.
fn base(hook: Hook) -> String {
    format!("{IPTABLES_PREFIX}{}", builtin(hook))
}

/// The kernel's chain for a hook.
const fn builtin(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Output => "OUTPUT",
        Hook::Postrouting => "POSTROUTING",
    }
}

const fn table_name(layer: Layer) -> &'static str {
    match layer {
        Layer::Raw => "raw",
        Layer::Mangle => "mangle",
        Layer::Nat => "nat",
        Layer::Filter => "filter",
    }
}
