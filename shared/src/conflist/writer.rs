//! Who may be writing the primary's file. inotify does not say, so it is guessed by what the file says and how the
//! directory looks.

use super::directory::{Directory, is_parked};

/// Plugin types and who writes their configuration.
const WRITERS: [(&str, &str); 16] = [
    ("cilium-cni", "cilium-agent"),
    ("aws-cni", "aws-node"),
    ("azure-vnet", "azure-cns"),
    ("azure-ipam", "azure-cns"),
    ("calico", "calico-node (install-cni)"),
    ("flannel", "flannel's install-conf"),
    ("antrea", "antrea-agent"),
    ("ovn-k8s-cni-overlay", "ovnkube-node"),
    ("kube-ovn", "kube-ovn-cni"),
    ("weave-net", "weave"),
    ("cni-kindnet", "kindnet"),
    ("gke", "netd"),
    ("ptp", "kindnet or netd"),
    ("bridge", "kube-router, minikube or containerd"),
    ("linkerd-cni", "linkerd-cni"),
    ("kuma-cni", "kuma-cni"),
];

/// Who may have written a file whose plugins have these types, in words; `None` when there is nothing to go by.
#[must_use]
pub fn suspect(directory: &Directory, types: &[String]) -> Option<String> {
    let parked = directory.files.iter().find(|file| is_parked(&file.name)).map(|file| file.name.as_str());
    match parked {
        Some(name) if name.ends_with(".cilium_bak") => {
            return Some(format!(
                "cilium-agent with cni.exclusive=true (there is {name}); set cni.exclusive=false"
            ));
        }
        Some(name) if name.ends_with(".mk_disabled") => return Some(format!("minikube (there is {name})")),
        _ => {}
    }
    let known = |kind: &String| WRITERS.iter().find(|(known, _)| known == kind);
    let (kind, writer) = types.iter().find_map(known)?;
    Some(format!("{writer}, going by the plugin {kind}"))
}
