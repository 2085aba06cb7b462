//! Values that never change: they belong to ztunnel, istiod or the CNI spec, or name what we own in a kernel.
//!
//! Changing one of ours (`NFT_TABLE`, the `SLUICE_*` chains) means that an upgrade no longer finds, and so no longer
//! removes, what the version before installed.

use crate::ids::Mark;
use std::net::{Ipv4Addr, Ipv6Addr};

/// ztunnel's listener for traffic that leaves the pod.
pub const PORT_OUTBOUND: u16 = 15001;
/// ztunnel's listener for plaintext that enters the pod.
pub const PORT_INBOUND: u16 = 15006;
/// ztunnel's HBONE listener (mTLS). Reached directly and never redirected: ztunnel compares its local address
/// with the CONNECT authority.
pub const PORT_HBONE: u16 = 15008;
/// ztunnel's DNS proxy, TCP and UDP.
pub const PORT_DNS_PROXY: u16 = 15053;
/// What DNS capture looks for.
pub const PORT_DNS: u16 = 53;

/// The mark on every socket that ztunnel opens in a pod (its `PACKET_MARK`).
pub const MARK_ZTUNNEL: Mark = Mark { value: 0x539, mask: 0xfff };
/// The connection mark "came through ztunnel", which turns the application's replies back to `lo`.
pub const MARK_PROXIED: Mark = Mark { value: 0x111, mask: 0xfff };
/// The routing table that delivers proxied replies locally.
pub const ROUTE_TABLE: u32 = 100;
/// The priority of the `fwmark` rule that points at [`ROUTE_TABLE`].
pub const RULE_PRIORITY: u32 = 32764;
/// The conntrack zone of ztunnel's own DNS queries, so that they do not collide with the application's.
pub const DNS_CT_ZONE: u16 = 1;

/// The source that host probes are given by the strategy `snat`, IPv4.
pub const PROBE_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// The source that host probes are given by the strategy `snat`, IPv6.
pub const PROBE_SOURCE_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// Our one nftables table, family `inet`, in each enrolled pod and, for the strategy `snat`, in the host.
pub const NFT_TABLE: &str = "sluice";
/// The prefix of every iptables chain we own.
pub const IPTABLES_PREFIX: &str = "SLUICE_";

/// The label, on a namespace or a pod, that decides membership.
pub const LABEL_DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Its value for "in the mesh".
pub const MODE_AMBIENT: &str = "ambient";
/// Its value, on a pod, for "not this one".
pub const MODE_NONE: &str = "none";
/// The annotation that istiod reads: `enabled` or `pending`.
pub const ANNOTATION_REDIRECTION: &str = "ambient.istio.io/redirection";
/// Pod annotation: do not capture plaintext that comes in.
pub const ANNOTATION_BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Pod annotation: capture DNS, or do not, whatever the node's default.
pub const ANNOTATION_DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Pod annotation: comma-separated interfaces whose incoming traffic counts as the pod's outbound.
pub const ANNOTATION_REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// Pod annotation whose presence says that a sidecar was injected: such a pod is never ambient.
pub const ANNOTATION_SIDECAR: &str = "sidecar.istio.io/status";

/// Where the agent listens for ztunnel.
pub const ZDS_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
/// Where the agent listens for the plugin.
pub const AGENT_SOCKET: &str = "/run/sluice/agent.sock";
/// Where the agent listens for `sluicectl`.
pub const ADMIN_SOCKET: &str = "/run/sluice/admin.sock";
/// What lives for one boot: the journal, one file a pod.
pub const RUN_DIR: &str = "/run/sluice";
/// What survives boots: which namespaces are in the mesh.
pub const STATE_DIR: &str = "/var/lib/sluice";
/// The membership file's name within the state directory.
pub const MEMBERSHIP_FILE: &str = "membership.json";
