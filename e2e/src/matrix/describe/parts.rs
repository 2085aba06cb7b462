//! What a description is made of.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Who attaches the pods.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Plugins {
    /// The primary's own programs.
    Real,
    /// This lab, in the first plugin's place; the rest of the chain is real.
    Emulated,
}

/// The network configuration that a primary leaves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Where.
    #[serde(default = "usual_directory")]
    pub directory: String,
    /// The file's name.
    pub file: String,
    /// Its mode, octal.
    #[serde(default = "usual_mode")]
    pub mode: String,
    /// Its text, exactly: a list, or one plugin's configuration.
    pub text: String,
}

/// A pod's link.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Link {
    /// The name of the host's end.
    #[serde(default)]
    pub name: String,
    /// Its MAC address; the kernel's choice when empty.
    #[serde(default)]
    pub mac: String,
    /// The bridge that it is a port of; none when empty.
    #[serde(default)]
    pub bridge: String,
    /// Whether it is in the router's namespace and not in the node's.
    #[serde(default)]
    pub at_router: bool,
}

/// A second network of pods, as Multus attaches it: an ADD of its own, without our plugin in its chain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Secondary {
    /// Its network configuration list.
    pub text: String,
    /// The fabric's address on it.
    pub peer: std::net::IpAddr,
}

/// A pod's addresses, by the pod's number: `10.244.1.{n}/32`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Addresses {
    /// The first pod's number.
    pub first: u8,
    /// IPv4, with the prefix length of the CNI result.
    #[serde(default)]
    pub v4: Option<String>,
    /// IPv6, with the prefix length of the CNI result.
    #[serde(default)]
    pub v6: Option<String>,
    /// A family in which pods reach out, though the CNI result and the API server name no address of it.
    #[serde(default)]
    pub only_out: Option<Families>,
}

/// What is set up in one network namespace.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Side {
    /// `ip link add …`
    pub links: Vec<String>,
    /// `ip link set …`
    pub set: Vec<String>,
    /// Below `/proc/sys/net`.
    pub sysctls: BTreeMap<String, String>,
    /// `ip addr add …`
    pub addresses: Vec<String>,
    /// `ip route add …`
    pub routes: Vec<String>,
    /// `ip neigh replace …`
    pub neighbours: Vec<String>,
    /// `ip rule add …`
    pub rules: Vec<String>,
    /// `ip rule del …`, after the rules are there.
    pub rules_taken_away: Vec<String>,
    /// For `nft -f`.
    pub nft: String,
    /// Programs with their arguments.
    pub run: Vec<Vec<String>>,
    /// What undoes them at DEL. Links, and what goes with them, and rules are undone without being asked.
    pub undo: Vec<Vec<String>>,
}

/// What is varied: the first of each is the base.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Axes {
    /// Families of the pods.
    pub families: Vec<Families>,
    /// Who writes rules.
    pub backends: Vec<String>,
    /// Reverse path filters, on the node and in the pod; the primary's own in the base.
    pub rp_filter: Vec<u8>,
    /// Probe strategies.
    pub probes: Vec<String>,
    /// `net.bridge.bridge-nf-call-iptables` and `-ip6tables`; the first is the base.
    pub bridge_nf_call: Vec<u8>,
    /// What else stands in the way.
    pub faults: Vec<Fault>,
    /// Whether every two values of two axes come together in some way; faults come with doors only.
    pub pairs: bool,
}

/// Which families a pod has.
#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Families {
    /// Both, IPv4 first.
    Dual,
    /// IPv4, with IPv6 there and without an address.
    V4,
    /// IPv6 only.
    V6,
    /// IPv4, and `disable_ipv6` in the pod, on `lo` too.
    V6Disabled,
}

/// A datapath or a node that does something to packets or rules.
#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The datapath drops what pods send to link-local addresses (Cilium's BPF host routing).
    DropsLinkLocal,
    /// Pods' answers to link-local addresses pass conntrack by (Calico's eBPF dataplane before 3.29).
    BypassesConntrack,
    /// A policy at the pod's link lets in the node's own address only, and sees addresses after translation.
    AdmitsNodeOnly,
    /// The host's namespace refuses netfilter rules with EPERM (AKS's azure-block-iptables).
    RefusesRules,
}

/// What cannot work, whoever tries.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limit {
    /// With which values of the axes; all of them when empty.
    #[serde(default, rename = "where")]
    pub at: BTreeMap<String, String>,
    /// The checks that fail then.
    pub checks: Vec<String>,
    /// Why no design could change it.
    pub because: String,
    /// What the user should set.
    #[serde(default)]
    pub instead: String,
}

/// What was not run at all, and why.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absence {
    /// What.
    pub what: String,
    /// Why it cannot be run here.
    pub why: String,
    /// What was run in its place, if anything.
    pub instead: String,
}

impl Default for Axes {
    fn default() -> Self {
        Self {
            families: vec![Families::Dual, Families::V4, Families::V6, Families::V6Disabled],
            backends: vec!["nftables".into(), "iptables".into()],
            rp_filter: vec![0, 1, 2],
            probes: ["snat", "cookie", "source", "none", "auto"].map(String::from).to_vec(),
            bridge_nf_call: Vec::new(),
            faults: Vec::new(),
            pairs: false,
        }
    }
}

impl Families {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::V6Disabled => "v6-disabled",
        }
    }

    /// Whether pods have IPv4.
    #[must_use]
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether pods have IPv6.
    #[must_use]
    pub fn v6(self) -> bool {
        matches!(self, Self::Dual | Self::V6)
    }
}

impl Fault {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DropsLinkLocal => "drops-link-local",
            Self::BypassesConntrack => "bypasses-conntrack",
            Self::AdmitsNodeOnly => "admits-node-only",
            Self::RefusesRules => "refuses-rules",
        }
    }
}

fn usual_directory() -> String {
    "/etc/cni/net.d".into()
}

fn usual_mode() -> String {
    "644".into()
}
