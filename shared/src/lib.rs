//! The pure core of Sluice: what is said, decided and planned, with no I/O, async, clock or unsafe code.
//!
//! | room | what it holds |
//! |---|---|
//! | [`contract`] | the numbers, names and paths that belong to ztunnel, istiod and the CNI spec, and ours |
//! | [`ids`] | small checked values: pod uid, netns id, interface name, mark |
//! | [`cni`] | the CNI spec as types: netconf, CNI_ARGS, results, errors |
//! | [`conflist`] | our entry in the primary CNI's list as text, and which file it goes into, how and when |
//! | [`istio`] | what istio-cni leaves in a network namespace, told apart from everybody else's |
//! | [`install`] | what installer, agent and plugin tell each other by files: state, intent, lease |
//! | [`doctor`] | what on a node will get in the mesh's way, judged from gathered facts |
//! | [`placement`] | whether a DaemonSet keeps its pod on a node |
//! | [`wire`] | the messages on our own sockets: plugin to agent, sluicectl to agent |
//! | [`membership`] | the file that lets the plugin decide with no agent to ask |
//! | [`facts`], [`selector`], [`enroll`] | who is in the mesh, and why |
//! | [`plan`] | what is captured, bypassed, marked and routed for one pod, and the verdict for any packet |
//! | [`netfilter`] | the plan as rules, neutral between nftables and iptables |
//! | [`nft`], [`iptables`] | the rules as nf_tables netlink bytes, and as `iptables-restore` text |
//! | [`op`], [`lower`] | what the kernel seam is asked to do, in which order |
//! | [`host`] | the host's own table, for the probe strategy `snat` |
//! | [`cookie`] | the option and the program, for the probe strategy `cookie` |
//! | [`selftest`] | which probe strategy a node uses, by what was tried |
//!
//! It imports nothing of ours; everything of ours may import it.

pub mod admin;
pub mod cni;
pub mod conflist;
pub mod contract;
pub mod cookie;
pub mod doctor;
pub mod enroll;
pub mod facts;
pub mod host;
pub mod ids;
pub mod install;
pub mod iptables;
pub mod istio;
pub mod lower;
pub mod membership;
pub mod netfilter;
pub mod nft;
pub mod op;
pub mod placement;
pub mod plan;
pub mod selector;
pub mod selftest;
pub mod wire;
