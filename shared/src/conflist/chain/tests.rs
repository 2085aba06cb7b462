use super::*;

const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"ptp\"}]}\n";
const CHAINED: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"ptp\"},{\"type\":\"sluice-cni\"}]}\n";
const SINGLE: &str = "{ \"cniVersion\": \"0.4.0\", \"name\": \"ovn\", \"type\": \"ovn\", \"x\": \"1\" }\n";
const WRAPPED: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"ovn\",\"plugins\":[{ \"cniVersion\": \"0.4.0\", \"name\": \
                       \"ovn\", \"type\": \"ovn\", \"x\": \"1\" },{\"type\":\"sluice-cni\"}]}\n";
const OURS: &str = "{\"type\":\"sluice-cni\"}\n";
const MULTUS: &str = r#"{"cniVersion":"1.0.0","name":"m","type":"multus"}"#;
static ENTRY: Entry = Entry {
    agent_socket: None,
    state_dir: None,
    timeout_seconds: None,
    log_level: None,
    exempt_pods: Vec::new(),
};

fn wish() -> Wish<'static> {
    Wish {
        entry: &ENTRY,
        way: None,
        drop_ins: DropIns::Unknown,
        auxiliary_chain: None,
        replace_istio: false,
        may_add: true,
        outlive: false,
    }
}

fn directory(files: &[(&str, &str)], drop_ins: &[(&str, &str)]) -> Directory {
    let files = files.iter().map(|(name, text)| File { name: (*name).into(), text: Ok((*text).into()) });
    let drop_ins = drop_ins
        .iter()
        .map(|(network, text)| DropIn { network: (*network).into(), text: Ok((*text).into()) });
    Directory { files: files.collect(), drop_ins: drop_ins.collect() }
}

#[track_caller]
fn settles(from: &Directory, wish: &Wish<'_>, to: &Directory) -> Chained {
    let Plan { steps, outcome } = plan(from, wish);
    let found = from.after(&steps);
    assert_eq!(&found, to);
    assert_eq!(plan(&found, wish).steps, [], "a second look finds nothing to do");
    outcome.unwrap()
}

#[test]
fn each_way_by_runtime_and_file() {
    let list = || directory(&[("10-p.conflist", LIST)], &[]);
    let chained = settles(&list(), &wish(), &directory(&[("10-p.conflist", CHAINED)], &[]));
    assert_eq!((chained.way, chained.file.as_str()), (Way::InPlace, "10-p.conflist"));
    let new = Wish { drop_ins: DropIns::Added, ..wish() };
    let chained = settles(&list(), &new, &directory(&[("10-p.conflist", LIST)], &[("net", OURS)]));
    assert_eq!((chained.way, chained.file.as_str()), (Way::DropIn, "net/90-sluice.conf"));
    let owned = directory(&[("00-sluice.conflist", WRAPPED), ("10-p.conf", SINGLE)], &[]);
    let chained = settles(&directory(&[("10-p.conf", SINGLE)], &[]), &new, &owned);
    assert_eq!((chained.way, chained.file.as_str()), (Way::Owned, "00-sluice.conflist"));
    let owned = Wish { way: Some(Way::Owned), ..wish() };
    let chained = settles(
        &list(),
        &owned,
        &directory(&[("00-sluice.conflist", CHAINED), ("10-p.conflist", LIST)], &[]),
    );
    assert_eq!(chained.primary.as_deref(), Some("10-p.conflist"));
}

#[test]
fn never_two_at_once_and_what_goes_goes_first() {
    let all = directory(
        &[
            ("00-sluice.conflist", CHAINED),
            ("0-sluice.conflist.cilium_bak", CHAINED),
            ("10-p.conflist", CHAINED),
            ("20-other.conflist", CHAINED),
        ],
        &[("net", OURS), ("old", OURS)],
    );
    let others = ("20-other.conflist", LIST);
    for (way, wanted) in [
        (Way::DropIn, directory(&[("10-p.conflist", LIST), others], &[("net", OURS)])),
        (Way::InPlace, directory(&[("10-p.conflist", CHAINED), others], &[])),
        (Way::Owned, directory(&[("00-sluice.conflist", CHAINED), ("10-p.conflist", LIST), others], &[])),
    ] {
        let wish = Wish { way: Some(way), ..wish() };
        let Plan { steps, outcome } = plan(&all, &wish);
        assert_eq!(outcome.unwrap().way, way);
        assert!(steps.iter().all(Step::takes_away), "{steps:?}");
        let found = all.after(&steps);
        assert_eq!(found, wanted, "{way:?}");
    }
    let left = all.after(&leave(&all));
    assert!(all.has_us() && !left.has_us());
    assert_eq!(left, directory(&[("10-p.conflist", LIST), others], &[]));
}

#[test]
fn nothing_is_added_before_the_agent_serves_and_what_is_there_is_kept_true() {
    let early = Wish { may_add: false, ..wish() };
    let owned = Wish { way: Some(Way::Owned), ..early.clone() };
    let fresh = directory(&[("10-p.conflist", LIST)], &[]);
    for wish in [&early, &owned, &Wish { drop_ins: DropIns::Added, ..early.clone() }] {
        let Plan { steps, outcome } = plan(&fresh, wish);
        assert!(steps.is_empty() && outcome.unwrap_err().contains("does not serve yet"));
    }
    let newer = LIST.replace("ptp", "bridge");
    let there = directory(&[("00-sluice.conflist", CHAINED), ("10-p.conflist", &newer)], &[]);
    let follows = CHAINED.replace("ptp", "bridge");
    settles(&there, &owned, &directory(&[("00-sluice.conflist", &follows), ("10-p.conflist", &newer)], &[]));
    let old = CHAINED.replace("\"sluice-cni\"", "\"sluice-cni\",\"timeoutSeconds\":3");
    settles(
        &directory(&[("10-p.conflist", &old)], &[]),
        &early,
        &directory(&[("10-p.conflist", CHAINED)], &[]),
    );
}

#[test]
fn a_file_that_is_half_written_changes_nothing() {
    for half in ["", "{\"cniVersion\":\"1.0", "{}"] {
        let owned = directory(&[("00-sluice.conflist", CHAINED), ("10-p.conflist", half)], &[("net", OURS)]);
        for way in [None, Some(Way::DropIn), Some(Way::InPlace), Some(Way::Owned)] {
            let Plan { steps, outcome } = plan(&owned, &Wish { way, ..wish() });
            assert!(steps.is_empty() && outcome.is_err(), "{half:?}: {steps:?}");
        }
    }
}

#[test]
fn our_own_list_goes_with_the_primarys_but_for_a_reboot() {
    let alone = directory(&[("00-sluice.conflist", CHAINED)], &[("net", OURS)]);
    let gone = plan(&alone, &wish()).steps;
    assert_eq!(gone, [Step::RemoveOwned { file: "00-sluice.conflist".into() }], "the drop-in stays");
    assert_eq!(plan(&alone, &Wish { outlive: true, ..wish() }).steps, []);
}

#[test]
fn behind_multus_its_primary_is_joined_and_never_shadowed() {
    let both = [("00-multus.conf", MULTUS), ("10-p.conflist", LIST)];
    let wanted = directory(&[("00-multus.conf", MULTUS), ("10-p.conflist", CHAINED)], &[]);
    // A runtime that adds drop-ins adds them to Multus' list and never to the primary's (silent bypass if we believed it).
    for drop_ins in [DropIns::Unknown, DropIns::Ignored, DropIns::Added] {
        let wish = Wish { drop_ins, ..wish() };
        for there in [&[][..], &[("net", OURS)]] {
            assert_eq!(settles(&directory(&both, there), &wish, &wanted).way, Way::InPlace, "{drop_ins:?}");
        }
        let asked = Wish { way: Some(Way::DropIn), ..wish };
        let Plan { steps, outcome } = plan(&directory(&both, &[]), &asked);
        assert!(steps.is_empty() && outcome.unwrap_err().contains("00-multus.conf"));
    }
    let single = directory(&[("00-multus.conf", MULTUS), ("10-p.conf", SINGLE)], &[]);
    for way in [None, Some(Way::Owned)] {
        let Plan { steps, outcome } = plan(&single, &Wish { way, ..wish() });
        assert!(steps.is_empty() && outcome.unwrap_err().contains("auxiliary"));
    }
    let vendor = Wish { auxiliary_chain: Some("vendor-cni-chain"), ..wish() };
    let names = [("00-multus.conf", MULTUS), ("10-p.conf", SINGLE)];
    settles(&single, &vendor, &directory(&names, &[("vendor-cni-chain", OURS)]));
}

#[test]
fn a_list_that_cannot_take_us_is_left() {
    let newer = LIST.replace("1.0.0", "9.0.0");
    let there = directory(&[("00-sluice.conflist", CHAINED), ("10-p.conflist", &newer)], &[]);
    let Plan { steps, outcome } = plan(&there, &Wish { way: Some(Way::Owned), ..wish() });
    assert!(outcome.unwrap_err().contains("9.0.0"));
    assert_eq!(steps, [Step::RemoveOwned { file: "00-sluice.conflist".into() }]);
}

#[test]
fn a_drop_in_stays_while_nobody_has_asked_the_runtime() {
    let there = directory(&[("10-p.conflist", LIST)], &[("net", OURS)]);
    assert_eq!(plan(&there, &wish()).steps, []);
    let old = Wish { drop_ins: DropIns::Ignored, ..wish() };
    settles(&there, &old, &directory(&[("10-p.conflist", CHAINED)], &[]));
}

#[test]
fn a_mesh_that_appends_itself_behind_us_is_no_reason_to_write() {
    let behind = CHAINED.replace("\"sluice-cni\"}", "\"sluice-cni\"},{\"type\":\"linkerd-cni\"}");
    let there = directory(&[("10-p.conflist", &behind)], &[]);
    assert_eq!(plan(&there, &wish()).steps, []);
}

const ISTIOS: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"ptp\"},\n {\"type\":\"istio-cni\", \
                      \"ambient_enabled\": true}]}\n";

#[test]
fn istio_cnis_entry_goes_in_the_write_in_which_ours_comes() {
    let replace = Wish { replace_istio: true, ..wish() };
    let before = directory(&[("10-p.conflist", ISTIOS)], &[]);
    let Plan { steps, .. } = plan(&before, &replace);
    let [Step::Edit { file, from, to }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((file.as_str(), from.as_str(), to.as_str()), ("10-p.conflist", ISTIOS, CHAINED));
    settles(&before, &replace, &directory(&[("10-p.conflist", CHAINED)], &[]));
    // Both, while it lives; then its own goes.
    let both = plan(&before, &wish());
    let beside = before.after(&both.steps);
    assert_eq!(beside.istios(), ["10-p.conflist has istio-cni's entry"]);
    // As it was written beside it.
    let chained = CHAINED.replace(",{\"type\":\"sluice", ",\n {\"type\":\"sluice");
    settles(&beside, &replace, &directory(&[("10-p.conflist", &chained)], &[]));
    // It does not come back when we leave.
    let left = beside.after(&plan(&beside, &replace).steps);
    assert_eq!(left.after(&leave(&left)), directory(&[("10-p.conflist", LIST)], &[]));
}

#[test]
fn a_drop_in_of_ours_is_there_before_istio_cnis_entry_goes() {
    let replace = Wish { replace_istio: true, drop_ins: DropIns::Added, ..wish() };
    let before = directory(&[("10-p.conflist", ISTIOS)], &[]);
    let Plan { steps, .. } = plan(&before, &replace);
    assert!(matches!(&steps[..], [Step::PutDropIn { .. }, Step::Edit { to, .. }] if to == LIST), "{steps:?}");
    settles(&before, &replace, &directory(&[("10-p.conflist", LIST)], &[("net", OURS)]));
}

#[test]
fn istio_cnis_own_files_go_last_and_hide_the_primary_until_then() {
    let replace = Wish { replace_istio: true, ..wish() };
    let alone =
        "{\"cniVersion\":\"0.3.1\",\"name\":\"istio-cni\",\"type\":\"istio-cni\",\"ambient_enabled\":true}";
    let files = [("02-istio-cni.conflist", ISTIOS), ("10-p.conflist", LIST), ("YYY-istio-cni.conf", alone)];
    let before = directory(&files, &[]);
    let Plan { steps, .. } = plan(&before, &replace);
    let [Step::Edit { file, .. }, Step::RemoveIstios { file: first }, Step::RemoveIstios { .. }] = &steps[..]
    else {
        panic!("{steps:?}")
    };
    assert_eq!((file.as_str(), first.as_str()), ("10-p.conflist", "02-istio-cni.conflist"));
    settles(&before, &replace, &directory(&[("10-p.conflist", CHAINED)], &[]));
    // While it lives its list is the one that counts, and the one that we join.
    let beside = before.after(&plan(&before, &wish()).steps);
    assert_eq!(beside.files[1].text.as_deref(), Ok(LIST));
    assert_eq!(contains(beside.files[0].text.as_ref().unwrap()), Ok(true));
    settles(&beside, &replace, &directory(&[("10-p.conflist", CHAINED)], &[]));
}

#[test]
fn nothing_of_istio_cnis_goes_before_ours_can_come() {
    let files = [("02-istio-cni.conflist", ISTIOS), ("10-p.conflist", ISTIOS)];
    for (files, wish) in [
        (&files[..], Wish { replace_istio: true, may_add: false, ..wish() }),
        (&files[..1], Wish { replace_istio: true, ..wish() }),
        (
            &[("10-p.conflist", "{\"plugins\":[{\"type\":\"istio-cni\",\"ambient_enabled\":true}]}")],
            Wish { replace_istio: true, ..wish() },
        ),
    ] {
        let before = directory(files, &[]);
        let after = before.after(&plan(&before, &wish).steps);
        assert_eq!(after.istios(), before.istios(), "{files:?}");
    }
    // A name alone is nobody's.
    let theirs = directory(&[("02-istio-cni.conflist", LIST)], &[]);
    let after = theirs.after(&plan(&theirs, &Wish { replace_istio: true, ..wish() }).steps);
    assert_eq!(after, directory(&[("02-istio-cni.conflist", CHAINED)], &[]));
}

#[test]
fn an_istio_cni_that_only_redirects_sidecars_pods_stays() {
    let sidecars = ISTIOS.replace("true", "false");
    let alone = r#"{"cniVersion":"0.3.1","name":"istio-cni","type":"istio-cni","ambient_enabled":false}"#;
    let before = directory(&[("10-p.conflist", &sidecars), ("YYY-istio-cni.conf", alone)], &[]);
    let after = before.after(&plan(&before, &Wish { replace_istio: true, ..wish() }).steps);
    assert!(after.files[0].text.as_ref().unwrap().contains("istio-cni") && after.has_us());
    assert_eq!((after.files.len(), after.istios()), (2, Vec::new()));
}

#[test]
fn a_list_that_is_followed_takes_our_entry_and_its_copy_only_when_nobody_brings_it() {
    let copy = |ours: &str| {
        let plugins = format!("{{\"type\":\"ptp\"}}{ours},{{\"type\":\"cilium-cni\"}}");
        LIST.replace("{\"type\":\"ptp\"}", &plugins)
    };
    let (copied, brought) = (copy(""), copy(",{\"type\":\"sluice-cni\"}"));
    for base in ["10-p.conflist", "10-p.conflist.cilium_bak"] {
        let fresh = directory(&[("05-cilium.conflist", &copied), (base, LIST)], &[]);
        let first = plan(&fresh, &wish());
        assert!(matches!(&first.steps[..], [Step::Edit { file, .. }] if file == base), "{:?}", first.steps);
        assert_eq!(first.outcome.unwrap().file, "05-cilium.conflist");
        let followed = directory(&[("05-cilium.conflist", &brought), (base, CHAINED)], &[]);
        assert_eq!(plan(&followed, &wish()).steps, [], "no list is taken for one to be cleaned");
        let alone = plan(&directory(&[("05-cilium.conflist", &copied), (base, CHAINED)], &[]), &wish());
        assert!(matches!(&alone.steps[..], [Step::Edit { file, .. }] if file == "05-cilium.conflist"));
        let gone = followed.after(&leave(&followed));
        assert_eq!(gone, fresh);
        let shadow = Wish { way: Some(Way::Owned), ..wish() };
        assert!(plan(&fresh, &shadow).outcome.unwrap_err().contains("a copy of another list"));
        let early = Wish { may_add: false, ..wish() };
        assert_eq!(plan(&fresh, &early).steps, []);
    }
}
