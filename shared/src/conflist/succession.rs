//! Ours in the place of istio-cni's: in the primary's list both happen in one write, so that a pod that starts at any
//! moment meets the one or the other. Files of istio-cni's own go last, when ours is in the chain that they hid.

use super::chain::{Plan, Step};
use super::directory::{Directory, File};
use super::{Plugin, without};
use crate::istio::PLUGIN_TYPE;
use serde_json::Value;

/// What istio-cni calls files that are its own: the list that it puts before the primary's (`istioOwnedCNIConfig`), and
/// the configuration that it has beside a meta-plugin's (`chained: false`).
const FILES: [&str; 3] = ["02-istio-cni.conflist", "YYY-istio-cni.conf", "YYY-istio-cni.conflist"];

/// The directory without anything of istio-cni's; `None` when there is nothing.
pub(super) fn without_istio(directory: &Directory) -> Option<Directory> {
    let files = directory.files.iter().filter(|file| !is_istios(file)).map(without_entry);
    let cleaned = Directory { files: files.collect(), drop_ins: directory.drop_ins.clone() };
    (cleaned != *directory).then_some(cleaned)
}

/// The steps that were planned for the directory `without` istio-cni, for the one in which it is.
pub(super) fn onto(directory: &Directory, without: &Directory, planned: Plan) -> Plan {
    let text_of = |name: &str| {
        let file = directory.files.iter().find(|file| file.name == name);
        file.and_then(|file| file.text.clone().ok())
    };
    let mut steps: Vec<Step> = planned.steps;
    for step in &mut steps {
        if let Step::Edit { file, from, .. } = step
            && let Some(text) = text_of(file)
        {
            *from = text;
        }
    }
    for File { name, text } in &without.files {
        let edited = steps.iter().any(|step| matches!(step, Step::Edit { file, .. } if file == name));
        if let (Ok(to), Some(from), false) = (text, text_of(name), edited)
            && from != *to
        {
            steps.push(Step::Edit { file: name.clone(), from, to: to.clone() });
        }
    }
    let own = directory.files.iter().filter(|file| is_istios(file));
    steps.extend(own.map(|file| Step::RemoveIstios { file: file.name.clone() }));
    Plan { steps, outcome: planned.outcome }
}

impl Directory {
    /// What of istio-cni's is in the directory, in words: files of its own, and files with its entry.
    #[must_use]
    pub fn istios(&self) -> Vec<String> {
        let found = self.files.iter().filter_map(|file| match () {
            () if is_istios(file) => Some(format!("{} is istio-cni's own", file.name)),
            () if without_entry(file) != *file => Some(format!("{} has istio-cni's entry", file.name)),
            () => None,
        });
        found.collect()
    }
}

/// An entry that captures for ambient mode; one that only redirects sidecars' pods is left.
fn is_ambient(plugin: &Plugin) -> bool {
    plugin.r#type == PLUGIN_TYPE && plugin.ambient_enabled == Value::Bool(true)
}

/// Its own by name, and by what is in it: a list with its entry, or its own configuration.
fn is_istios(file: &File) -> bool {
    let says_so = |text: &String| {
        let single = serde_json::from_str::<Plugin>(text).is_ok_and(|plugin| is_ambient(&plugin));
        single || without(text, is_ambient).is_ok_and(|rest| rest != *text)
    };
    FILES.contains(&file.name.as_str()) && file.text.as_ref().is_ok_and(says_so)
}

fn without_entry(file: &File) -> File {
    let text = file.text.as_ref().ok().and_then(|text| without(text, is_ambient).ok());
    File { name: file.name.clone(), text: text.map_or_else(|| file.text.clone(), Ok) }
}
