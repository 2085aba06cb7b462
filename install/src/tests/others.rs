//! Others write the primary's file between any two calls of ours, in one go or in three, and we are killed or without
//! power at any write after that: their last word stays, to the byte.

use super::node::{CASES, Case, LIST, Node};
use crate::disk::Disk;
use crate::disk::simulated::Act;
use crate::write::is_temporary;
use sluice_shared::conflist::remove;
use std::ops::Range;
use std::path::Path;

/// The primary's file after the other's last word.
const NEWER: &str = "{\"cniVersion\": \"1.0.0\",\n \"name\": \"net\", \"mtu\": \"1450\", \"plugins\": [ {\"type\": \
                     \"ptp\", \"x\": \"2\"}]}\n";
/// What was there between.
const BETWEEN: &str =
    "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"ptp\",\"y\":\"1\"}]}\n";
const PATH: &str = "/conf/10-p.conflist";

/// A writer: what it does, each so many calls of ours after the one before.
type Writer = fn(gap: usize) -> Vec<(usize, Act)>;

const WRITERS: [(&str, Writer); 5] = [
    ("renames another file onto it", |_| vec![(0, Act::Replace(PATH, NEWER.into()))]),
    ("renames twice", |gap| {
        vec![(0, Act::Replace(PATH, BETWEEN.into())), (gap, Act::Replace(PATH, NEWER.into()))]
    }),
    ("empties it and writes it in two parts", |gap| {
        let (one, two) = NEWER.split_at(40);
        vec![(0, Act::Truncate(PATH)), (gap, Act::Write(one.into())), (gap, Act::Write(two.into()))]
    }),
    ("renames, then empties and writes", |gap| {
        vec![
            (0, Act::Replace(PATH, BETWEEN.into())),
            (gap, Act::Truncate(PATH)),
            (gap, Act::Write(NEWER.into())),
        ]
    }),
    ("removes it and writes it anew", |gap| {
        vec![(0, Act::Remove(PATH)), (gap, Act::Truncate(PATH)), (gap, Act::Write(NEWER.into()))]
    }),
];

/// Numbers of our calls instead of distances.
fn from(begin: usize, acts: Vec<(usize, Act)>) -> Vec<(usize, Act)> {
    let mut at = begin;
    let absolute = acts.into_iter().map(|(gap, act)| {
        at += gap;
        (at, act)
    });
    absolute.collect()
}

/// What a node does while somebody else writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Install,
    Repair,
    Uninstall,
}

impl Work {
    fn start(self, case: &Case) -> Node {
        let node = Node::new(case);
        if self != Self::Install {
            assert!(node.install(true));
        }
        if self == Self::Repair {
            node.disk.put_there(PATH, LIST.replace("9001", "8000").as_bytes(), 0o600);
        }
        node.with(node.disk.after_crash())
    }

    fn run(self, node: &Node) {
        match self {
            Self::Install | Self::Repair => _ = node.install(true),
            Self::Uninstall => _ = node.uninstall(),
        }
    }
}

/// Their file says what they wrote, we are in the chain once, and gone without a trace after a removal.
#[track_caller]
fn nothing_is_lost(node: &Node, what: &str) {
    node.disk.others_end();
    assert!(node.install(true), "{what}: {:#?}", node.disk);
    assert_eq!(node.times(), 1, "{what}");
    let bytes = node.disk.read(Path::new(PATH), 1 << 20).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(remove(&text).unwrap(), NEWER, "{what}");
    node.uninstall().unwrap_or_else(|e| panic!("{what}: {e:#}"));
    let left = node.disk.below("/conf");
    let odd: Vec<_> =
        left.keys().filter(|path| is_temporary(path.file_name().unwrap().to_str().unwrap())).collect();
    assert!(odd.is_empty(), "{what}: {odd:?}");
    assert_eq!(left[Path::new(PATH)].as_ref().unwrap().0, NEWER.as_bytes(), "{what}");
}

/// The writers at each call; with each of them `broken_off` says at which of our writes we are killed.
fn at_each_call(case: &Case, work: Work, broken_off: impl Fn(usize) -> Range<usize>) {
    let start = work.start(case);
    let whole = start.with(start.disk.after_crash());
    work.run(&whole);
    for (name, writer) in WRITERS {
        let acts = writer(1).len();
        for gap in if acts > 1 { vec![1, 3] } else { vec![1] } {
            for begin in start.disk.calls()..=whole.disk.calls() {
                let what = format!("{work:?} {:?}: {name}, from call {begin} on, each {gap}", case.options);
                let meanwhile = |dies_at: Option<usize>| {
                    let node = start.with(start.disk.after_crash());
                    node.disk.meanwhile(from(begin, writer(gap)));
                    node.disk.dies_at.set(dies_at);
                    work.run(&node);
                    node
                };
                let undisturbed = meanwhile(None);
                let made = undisturbed.disk.operations_at(begin);
                for at in broken_off(made) {
                    let killed = meanwhile(Some(at));
                    nothing_is_lost(
                        &killed.with(killed.disk.after_crash()),
                        &format!("{what}, killed at {at}"),
                    );
                    // Who was writing is without power too, and writes again when it is back.
                    if acts == 1 {
                        let dark = killed.with(killed.disk.after_power_cut());
                        dark.disk.meanwhile(from(0, writer(gap)));
                        nothing_is_lost(&dark, &format!("{what}, without power at {at}"));
                    }
                }
                nothing_is_lost(&undisturbed, &what);
            }
        }
    }
}

#[test]
fn what_others_write_meanwhile_is_not_lost_when_we_end_anywhere() {
    // What we had done before they began is what the other tests look at.
    for work in [Work::Install, Work::Repair, Work::Uninstall] {
        at_each_call(&CASES[0], work, |made| made..made + 7);
    }
}

#[test]
fn what_others_write_meanwhile_is_not_lost_whatever_the_way() {
    let [_, _, owned, drop_in, _] = CASES;
    for case in [owned, drop_in] {
        for work in [Work::Install, Work::Repair, Work::Uninstall] {
            at_each_call(&case, work, |_| 0..0);
        }
    }
}
