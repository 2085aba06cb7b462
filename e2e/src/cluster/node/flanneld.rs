//! flanneld on a node. `ci/cluster cni-flannel` builds it.

use super::Node;
use super::enter::Place;
use crate::cluster::address;
use crate::cluster::pki::{Authority, Subject};
use crate::cluster::programs::Programs;
use crate::lab::write_whole;
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// What it writes when it has set the node up; the plugin reads it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// The user that it is for the API server.
const USER: &str = "flannel";
const DIR: &str = "var/lib/flannel";
/// Below the directory of the upstream programs, which is on every node's PATH.
const PROGRAM: &str = "primaries/flanneld";

/// How packets get to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// In VXLAN: pods have a smaller MTU.
    Vxlan,
    /// By routes.
    HostGw,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// Issues its certificate, writes its configuration, and puts the plugin that goes with it into the node's directory.
///
/// # Errors
/// When it is not built, or a file cannot be written.
pub fn configure(place: &Place, authority: &Authority, programs: &Programs, backend: Backend) -> Result<()> {
    for program in [PROGRAM, "primaries/flannel"] {
        let path = programs.path(program);
        ensure!(path.is_file(), "{} is not there: `ci/cluster cni-flannel` builds it", path.display());
    }
    std::fs::copy(programs.path("primaries/flannel"), place.disk("opt/cni/bin/flannel"))
        .context("copy flannel's plugin")?;
    authority.kubeconfig(&place.disk(DIR), "flannel", &Subject::client(USER, ""))?;
    let (v4, v6) = address::POD_CIDRS.split_once(',').context("two ranges of pods")?;
    let network = json!({"Network": v4, "IPv6Network": v6, "EnableIPv4": true, "EnableIPv6": true,
                         "EnableNFTables": true, "Backend": {"Type": backend.name()}});
    write_whole(&place.disk(DIR).join("net-conf.json"), &network.to_string())
}

/// The program and its arguments.
#[must_use]
pub fn program(node: &str) -> Vec<String> {
    vec![
        "env".into(),
        format!("NODE_NAME={node}"),
        format!("/usr/local/bin/{PROGRAM}"),
        "--kube-subnet-mgr".into(),
        format!("--kubeconfig-file=/{DIR}/flannel.kubeconfig"),
        format!("--net-config-path=/{DIR}/net-conf.json"),
        format!("--subnet-file={SUBNET_FILE}"),
        "--iface=eth0".into(),
        "--ip-masq".into(),
    ]
}

/// Fails unless it has written what the plugin reads.
///
/// # Errors
/// When it has not.
pub fn is_ready(node: &Node) -> Result<()> {
    ensure!(node.path(SUBNET_FILE)?.is_file(), "there is no {SUBNET_FILE}");
    Ok(())
}

/// What it may ask of the API server.
#[must_use]
pub fn rights() -> String {
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]);
    let api = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRole", "metadata": {"name": USER},
                      "rules": rules});
    let binding = json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": USER},
                         "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": USER},
                         "subjects": [{"apiGroup": api, "kind": "User", "name": USER}]});
    json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string()
}
