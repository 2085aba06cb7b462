//! The manifests that put Sluice, and the stand-in for ztunnel, onto the cluster: those of this repository, as they are.

use crate::cluster::programs::target_dir;
use crate::cluster::watch::Seen;
use crate::cluster::watch::seen::Pod;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// The namespace of the agent's DaemonSet, and its name.
pub const AGENT: (&str, &str) = ("sluice-system", "sluice-agent");
/// The namespace of ztunnel's DaemonSet, and its name.
pub const ZTUNNEL: (&str, &str) = ("istio-system", "ztunnel");
/// Where the stand-in for ztunnel reads what istiod would tell it, on each node.
pub const WORKLOADS_FILE: &str = "/etc/ztunnel/workloads.yaml";

/// Sluice: everything in `install/manifests`.
///
/// # Errors
/// When it cannot be read.
pub fn sluice() -> Result<Vec<String>> {
    all("install/manifests")
}

/// What the tests add: everything in `e2e/cluster/manifests`.
///
/// # Errors
/// When it cannot be read.
pub fn ztunnel() -> Result<Vec<String>> {
    all("e2e/cluster/manifests")
}

/// The YAML files of a directory of the source tree, by name.
fn all(dir: &str) -> Result<Vec<String>> {
    let tree =
        target_dir()?.parent().map(PathBuf::from).context("a build directory without a source tree")?;
    let dir = tree.join(dir);
    let entries = std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    files.iter().map(read).collect()
}

/// The pods of a DaemonSet, those on their way out included.
#[must_use]
pub fn of_daemon_set(seen: &Seen, (namespace, name): (&str, &str)) -> Vec<Pod> {
    let prefix = format!("{name}-");
    let pods = seen.pods.values().filter(|pod| pod.namespace == namespace && pod.name.starts_with(&prefix));
    pods.cloned().collect()
}

/// The pod of a DaemonSet on a node, the one that stays if there are two.
///
/// # Errors
/// When there is none.
pub fn on_node(seen: &Seen, daemon_set: (&str, &str), node: &str) -> Result<Pod> {
    let mut here = of_daemon_set(seen, daemon_set);
    here.retain(|pod| pod.node == node && !pod.deleting);
    here.pop().with_context(|| format!("{} has no pod on {node}", daemon_set.1))
}
