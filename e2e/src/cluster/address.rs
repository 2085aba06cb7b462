//! Where everything is.
//!
//! ```text
//!   control plane 172.30.0.1 ── br0 172.30.0.0/24, fd00:172:30::/64 ─┬─ node1 .11 ── pods 10.77.1.0/24, fd00:10:77:1::/64
//!   services 10.96.0.0/16, fd00:10:96::/112                          └─ node2 .12 ── pods 10.77.2.0/24, fd00:10:77:2::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The control plane's host, IPv4. It is also the nodes' way out, which leads nowhere.
pub const CONTROL_PLANE_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The control plane's host, IPv6.
pub const CONTROL_PLANE_V6: Ipv6Addr = fabric_v6(1);
/// The API server.
pub const API_URL: &str = "https://172.30.0.1:6443";
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// The pods of all nodes.
pub const POD_CIDRS: &str = "10.77.0.0/16,fd00:10:77::/48";
/// The services.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The service `kubernetes` in the namespace `default`.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where pods would ask for names. Nobody answers: the cluster has no DNS of its own.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const fn fabric_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, host)
}

/// A node's addresses on the fabric; `index` begins with 1.
#[must_use]
pub fn node(index: u8) -> (Ipv4Addr, Ipv6Addr) {
    let host = 10 + index;
    // Read as written: .11 and ::11.
    (Ipv4Addr::new(172, 30, 0, host), fabric_v6(0x10 + u16::from(index)))
}

/// A node's pods, IPv4 and IPv6, as CIDRs.
#[must_use]
pub fn pods(index: u8) -> (String, String) {
    (format!("10.77.{index}.0/24"), format!("fd00:10:77:{index}::/64"))
}

/// The addresses at which the API server is called.
#[must_use]
pub fn of_api_server() -> [IpAddr; 4] {
    [CONTROL_PLANE_V4.into(), CONTROL_PLANE_V6.into(), KUBERNETES_SERVICE.into(), Ipv4Addr::LOCALHOST.into()]
}
