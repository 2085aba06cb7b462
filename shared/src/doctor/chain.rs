//! The CNI directories: who is the primary, how we would get into its chain, what is left over.

use super::catalogue::{
    CNI_DIRECTORY, CNI_EXCLUSIVE, CNI_PRIMARY, CNI_WAY, LEFTOVER, PLUGIN_FILE, PLUGIN_STALE,
};
use super::facts::{Agent, CniFacts, Facts, NoteKind, PluginFile};
use super::primary::CILIUM;
use super::{Diagnosis, Finding, Severity, Unlooked};
use crate::conflist::{
    DROP_IN_FILE, Entry, Found, OWNED_NAMES, PLUGIN_TYPE, Primary, Runtime, Way, Wish, contains, is_parked,
    plan,
};
use crate::install::{Holding, Lease};

const PARKED_BY_CILIUM: &str = ".cilium_bak";
/// inode(7)
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    let about = [CNI_PRIMARY, CNI_WAY, CNI_DIRECTORY];
    let cni = diagnosis.look("the runtime's CNI configuration", &about, facts.cni.as_ref());
    if let Some(cni) = cni {
        primary(cni, facts, diagnosis);
        exclusive(cni, facts, diagnosis);
        directory(cni, diagnosis);
    } else if let Err(unlooked) = &facts.cni {
        diagnosis.miss("the runtime's CNI configuration", &[CNI_EXCLUSIVE, LEFTOVER], unlooked);
    }
    let about = [PLUGIN_FILE, PLUGIN_STALE];
    if let Some(plugin) =
        diagnosis.look("the runtime's directory of CNI plugins", &about, facts.plugin.as_ref())
    {
        plugin_file(plugin, cni, facts, diagnosis);
    }
    if let Some(cni) = cni {
        leftover(cni, facts, diagnosis);
    }
}

/// Where our entry is now: files, below the directory.
pub(super) fn entries(cni: &CniFacts) -> Vec<String> {
    let in_files = cni.directory.files.iter().filter(|file| {
        let ours = |text: &String| contains(text).unwrap_or_default();
        !is_parked(&file.name) && file.text.as_ref().is_ok_and(ours)
    });
    let in_files = in_files.map(|file| file.name.clone());
    let drop_ins = cni.directory.drop_ins.iter().map(|drop_in| format!("{}/{DROP_IN_FILE}", drop_in.network));
    in_files.chain(drop_ins).collect()
}

fn primary(cni: &CniFacts, facts: &Facts, diagnosis: &mut Diagnosis) {
    let path = &cni.path;
    match cni.directory.primary() {
        Primary::Found(found) => way(cni, &found, facts, diagnosis),
        Primary::Absent { behind } => {
            let what = match behind {
                None => format!("no primary CNI has its configuration in {path}"),
                Some(meta) => {
                    format!("in {path} there is only {meta}, which calls another CNI that is not there")
                }
            };
            let fix = "Wait until the primary CNI's own pod on this node is ready. If the runtime reads another directory, \
                       name it: --conf-dir DIR here, `platform` or `cniConfDir` in the chart";
            diagnosis
                .find(Finding::new(CNI_PRIMARY, Severity::Warning, what, fix).seen(path, "no configuration"));
        }
        Primary::Unreadable { name, why } => {
            let what = format!("{name}, which the runtime takes first, cannot be understood");
            let fix = "Somebody may be writing it: look again. If it stays so, restart the CNI that it belongs to, or move the \
                       file away";
            let found = Finding::new(CNI_PRIMARY, Severity::Problem, what, fix);
            diagnosis.find(found.seen(format!("{path}/{name}"), why));
        }
    }
}

fn wish<'a>(entry: &'a Entry, cni: &CniFacts, runtime: Option<&Runtime>) -> Wish<'a> {
    Wish {
        entry,
        way: None,
        drop_ins: runtime.map(Runtime::drop_ins).unwrap_or_default(),
        // As the chart's preset has it.
        auxiliary_chain: (cni.platform == Some("openshift")).then_some("vendor-cni-chain"),
        replace_istio: true,
        may_add: true,
        outlive: false,
    }
}

/// How our entry would get into the chain, with the installer's own plan for it.
fn planned_way(cni: &CniFacts, facts: &Facts) -> Result<(Way, String, String), String> {
    let entry = Entry::default();
    plan(&cni.directory, &wish(&entry, cni, facts.runtime().as_ref()))
        .outcome
        .map(|chained| (chained.way, chained.file, chained.why))
}

fn way(cni: &CniFacts, found: &Found<'_>, facts: &Facts, diagnosis: &mut Diagnosis) {
    let place = format!("{}/{}", cni.path, found.name);
    match planned_way(cni, facts) {
        // What runs is said by `chain-state`; before that it is worth knowing what the installer will do.
        Ok((way, file, why)) if entries(cni).is_empty() => {
            let what = format!("the installer would chain the plugin {} ({why}): {file}", in_words(way));
            let fix = "Nothing. Another way is asked for by `install.way` in the chart";
            let note = Finding::new(CNI_WAY, Severity::Note, what, fix);
            diagnosis.find(note.seen_in(place, found.text, &format!("\"{}\"", first(&found.types))));
        }
        Ok(_) => {}
        Err(why) => {
            let what = format!("the plugin cannot be chained behind {}: {why}", found.name);
            let fix = "What stands in the way is named above. For Multus: set `install.auxiliaryChain` in the chart to the chain \
                       that it runs after its default network; else `install.way` asks for another way";
            let problem = Finding::new(CNI_WAY, Severity::Problem, what, fix);
            let needle = if why.contains("cniVersion") { "cniVersion" } else { "\"type\"" };
            diagnosis.find(problem.seen_in(place, found.text, needle));
        }
    }
}

fn first(types: &[String]) -> &str {
    types.first().map_or("", String::as_str)
}

fn in_words(way: Way) -> &'static str {
    match way {
        Way::DropIn => "by a file of its own beside the primary's list",
        Way::InPlace => "within the primary's own list",
        Way::Owned => "by a list of its own that sorts first",
    }
}

fn exclusive(cni: &CniFacts, facts: &Facts, diagnosis: &mut Diagnosis) {
    let parked: Vec<String> = cni
        .directory
        .files
        .iter()
        .filter(|file| file.name.ends_with(PARKED_BY_CILIUM))
        .map(|file| format!("{}/{}", cni.path, file.name))
        .collect();
    let is_cilium = matches!(cni.directory.primary(), Primary::Found(found) if found.types.iter().any(|kind| kind == CILIUM));
    if !is_cilium && parked.is_empty() {
        diagnosis.looked.insert(CNI_EXCLUSIVE.id);
        return;
    }
    let config = facts.of_cluster(|cluster| &cluster.cilium);
    let config = diagnosis.look(
        "Cilium's configuration (ConfigMap kube-system/cilium-config)",
        &[CNI_EXCLUSIVE],
        config,
    );
    let setting =
        config.and_then(Option::as_ref).map(|config| config.get("cni-exclusive").map(String::as_str));
    // Cilium's own default is to be exclusive; its chart always writes the key.
    let on = setting.map(|value| value != Some("false"));
    let way = planned_way(cni, facts).ok().map(|(way, ..)| way);
    let (severity, what) = match (on, way) {
        (Some(false), _) => return,
        (Some(true), Some(Way::DropIn)) => (
            Severity::Note,
            "Cilium is in exclusive mode; this node's runtime adds drop-ins, which Cilium leaves alone",
        ),
        (Some(true), _) => {
            (Severity::Problem, "Cilium is in exclusive mode and will take our entry out of the chain")
        }
        (None, Some(Way::DropIn)) => return,
        (None, _) if !parked.is_empty() => (
            Severity::Problem,
            "Cilium has put others' configurations out of force: it is, or was, in exclusive mode",
        ),
        (None, _) => (
            Severity::Warning,
            "Cilium is the primary CNI, and whether it is in exclusive mode, as by default, is not known",
        ),
    };
    let fix = "helm upgrade cilium cilium/cilium -n kube-system --reuse-values --set cni.exclusive=false, or: kubectl -n \
               kube-system patch configmap cilium-config --type merge -p '{\"data\":{\"cni-exclusive\":\"false\"}}' and \
               kubectl -n kube-system rollout restart daemonset/cilium";
    let mut finding = Finding::new(CNI_EXCLUSIVE, severity, what, fix);
    if let Some(value) = setting {
        let value = value.map_or("cni-exclusive is not set: true by default".to_owned(), |value| {
            format!("cni-exclusive: {value:?}")
        });
        finding = finding.seen("configmap kube-system/cilium-config", value);
    }
    for file in parked {
        finding = finding.seen(file, "put out of force by its name");
    }
    if let Primary::Found(found) = cni.directory.primary()
        && is_cilium
    {
        finding = finding.seen_in(format!("{}/{}", cni.path, found.name), found.text, "\"cilium-cni\"");
    }
    diagnosis.find(finding);
}

fn directory(cni: &CniFacts, diagnosis: &mut Diagnosis) {
    if let Some(platform) = cni.platform {
        let what = format!("the runtime's directories are where {platform} has them");
        let fix = format!("Install with --set platform={platform}");
        diagnosis
            .find(Finding::new(CNI_DIRECTORY, Severity::Note, what, fix).seen(&cni.path, "is the runtime's"));
    }
    if let Some(why) = &cni.not_writable {
        let what = format!("{} cannot be written", cni.path);
        let fix = "Mount it writable, or name the directory that the runtime really reads: `platform` or `cniConfDir` in \
                   the chart";
        diagnosis.find(Finding::new(CNI_DIRECTORY, Severity::Problem, what, fix).seen(&cni.path, why));
    }
}

fn plugin_file(plugin: &PluginFile, cni: Option<&CniFacts>, facts: &Facts, diagnosis: &mut Diagnosis) {
    let PluginFile { directory, not_writable, noexec, mode, current, .. } = plugin;
    let file = format!("{directory}/{PLUGIN_TYPE}");
    if let Some(why) = not_writable {
        let what = format!("the plugin cannot be put into {directory}");
        let fix = "Name the directory that the runtime takes plugins from, where it can be written: `platform` or \
                   `cniBinDir` in the chart (GKE: platform=gke)";
        diagnosis.find(Finding::new(CNI_DIRECTORY, Severity::Problem, what, fix).seen(directory, why));
    }
    if *noexec {
        let fix =
            "Name another directory that the runtime takes plugins from, or mount this one without noexec";
        let what = format!("nothing in {directory} can be executed");
        diagnosis
            .find(Finding::new(PLUGIN_FILE, Severity::Problem, what, fix).seen(directory, "mounted noexec"));
    }
    let entries = cni.map(entries).unwrap_or_default();
    let reinstall = "kubectl -n sluice-system delete pod -l app.kubernetes.io/name=sluice-agent --field-selector \
                     spec.nodeName=NODE: the installer puts the plugin back. If Sluice is not to be on this node: \
                     sluice-install remove";
    match mode {
        None if !entries.is_empty() => {
            let what = format!("our entry is in the chain and {file} is not there: no pod can start");
            let finding = Finding::new(PLUGIN_FILE, Severity::Problem, what, reinstall).seen(&file, "absent");
            let path = cni.map_or("", |cni| &cni.path);
            diagnosis.find(entries.iter().fold(finding, |finding, entry| {
                finding.seen(format!("{path}/{entry}"), format!("\"type\":\"{PLUGIN_TYPE}\""))
            }));
        }
        Some(mode) if mode & S_IFMT != S_IFREG => {
            let what = format!("{file} is no file, and the runtime cannot run it");
            diagnosis.find(
                Finding::new(PLUGIN_FILE, Severity::Problem, what, reinstall).seen(&file, "no regular file"),
            );
        }
        Some(mode) if mode & 0o111 == 0 => {
            let what = format!("{file} cannot be executed");
            let finding = Finding::new(PLUGIN_FILE, Severity::Problem, what, reinstall);
            diagnosis.find(finding.seen(&file, format!("mode {:04o}", mode & 0o7777)));
        }
        _ => {}
    }
    if mode.is_some() && current.is_none() {
        let unlooked = Unlooked {
            why: "there is no plugin beside this program to compare it with".to_owned(),
            how: "run it in the agent's image, or name this release's plugin with --plugin".to_owned(),
            not_asked_for: true,
        };
        diagnosis.miss(&format!("whether {file} is this release's"), &[PLUGIN_STALE], &unlooked);
    }
    if mode.is_some() && *current == Some(false) {
        let what = format!("{file} is not the plugin of this release");
        let fix = "Wait until the rollout of sluice-agent has reached this node; if it has, the installer's log says why it \
                   does not write: kubectl -n sluice-system logs PODNAME -c install";
        // Before an installation it is simply old.
        let severity =
            if matches!(facts.agent, Agent::Absent { .. }) { Severity::Note } else { Severity::Warning };
        diagnosis.find(
            Finding::new(PLUGIN_STALE, severity, what, fix)
                .seen(&file, "other bytes than the plugin beside sluicectl"),
        );
    }
}

/// An entry, or a parked file, of an installation that is no more.
fn leftover(cni: &CniFacts, facts: &Facts, diagnosis: &mut Diagnosis) {
    let Some(notes) = diagnosis.look("the installation's files", &[LEFTOVER], facts.notes.as_ref()) else {
        return;
    };
    let fix = "sluice-install remove on this node takes everything of ours off; or install Sluice again";
    for file in &cni.directory.files {
        let original = file.name.trim_end_matches(PARKED_BY_CILIUM).trim_end_matches(".mk_disabled");
        if original != file.name && OWNED_NAMES.contains(&original) {
            let what = format!("a list of ours was put out of force by its name: {}", file.name);
            let finding = Finding::new(LEFTOVER, Severity::Warning, what, fix);
            diagnosis
                .find(finding.seen(format!("{}/{}", cni.path, file.name), "ours, parked by another CNI"));
        }
    }
    let entries = entries(cni);
    if entries.is_empty() || matches!(facts.agent, Agent::Answers(_) | Agent::Forbidden { .. }) {
        return;
    }
    let lease = facts.note(NoteKind::Lease).and_then(|note| Lease::parse(note.bytes.as_ref().ok()?));
    let (severity, standing) = match lease.map(|lease| lease.holding(&notes.boot, notes.uptime)) {
        // The agent is away for a while: `agent` says so.
        Some(Holding::Held) => return,
        Some(Holding::Released) => (Severity::Warning, "the lease was given up, so pods start".to_owned()),
        Some(Holding::Lapsed(seconds)) => {
            (Severity::Warning, format!("the lease was not renewed for {seconds} s, so pods start"))
        }
        None => (
            Severity::Problem,
            "there is no lease, so nothing tells the plugin that Sluice is gone".to_owned(),
        ),
    };
    let what = format!("our entry is in the chain, no agent answers, and {standing}");
    let finding = Finding::new(LEFTOVER, severity, what, fix);
    diagnosis.find(entries.iter().fold(finding, |finding, entry| {
        finding.seen(format!("{}/{entry}", cni.path), format!("\"type\":\"{PLUGIN_TYPE}\""))
    }));
}
