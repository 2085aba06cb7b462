//! The kubelet of a node.

use super::enter::Place;
use super::{containerd, write_config};
use crate::cluster::pki::{Authority, Subject};
use crate::cluster::{Options, address};
use anyhow::Result;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where it says that it is healthy, on the node's loopback.
pub const HEALTH_PORT: u16 = 10248;

const DIR: &str = "/var/lib/kubelet";
const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// Issues its certificates and writes its configuration.
///
/// # Errors
/// When a file cannot be written.
pub fn configure(
    place: &Place,
    authority: &Authority,
    node: &str,
    addresses: [IpAddr; 2],
    options: &Options,
) -> Result<()> {
    let pki = place.disk("var/lib/kubelet/pki");
    let user = format!("system:node:{node}");
    authority.kubeconfig(&pki, "kubelet", &Subject::client(&user, "system:nodes"))?;
    let server =
        Subject { common_name: &user, organization: "system:nodes", names: &[node], addresses: &addresses };
    authority.issue(&pki, "server", &server)?;
    write_config(place, CONFIG, &config(options))
}

/// The program and its arguments.
#[must_use]
pub fn program(node: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<String> {
    vec![
        "kubelet".into(),
        format!("--config={CONFIG}"),
        format!("--kubeconfig={DIR}/pki/kubelet.kubeconfig"),
        format!("--hostname-override={node}"),
        format!("--node-ip={v4},{v6}"),
    ]
}

/// Upstream's defaults, but for the addresses of things, what a machine in a machine needs, and how many pods.
fn config(options: &Options) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                           "x509": {"clientCAFile": format!("{DIR}/pki/ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{DIR}/pki/server.crt"),
        "tlsPrivateKeyFile": format!("{DIR}/pki/server.key"),
        "containerRuntimeEndpoint": format!("unix://{}", containerd::SOCKET),
        "clusterDomain": "cluster.local",
        "clusterDNS": [address::CLUSTER_DNS],
        "resolvConf": "/etc/resolv.conf",
        "healthzPort": HEALTH_PORT,
        "maxPods": options.max_pods,
        // What containers say is evidence: it is kept in one file, whole.
        "containerLogMaxSize": "1Gi",
        "cgroupDriver": "cgroupfs",
        // From 1.35 on the kubelet refuses cgroup v1 by default.
        "failCgroupV1": false,
        "failSwapOn": false,
        // Both take CAP_SYS_RESOURCE, which not every machine gives.
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        // The machine's disk is not the cluster's to clean.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        // Below a directory of the node's own; the default is on the machine's file system.
        "volumePluginDir": format!("{DIR}/volume-plugins"),
        // Pods come in bursts here.
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 100,
        "eventBurst": 200,
    })
}
