//! What istio-cni leaves in a network namespace, told apart from everybody else's rules by its exact shape.
//!
//! The kernel seam says what is there ([`Listing`]); [`recognise`] says what of it is istio-cni's ([`Remains`]), and
//! `lower` how it goes. A chain is istio-cni's by table, name, what *each* of its rules does, and who jumps to it.
//! Whatever only looks like it (a sidecar's chains, an operator's of the same name, one that somebody has added a rule
//! to) is named in [`Remains::left`] and never touched.

mod recognise;
#[cfg(test)]
mod tests;

pub use recognise::recognise;

use crate::ids::{Family, Mark};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// istio-cni's entry in a list of plugins, and its plugin's file.
pub const PLUGIN_TYPE: &str = "istio-cni";
/// istio-cni's sets of enrolled pods' addresses, on the host.
pub const PROBE_SETS: [&str; 2] = ["istio-inpod-probes-v4", "istio-inpod-probes-v6"];
/// The socket that istio-cni's plugin asks, from the root of the node: somebody answers there while istio-cni lives.
pub const PLUGIN_SOCKETS: [&str; 2] =
    ["run/istio-cni/pluginevent.sock", "var/run/istio-cni/pluginevent.sock"];

/// The kubeconfig of istio-cni's plugin, from the root of the node: its agent removes it when it is uninstalled.
pub const KUBECONFIGS: [&str; 2] =
    ["run/istio-cni/istio-cni-kubeconfig", "var/run/istio-cni/istio-cni-kubeconfig"];

/// In whose namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod's: what redirects its traffic.
    Pod,
    /// The host's: what gives the kubelet's probes their source.
    Host,
}

/// The packet filter of a namespace, as far as it can be istio-cni's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The generation of nf_tables that was listed; `None` when the kernel has none.
    pub generation: Option<u32>,
    /// The chains of every table that could be istio-cni's, with all of their rules.
    pub chains: Vec<Chain>,
    /// The ipsets that are there under one of [`PROBE_SETS`]' names.
    pub ipsets: BTreeSet<String>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Whether a hook of the kernel leads to it.
    pub base: bool,
    /// Whether packets that reach its end pass.
    pub passes: bool,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A table of either packet filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// nf_tables: family and name. iptables' nft variant has tables here too.
    Nft(NftFamily, String),
    /// ip_tables and ip6_tables, which legacy iptables uses.
    Legacy(Family, String),
}

/// The families of nf_tables in which istio-cni has tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NftFamily {
    /// `ip`
    Ip,
    /// `ip6`
    Ip6,
    /// `inet`
    Inet,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(pub u64);

/// A rule as far as it tells whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its handle in nf_tables; 0 in ip_tables.
    pub id: RuleId,
    /// Whether it is for every packet.
    pub bare: bool,
    /// What it does.
    pub does: Does,
}

/// What a rule does to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// `-j ACCEPT`
    Accept,
    /// `-j RETURN`
    Return,
    /// `-j` another chain, or `-g`.
    Jump(String),
    /// `-j REDIRECT --to-ports`, one port.
    Redirect(u16),
    /// `-j CONNMARK --set-xmark`
    SetConnmark(Mark),
    /// `-j CONNMARK --restore-mark`, all bits
    RestoreMark,
    /// `-j CT --zone`, and nothing else
    CtZone(u16),
    /// `-j SNAT`
    Snat,
    /// Anything else.
    Else,
}

/// What istio-cni has left, and how to find each piece of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The generation in which the handles below are right.
    pub generation: Option<u32>,
    /// Rules in others' chains that jump to its chains.
    pub jumps: Vec<(Table, String, RuleId)>,
    /// Its chains, in nf_tables.
    pub chains: Vec<(Table, String)>,
    /// Tables of iptables' nft variant in which nothing is left then but the kernel's own chains, and those chains.
    pub emptied: Vec<(Table, Vec<String>)>,
    /// Whole tables of its own (`nativeNftables`).
    pub tables: Vec<Table>,
    /// Its chains in ip_tables, by table.
    pub legacy: BTreeMap<(Family, String), BTreeSet<String>>,
    /// Its ipsets.
    pub ipsets: BTreeSet<String>,
    /// What looks like its, and is not, in words.
    pub left: Vec<String>,
}

impl Remains {
    /// Whether there is nothing of istio-cni's.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.tables.is_empty() && self.legacy.is_empty() && self.ipsets.is_empty()
    }

    /// Whether something of it is in nf_tables.
    #[must_use]
    pub fn in_nftables(&self) -> bool {
        !self.chains.is_empty() || !self.tables.is_empty()
    }
}

/// For operators: `chains ISTIO_OUTPUT, ISTIO_PRERT in ip mangle, ip nat; …`
impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let legacy = self.legacy.iter().flat_map(|((family, table), chains)| {
            chains.iter().map(move |chain| (Table::Legacy(*family, table.clone()), chain.clone()))
        });
        let mut chains = BTreeMap::<String, BTreeSet<String>>::new();
        for (table, chain) in self.chains.iter().cloned().chain(legacy) {
            chains.entry(chain).or_default().insert(table.to_string());
        }
        let mut parts: Vec<String> = chains
            .into_iter()
            .map(|(chain, tables)| {
                format!("{chain} in {}", tables.into_iter().collect::<Vec<_>>().join(", "))
            })
            .collect();
        parts.extend(self.tables.iter().map(|table| format!("table {table}")));
        parts.extend(self.ipsets.iter().map(|set| format!("ipset {set}")));
        f.write_str(&parts.join("; "))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nft(family, name) => write!(f, "{family} {name}"),
            Self::Legacy(Family::V4, name) => write!(f, "legacy {name}"),
            Self::Legacy(Family::V6, name) => write!(f, "legacy ip6 {name}"),
        }
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}
