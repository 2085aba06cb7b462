//! The CNI directories.

use super::*;
use crate::conflist::DropIn;

const CILIUM: &str =
    r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni","enable-debug":false}]}"#;
const CHAINED: &str =
    r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"bridge"},{"type":"sluice-cni"}]}"#;

fn with_cilium(exclusive: Option<&str>, runtime: &str) -> Facts {
    let mut facts = fresh("05-cilium.conflist", CILIUM);
    let config = exclusive.map(|value| ("cni-exclusive".to_owned(), value.to_owned()));
    facts.cluster.as_mut().unwrap().cilium = Ok(Some(config.into_iter().collect()));
    let (name, version) = runtime.split_once(' ').unwrap();
    let runtime = format!(r#"{{"name":"{name}","version":"{version}"}}"#);
    facts.notes.as_mut().unwrap().files.push(super::note(NoteKind::Runtime, &runtime));
    facts
}

fn severity_of(facts: &Facts, id: &str) -> Option<Severity> {
    found(facts).into_iter().find(|(found, _)| *found == id).map(|(_, severity)| severity)
}

#[test]
fn before_an_installation_it_says_how_it_would_be_chained() {
    let facts = fresh("10-kindnet.conflist", &KINDNET.replace(",\n    {\"type\":\"sluice-cni\"}", ""));
    assert_eq!(found(&facts), [("cni-way", Severity::Note), ("agent", Severity::Note)]);
    let note = the(&facts, "cni-way");
    assert!(note.what.contains("within the primary's own list"), "{note:?}");
    assert_eq!(note.evidence[0].place, "/etc/cni/net.d/10-kindnet.conflist");
    assert_eq!(note.evidence[0].line, Some(5));
    assert!(note.evidence[0].value.starts_with(r#"{"type": "ptp""#), "{note:?}");
}

#[test]
fn a_primary_that_cannot_be_chained_behind() {
    let old = KINDNET.replace("0.3.1", "0.2.0").replace(",\n    {\"type\":\"sluice-cni\"}", "");
    let problem = the(&fresh("10-kindnet.conflist", &old), "cni-way");
    assert_eq!(problem.severity, Severity::Problem);
    assert!(problem.what.contains("0.2.0"), "{problem:?}");
    assert_eq!(problem.evidence[0].line, Some(2));
    let none = the(&node(|facts| facts.cni.as_mut().unwrap().directory.files.clear()), "cni-primary");
    assert_eq!(none.severity, Severity::Warning);
    let cut = the(&fresh("10-kindnet.conflist", "{\"cni"), "cni-primary");
    assert_eq!(
        (cut.severity, cut.evidence[0].place.as_str()),
        (Severity::Problem, "/etc/cni/net.d/10-kindnet.conflist")
    );
}

#[test]
fn a_primary_behind_multus_is_chained_as_the_preset_has_it() {
    let ovn = r#"{"cniVersion":"0.4.0","name":"ovn-kubernetes","type":"ovn-k8s-cni-overlay"}"#;
    let multus = r#"{"cniVersion":"0.4.0","name":"multus-cni-network","type":"multus-shim"}"#;
    let mut facts = fresh("10-ovn-kubernetes.conf", ovn);
    facts.cni.as_mut().unwrap().directory.files.push(file("00-multus.conf", multus));
    assert_eq!(the(&facts, "cni-way").severity, Severity::Problem);
    facts.cni.as_mut().unwrap().platform = Some("openshift");
    let note = the(&facts, "cni-way");
    assert_eq!(note.severity, Severity::Note, "{note:?}");
    assert!(note.what.contains("vendor-cni-chain/90-sluice.conf"), "{note:?}");
}

#[test]
fn exclusive_mode() {
    let table = [
        (Some("true"), "containerd 1.7.28", Some(Severity::Problem)),
        (None, "containerd 1.7.28", Some(Severity::Problem)),
        (Some("false"), "containerd 1.7.28", None),
        // Drop-ins are in a directory of their own, at which Cilium does not look.
        (Some("true"), "containerd 2.1.4", Some(Severity::Note)),
    ];
    for (exclusive, runtime, expected) in table {
        let facts = with_cilium(exclusive, runtime);
        assert_eq!(severity_of(&facts, "cni-exclusive"), expected, "{exclusive:?} {runtime}");
    }
}

#[test]
fn exclusive_mode_without_the_api_server_goes_by_what_is_there() {
    let mut facts = with_cilium(None, "containerd 1.7.28");
    facts.cluster = Err(Unlooked::no_cluster());
    assert_eq!(severity_of(&facts, "cni-exclusive"), Some(Severity::Warning));
    let files = &mut facts.cni.as_mut().unwrap().directory.files;
    files.push(file("10-aws.conflist.cilium_bak", CHAINED));
    let problem = the(&facts, "cni-exclusive");
    assert_eq!(problem.severity, Severity::Problem);
    assert!(
        problem.evidence.iter().any(|seen| seen.place.ends_with("10-aws.conflist.cilium_bak")),
        "{problem:?}"
    );
    assert!(problem.fix.contains("cni.exclusive=false"), "{problem:?}");
    // It could not be looked at in full: it has not passed either.
    assert!(!diagnose(&facts).passed.contains(&"cni-exclusive"));
}

#[test]
fn a_node_without_cilium_needs_no_configuration_of_cilium() {
    let facts = node(|facts| facts.cluster = Err(Unlooked::no_cluster()));
    assert!(diagnose(&facts).passed.contains(&"cni-exclusive"));
}

#[test]
fn directories_that_cannot_be_used() {
    let facts = node(|facts| {
        facts.cni.as_mut().unwrap().not_writable = Some("mounted read-only".to_owned());
        let plugin = facts.plugin.as_mut().unwrap();
        plugin.noexec = true;
        plugin.not_writable = Some("no such directory".to_owned());
    });
    let ids: Vec<_> = found(&facts).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["cni-directory", "cni-directory", "plugin-file"]);
    let elsewhere = node(|facts| facts.cni.as_mut().unwrap().platform = Some("k3s"));
    let note = the(&elsewhere, "cni-directory");
    assert_eq!((note.severity, note.fix.as_str()), (Severity::Note, "Install with --set platform=k3s"));
}

#[test]
fn the_plugin_s_file() {
    let gone = the(&node(|facts| facts.plugin.as_mut().unwrap().mode = None), "plugin-file");
    assert_eq!(gone.severity, Severity::Problem);
    assert!(gone.evidence.iter().any(|seen| seen.place == "/etc/cni/net.d/10-kindnet.conflist"), "{gone:?}");
    let mode = the(&node(|facts| facts.plugin.as_mut().unwrap().mode = Some(0o100_644)), "plugin-file");
    assert_eq!(mode.evidence[0].value, "mode 0644");
    let directory = the(&node(|facts| facts.plugin.as_mut().unwrap().mode = Some(0o040_755)), "plugin-file");
    assert_eq!(directory.severity, Severity::Problem);
    assert!(directory.what.contains("is no file"), "{directory:?}");
    let stale = node(|facts| facts.plugin.as_mut().unwrap().current = Some(false));
    assert_eq!(found(&stale), [("plugin-stale", Severity::Warning)]);
    let unknown = node(|facts| facts.plugin.as_mut().unwrap().current = None);
    assert_eq!(found(&unknown), []);
    assert!(!diagnose(&unknown).passed.contains(&"plugin-stale"), "nothing was compared");
    assert_eq!(diagnose(&unknown).worst(false), None, "and nobody has asked for it");
}

#[test]
fn an_entry_that_was_left_behind() {
    let left = |lease: Option<Note>| {
        node(|facts| {
            facts.agent = Agent::Absent { socket: "/run/sluice/admin.sock".to_owned() };
            let notes = facts.notes.as_mut().unwrap();
            notes.files.retain(|note| note.kind != NoteKind::Lease);
            notes.files.extend(lease);
        })
    };
    assert_eq!(severity_of(&left(None), "leftover"), Some(Severity::Problem));
    assert_eq!(severity_of(&left(Some(lease(UPTIME, true))), "leftover"), Some(Severity::Warning));
    assert_eq!(severity_of(&left(Some(lease(1, false))), "leftover"), Some(Severity::Warning));
    // Held: the agent is away, which is another matter.
    let held = left(Some(lease(UPTIME, false)));
    assert_eq!(severity_of(&held, "leftover"), None);
    assert_eq!(severity_of(&held, "agent"), Some(Severity::Problem));
    let mut drop_in = left(None);
    let directory = &mut drop_in.cni.as_mut().unwrap().directory;
    directory.files.clear();
    directory.drop_ins.push(DropIn { network: "kindnet".to_owned(), text: Ok("{}".to_owned()) });
    assert_eq!(the(&drop_in, "leftover").evidence[0].place, "/etc/cni/net.d/kindnet/90-sluice.conf");
}

#[test]
fn a_list_of_ours_that_somebody_parked() {
    let facts = node(|facts| {
        let files = &mut facts.cni.as_mut().unwrap().directory.files;
        files.push(file("00-sluice.conflist.mk_disabled", CHAINED));
    });
    assert_eq!(found(&facts), [("leftover", Severity::Warning)]);
}
