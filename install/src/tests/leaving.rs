use super::node::{CASES, Node};
use crate::disk::Disk;
use std::path::Path;

#[test]
fn a_removal_that_ends_anywhere_leaves_a_node_on_which_pods_start_and_is_ended_by_the_next() {
    for case in &CASES {
        let fresh = Node::new(case);
        let before = fresh.disk.below("/conf");
        assert!(fresh.install(true));
        let installed = fresh.with(fresh.disk.after_crash());
        let whole = installed.with(installed.disk.after_crash());
        whole.uninstall().unwrap();
        assert_eq!(whole.disk.below("/conf"), before, "{case:?}");
        assert_eq!(whole.disk.below("/state").len(), 1, "nothing of ours: {:?}", whole.disk.below("/state"));
        assert!(whole.disk.stamp(Path::new("/bin/sluice-cni")).is_err());
        for at in 0..=whole.disk.operations() {
            let node = installed.with(installed.disk.after_crash());
            node.disk.dies_at.set(Some(at));
            let _ = node.uninstall();
            for disk in [node.disk.after_crash(), node.disk.after_power_cut()] {
                let node = node.with(disk);
                assert!(node.times() <= 1, "{case:?} {at}");
                node.uninstall().unwrap();
                node.uninstall().unwrap();
                assert_eq!(node.disk.below("/conf"), before, "{case:?} {at}");
                assert_eq!(node.temporaries(), [""; 0], "{case:?} {at}");
            }
        }
    }
}

#[test]
fn a_full_disk_keeps_nothing_of_ours_in() {
    for case in &CASES {
        let node = Node::new(case);
        let before = node.disk.below("/conf");
        assert!(node.install(true));
        node.disk.full.set(true);
        let installed = node.disk.after_crash();
        node.uninstall().unwrap();
        assert_eq!(node.disk.below("/conf"), before, "{case:?}");
        let writes = node.disk.operations() + 10;
        for at in 0..writes {
            let node = node.with(installed.after_crash());
            node.disk.full.set(true);
            node.disk.dies_at.set(Some(at));
            let _ = node.uninstall();
            assert!(node.with(node.disk.after_crash()).times() <= 1, "{case:?} {at}");
            assert!(node.with(node.disk.after_power_cut()).times() <= 1, "{case:?} {at}");
        }
    }
}

#[test]
fn what_others_have_parked_is_cleaned_too() {
    let node = Node::new(&CASES[2]);
    let before = node.disk.below("/conf");
    assert!(node.install(true));
    let bytes = node.disk.read(Path::new("/conf/00-sluice.conflist"), 1 << 20).unwrap();
    node.disk.put_there("/conf/00-sluice.conflist.cilium_bak", &bytes, 0o600);
    node.uninstall().unwrap();
    assert_eq!(node.disk.below("/conf"), before);
}
