use super::node::{CASES, Case, LIST, Node};
use crate::disk::Disk;
use sluice_shared::install::State;
use std::path::Path;
use std::time::Duration;

/// What is on the disk after the program was killed, and after the power was gone, at each single write of `work`.
fn at_each_write(start: &Node, work: impl Fn(&Node), check: impl Fn(&Node)) {
    let whole = start.with(start.disk.after_crash());
    work(&whole);
    let writes = whole.disk.operations();
    assert!(writes > 3, "there is something to interrupt");
    for at in 0..=writes {
        let node = start.with(start.disk.after_crash());
        node.disk.dies_at.set(Some(at));
        work(&node);
        check(&node.with(node.disk.after_crash()));
        check(&node.with(node.disk.after_power_cut()));
    }
}

#[test]
fn an_installation_that_ends_anywhere_leaves_a_node_on_which_pods_start() {
    for case in &CASES {
        let fresh = Node::new(case);
        let before = fresh.disk.below("/conf");
        at_each_write(
            &fresh,
            |node| _ = node.install(true),
            |node| {
                assert!(node.times() <= 1, "{case:?}");
                let again = node.with(node.disk.after_crash());
                assert!(again.install(true), "{case:?}");
                assert_eq!(again.times(), 1, "{case:?}");
                let gone = node.with(node.disk.after_crash());
                gone.uninstall().unwrap();
                assert_eq!(gone.disk.below("/conf"), before, "{case:?}");
                assert_eq!(gone.temporaries(), [""; 0], "{case:?}");
            },
        );
    }
}

#[test]
fn a_repair_and_a_change_of_way_that_end_anywhere_do_as_well() {
    for case in &CASES {
        let node = Node::new(case);
        assert!(node.install(true));
        let path = format!("/conf/{}", case.file.0);
        node.disk.put_there(&path, case.file.1.replace("ptp\"", "ptp\",\"new\":\"1\"").as_bytes(), 0o600);
        at_each_write(&node, |node| _ = node.install(false), |node| assert!(node.times() <= 1, "{case:?}"));
    }
    let [in_place, _, owned, drop_in, _] = CASES;
    for (from, to) in [(in_place, drop_in), (drop_in, in_place), (in_place, owned), (owned, drop_in)] {
        let node = Node::new(&from);
        assert!(node.install(true));
        let moved = Node::on(node.disk, to.options);
        let old_runtime = |node: &Node| if to.options.is_empty() { node.times() } else { 0 };
        at_each_write(
            &moved,
            |node| _ = node.install(true),
            |node| {
                assert!(node.times() <= 1 && old_runtime(node) <= 1, "{from:?} {to:?}");
                let again = node.with(node.disk.after_crash());
                assert!(again.install(true));
            },
        );
    }
}

#[test]
fn mode_and_label_of_the_primarys_file_and_of_plugins_are_kept() {
    for case in &CASES {
        let node = Node::new(case);
        assert!(node.install(true));
        let attributes = |path: &str| node.disk.attributes(Path::new(path)).unwrap();
        let primary = attributes(&format!("/conf/{}", case.file.0));
        assert_eq!((primary.mode, primary.label), (0o600, Some(b"etc_t".to_vec())));
        let plugin = attributes("/bin/sluice-cni");
        assert_eq!((plugin.mode, plugin.label), (0o755, Some(b"etc_t".to_vec())));
        if node.disk.stamp(Path::new("/conf/00-sluice.conflist")).is_ok() {
            assert_eq!(attributes("/conf/00-sluice.conflist").mode, 0o600);
        }
    }
}

#[test]
fn nothing_is_added_before_the_agent_serves_and_then_for_good() {
    for case in &CASES {
        let node = Node::new(case);
        let before = node.disk.below("/conf");
        assert!(!node.install(false), "{case:?}");
        assert_eq!(node.disk.below("/conf"), before, "{case:?}");
        assert!(node.disk.stamp(Path::new("/bin/sluice-cni")).is_ok(), "the plugin is there in time");
        assert!(node.install(true), "{case:?}");
        // A reboot on which the primary writes its file anew, with the agent not up yet.
        node.disk.put_there(&format!("/conf/{}", case.file.0), case.file.1.as_bytes(), 0o600);
        assert!(node.install(false), "{case:?}");
        assert_eq!(node.times(), 1, "{case:?}");
    }
}

#[test]
fn nothing_is_written_when_all_is_as_it_should_be() {
    for case in &CASES {
        let node = Node::new(case);
        assert!(node.install(true));
        let mut keeper = node.keeper().unwrap();
        keeper.turn(Duration::ZERO, || Ok(()));
        let before = node.disk.operations();
        for second in 1..100 {
            keeper.turn(Duration::from_secs(second), || Ok(()));
        }
        assert_eq!(node.disk.operations(), before, "{case:?}");
    }
}

#[test]
fn a_full_disk_stops_the_installation_and_no_pod() {
    for case in &CASES {
        let node = Node::new(case);
        node.disk.full.set(true);
        assert!(!node.install(true), "{case:?}");
        assert_eq!(node.times(), 0, "{case:?}");
        node.disk.full.set(false);
        assert!(node.install(true), "{case:?}");
    }
}

#[test]
fn our_entry_is_taken_out_when_the_plugin_is_gone_and_cannot_be_put_back() {
    let node = Node::new(&CASES[0]);
    assert!(node.install(true));
    let mut keeper = node.keeper().unwrap();
    keeper.turn(Duration::ZERO, || Ok(()));
    node.disk.remove(Path::new("/bin/sluice-cni")).unwrap();
    node.disk.full.set(true);
    for second in 1..5 {
        keeper.turn(Duration::from_secs(second), || Ok(()));
    }
    assert_eq!(keeper.state().state, State::Blocked);
    assert!(keeper.state().message.contains("/bin/sluice-cni"), "{}", keeper.state().message);
    assert_eq!(node.times(), 0);
    node.disk.full.set(false);
    for second in 5..10 {
        keeper.turn(Duration::from_secs(second), || Ok(()));
    }
    assert_eq!((keeper.state().state, node.times()), (State::Chained, 1));
}

#[test]
fn our_own_list_is_gone_as_soon_as_the_primarys_is() {
    let Case { options, .. } = CASES[2];
    let node = Node::new(&CASES[2]);
    assert!(node.install(true));
    let mut keeper = node.keeper().unwrap();
    keeper.turn(Duration::ZERO, || Ok(()));
    node.disk.remove(Path::new("/conf/10-p.conflist")).unwrap();
    keeper.turn(Duration::from_millis(1), || Ok(()));
    assert_eq!(node.starts(), Err("no configuration".to_owned()), "the node is NotReady, as without us");
    node.disk.put_there("/conf/10-p.conflist", LIST.as_bytes(), 0o600);
    for tenth in 1..20 {
        keeper.turn(Duration::from_millis(100 * tenth), || Ok(()));
    }
    assert_eq!(node.times(), 1, "{options:?}");
}

const ISTIOS: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"net\", \"plugins\": [{\"type\": \"ptp\"}, {\"type\": \
                      \"istio-cni\", \"ambient_enabled\": true}] }\n";

#[test]
fn a_replacement_of_istio_cni_that_ends_anywhere_leaves_it_or_us_in_the_chain() {
    let own = ("/conf/02-istio-cni.conflist", "/conf/YYY-istio-cni.conf");
    for options in
        [&["--replace-istio-cni=always"][..], &["--replace-istio-cni=always", "--runtime=containerd://2.1.0"]]
    {
        let case = Case { file: ("10-p.conflist", ISTIOS), options, neighbour: false };
        for with_files in [false, true] {
            let node = Node::new(&case);
            node.disk.put_there("/bin/istio-cni", b"ELF", 0o755);
            if with_files {
                node.disk.put_there(own.0, ISTIOS.as_bytes(), 0o600);
                let alone = "{\"name\":\"istio-cni\",\"type\":\"istio-cni\",\"ambient_enabled\":true}";
                node.disk.put_there(own.1, alone.as_bytes(), 0o600);
            }
            at_each_write(
                &node,
                |node| _ = node.install(true),
                |node| {
                    let types = node.starts().unwrap();
                    let meshed = |kind: &String| kind == "istio-cni" || kind == "sluice-cni";
                    assert!(types.iter().any(meshed), "{options:?} {with_files}: {types:?}");
                    let again = node.with(node.disk.after_crash());
                    assert!(again.install(true));
                    assert_eq!(again.starts().unwrap(), ["ptp", "sluice-cni"], "{options:?} {with_files}");
                    again.uninstall().unwrap();
                    assert_eq!(again.starts().unwrap(), ["ptp"], "it does not come back");
                },
            );
        }
    }
}

#[test]
fn istio_cni_stays_until_the_agent_has_seen_it_gone() {
    let node = Node::new(&Case { file: ("10-p.conflist", ISTIOS), options: &[], neighbour: false });
    node.disk.put_there("/bin/istio-cni", b"ELF", 0o755);
    let mut keeper = node.keeper().unwrap();
    let mut now = Duration::ZERO;
    let mut turns = |node: &Node, keeper: &mut crate::keeper::Keeper<'_, _>| {
        for _ in 0..6 {
            now += Duration::from_millis(500);
            keeper.turn(now, || Ok(()));
        }
        node.starts().unwrap()
    };
    assert_eq!(turns(&node, &mut keeper), ["ptp", "istio-cni", "sluice-cni"]);
    assert_eq!(keeper.state().istio, ["10-p.conflist has istio-cni's entry"]);
    node.disk.put_there("/run/predecessor.json", b"{\"version\":1,\"gone\":false}", 0o600);
    assert_eq!(turns(&node, &mut keeper), ["ptp", "istio-cni", "sluice-cni"]);
    node.disk.put_there("/run/predecessor.json", b"{\"version\":1,\"gone\":true}", 0o600);
    assert_eq!(turns(&node, &mut keeper), ["ptp", "sluice-cni"]);
    assert!(keeper.state().istio.is_empty());
}
