//! The manifests that put Sluice, and the stand-in for ztunnel, onto the cluster: those of this repository, as they are.

use crate::cluster::programs::target_dir;
use crate::cluster::watch::Seen;
use crate::cluster::watch::seen::Pod;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT, MODE_NONE};
use std::path::PathBuf;

/// The namespace of the agent's DaemonSet, and its name.
pub const AGENT: (&str, &str) = ("sluice-system", "sluice-agent");
/// The namespace of ztunnel's DaemonSet, and its name.
pub const ZTUNNEL: (&str, &str) = ("istio-system", "ztunnel");
/// Where the stand-in for ztunnel reads what istiod would tell it, on each node.
pub const WORKLOADS_FILE: &str = "/etc/ztunnel/workloads.yaml";

/// A label that the tests' configuration of the agent takes for the mesh, beside Istio's.
pub const SELECTOR: (&str, &str) = ("mesh.example.org/take", "yes");

/// Sluice: everything in `install/manifests`, with one more selector in the agent's configuration.
///
/// # Errors
/// When it cannot be read.
pub fn sluice() -> Result<Vec<String>> {
    let mut manifests = all("install/manifests")?;
    let config = manifests.iter_mut().find(|manifest| manifest.contains("kind: ConfigMap"));
    let config = config.context("install/manifests has no ConfigMap")?;
    *config = with_selector(config, "")?;
    Ok(manifests)
}

/// The agent's ConfigMap of [`sluice`], with more keys: `probes: cookie`.
///
/// # Errors
/// When it cannot be read.
pub fn config(more: &str) -> Result<String> {
    let manifests = all("install/manifests")?;
    let config = manifests.iter().find(|manifest| manifest.contains("kind: ConfigMap"));
    with_selector(config.context("install/manifests has no ConfigMap")?, more)
}

/// The ConfigMap with Istio's selectors spelled out, and [`SELECTOR`] after them, and these keys.
fn with_selector(config_map: &str, more: &str) -> Result<String> {
    let ambient = json!({"matchLabels": {LABEL_DATAPLANE_MODE: MODE_AMBIENT}});
    let not_opted_out = json!({"matchExpressions": [{"key": LABEL_DATAPLANE_MODE, "operator": "NotIn", "values": [MODE_NONE]}]});
    let selectors = json!([
        {"podSelector": ambient},
        {"namespaceSelector": ambient, "podSelector": not_opted_out},
        {"podSelector": {"matchLabels": {SELECTOR.0: SELECTOR.1}}},
    ]);
    let mut config_map: Value = serde_norway::from_str(config_map).context("read the ConfigMap")?;
    let file = config_map.pointer_mut("/data/agent.yaml").context("the ConfigMap has no agent.yaml")?;
    let text = file.as_str().context("agent.yaml is no text")?;
    *file = json!(format!("{text}\nenablementSelectors: {selectors}\n{more}\n"));
    Ok(config_map.to_string())
}

/// The policies that tie the agent's writes to its node: everything in `install/manifests/admission`.
///
/// # Errors
/// When it cannot be read.
pub fn admission() -> Result<Vec<String>> {
    all("install/manifests/admission")
}

/// The chart's directory.
///
/// # Errors
/// When this program runs in no build directory.
pub fn chart() -> Result<PathBuf> {
    Ok(tree()?.join("install/chart"))
}

/// What the tests add: everything in `e2e/cluster/manifests`.
///
/// # Errors
/// When it cannot be read.
pub fn ztunnel() -> Result<Vec<String>> {
    all("e2e/cluster/manifests")
}

fn tree() -> Result<PathBuf> {
    target_dir()?.parent().map(PathBuf::from).context("a build directory without a source tree")
}

/// The YAML files of a directory of the source tree, by name.
fn all(dir: &str) -> Result<Vec<String>> {
    let dir = tree()?.join(dir);
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
pub fn of_daemon_set(seen: &Seen, daemon_set: (&str, &str)) -> Vec<Pod> {
    seen.pods.values().filter(|pod| is_of(pod, daemon_set)).cloned().collect()
}

/// Whether a pod is of a DaemonSet.
#[must_use]
pub fn is_of(pod: &Pod, (namespace, name): (&str, &str)) -> bool {
    let number = pod.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    pod.namespace == namespace && number.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_configuration_keeps_what_it_says_and_gets_one_selector_more() {
        let manifests = sluice().unwrap();
        let config = manifests.iter().find(|manifest| manifest.contains("ConfigMap")).unwrap();
        let config: Value = serde_json::from_str(config).unwrap();
        let text = config["data"]["agent.yaml"].as_str().unwrap();
        let keys: BTreeMap<String, Value> = serde_norway::from_str(text).unwrap();
        assert_eq!(keys["source"], "kubernetes");
        assert_eq!(keys["enablementSelectors"].as_array().unwrap().len(), 3);
        let more: Value = serde_json::from_str(&super::config("probes: cookie").unwrap()).unwrap();
        let more = more["data"]["agent.yaml"].as_str().unwrap();
        let more: BTreeMap<String, Value> = serde_norway::from_str(more).unwrap();
        assert_eq!((&more["probes"], more.len()), (&json!("cookie"), keys.len() + 1));
    }
}
