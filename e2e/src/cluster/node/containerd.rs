//! containerd on a node.

use super::enter::Place;
use crate::cluster::programs::Programs;
use crate::lab::write_whole;
use anyhow::Result;

/// Its configuration, on the node.
pub const CONFIG: &str = "/var/lib/containerd-config.toml";
/// Where it listens, on the node.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of a pod's first container.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// Writes its configuration.
///
/// # Errors
/// When the file cannot be written.
pub fn configure(place: &Place, programs: &Programs) -> Result<()> {
    write_whole(&place.disk(CONFIG.trim_start_matches('/')), &config(&programs.runc().display().to_string()))
}

/// Upstream's defaults, but for the pause image, and what a machine in a machine must not do: lower its oom score, which
/// takes CAP_SYS_RESOURCE and would fail every container. The cgroup driver must be the kubelet's.
fn config(runc: &str) -> String {
    format!(
        r#"version = 3

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#
    )
}
