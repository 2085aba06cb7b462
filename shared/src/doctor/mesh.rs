//! Another mesh on the same node: in the chain, by its DaemonSet, by its sockets, by its plugin's file.

use super::catalogue::SECOND_MESH;
use super::facts::{CniFacts, Facts};
use super::{Diagnosis, Finding, Severity};
use crate::conflist::is_parked;
use crate::istio;

/// The plugins of other meshes, and how their DaemonSets are called.
const MESHES: [(&str, &str, &str); 5] = [
    (istio::PLUGIN_TYPE, "istio-cni-node", "istio-cni"),
    ("linkerd-cni", "linkerd-cni", "Linkerd"),
    ("kuma-cni", "kuma-cni-node", "Kuma"),
    ("consul-cni", "consul-cni", "Consul"),
    ("osm-cni", "osm-cni", "Open Service Mesh"),
];

/// Those plugins.
pub const MESH_PLUGINS: [&str; MESHES.len()] =
    [MESHES[0].0, MESHES[1].0, MESHES[2].0, MESHES[3].0, MESHES[4].0];

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    let cni = diagnosis.look("the runtime's CNI configuration", &[SECOND_MESH], facts.cni.as_ref());
    let traces = diagnosis.peek("sockets of other meshes", &[SECOND_MESH], facts.traces.as_ref());
    let sets = facts.of_cluster(|cluster| &cluster.daemon_sets);
    let sets = diagnosis.peek("DaemonSets of other meshes", &[SECOND_MESH], sets);
    for (plugin, daemon_set, name) in MESHES {
        let mut seen: Vec<(String, String)> = Vec::new();
        let chained = cni.map(|cni| in_chain(cni, plugin)).unwrap_or_default();
        let set = sets.and_then(|sets| sets.iter().find(|set| set.name == daemon_set));
        if let Some(set) = set {
            seen.push((format!("daemonset {}/{}", set.namespace, set.name), "is there".to_owned()));
        }
        let lives = traces.is_some_and(|traces| traces.iter().any(|trace| trace.contains(plugin)));
        for trace in traces.into_iter().flatten().filter(|trace| trace.contains(plugin)) {
            seen.push((trace.clone(), "is there".to_owned()));
        }
        let file =
            facts.plugin.as_ref().ok().filter(|found| found.others.iter().any(|other| other == plugin));
        if let Some(found) = file {
            seen.push((format!("{}/{plugin}", found.directory), "its plugin's file".to_owned()));
        }
        if chained.is_empty() && seen.is_empty() {
            continue;
        }
        let at_work = !chained.is_empty() || set.is_some() || lives;
        let finding = named(plugin, name, at_work);
        let finding = chained.iter().fold(finding, |finding, (place, text)| {
            finding.seen_in(place.clone(), text, &format!("\"{plugin}\""))
        });
        diagnosis.find(seen.into_iter().fold(finding, |finding, (place, value)| finding.seen(place, value)));
    }
}

fn named(plugin: &str, name: &str, at_work: bool) -> Finding {
    if !at_work {
        let fix = "Nothing: without an entry in the chain nobody runs it";
        return Finding::new(
            SECOND_MESH,
            Severity::Note,
            format!("{name} was here and has left its plugin's file"),
            fix,
        );
    }
    let what = format!("{name} is at work on this node");
    if plugin == istio::PLUGIN_TYPE {
        let fix = "Sluice takes its pods over without a restart when it goes: install Sluice beside it, then remove istio-cni's \
                   DaemonSet (docs/install.md, \"Migrating from istio-cni\"). For sidecars only, keep it with \
                   ambient.enabled=false";
        return Finding::new(SECOND_MESH, Severity::Warning, what, fix);
    }
    let fix = format!(
        "Keep the namespaces apart: none with both {name}'s injection and istio.io/dataplane-mode=ambient (excludeNamespaces in \
         Sluice's chart), or remove {name} from this node"
    );
    Finding::new(SECOND_MESH, Severity::Warning, what, fix)
}

/// The files in force that have this plugin in them, with their text.
fn in_chain<'a>(cni: &'a CniFacts, plugin: &str) -> Vec<(String, &'a str)> {
    let files = cni.directory.files.iter().filter(|file| !is_parked(&file.name));
    let texts =
        files.filter_map(|file| Some((format!("{}/{}", cni.path, file.name), file.text.as_deref().ok()?)));
    texts.filter(|(_, text)| types(text).iter().any(|kind| kind == plugin)).collect()
}

fn types(text: &str) -> Vec<String> {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return Vec::new() };
    let plugins = value.get("plugins").and_then(|plugins| plugins.as_array()).cloned();
    let all = plugins.unwrap_or_else(|| vec![value]);
    all.iter().filter_map(|plugin| Some(plugin.get("type")?.as_str()?.to_owned())).collect()
}
