//! kube-proxy on a node, as a service of the node instead of a pod: it is there before the first pod.

use super::enter::Place;
use super::write_config;
use crate::cluster::address;
use crate::cluster::pki::{Authority, Subject};
use anyhow::Result;
use serde_json::json;

const CONFIG: &str = "/var/lib/kube-proxy/config.yaml";

/// Issues its certificate and writes its configuration.
///
/// # Errors
/// When a file cannot be written.
pub fn configure(place: &Place, authority: &Authority, node: &str) -> Result<()> {
    let client = Subject::client("system:kube-proxy", "system:node-proxier");
    authority.kubeconfig(&place.disk("var/lib/kube-proxy"), "kube-proxy", &client)?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kube-proxy.kubeconfig"},
        "mode": "nftables",
        "hostnameOverride": node,
        "clusterCIDR": address::POD_CIDRS,
        // The table's size is the machine's, and read-only in a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    });
    write_config(place, CONFIG, &config)
}

/// The program and its arguments.
#[must_use]
pub fn program() -> [String; 2] {
    ["kube-proxy".into(), format!("--config={CONFIG}")]
}
