//! `source: file`, as the reconciler hears it, however the file is changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use sluice_agent::metrics::Metrics;
use sluice_agent::source::file::FileSource;
use sluice_agent::source::{Event, Problem};
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// More than any poll or pause of the source, on a loaded machine.
const SOON: Duration = Duration::from_secs(20);
/// Long enough for a change that must not be said to have been said.
const SETTLED: Duration = Duration::from_millis(1500);

struct Fixture {
    dir: tempfile::TempDir,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
    problem: watch::Receiver<Problem>,
    metrics: Metrics,
}

impl Fixture {
    /// A source of `pods.yaml`, once `prepare` has made what is there at the start.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let path = dir.path().join("pods.yaml");
        let metrics = Metrics::new();
        let (source, problem) = FileSource::new(path.clone(), metrics.clone());
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(source.run(sender));
        Self { dir, path, events, problem, metrics }
    }

    async fn next(&mut self) -> String {
        match timeout(SOON, self.events.recv()).await.expect("no event came").unwrap() {
            Event::Pod(pod) => format!("+{}", pod.uid),
            Event::PodGone(uid) => format!("-{uid}"),
            Event::Namespace(namespace) => format!("+ns {}", namespace.name),
            Event::NamespaceGone(name) => format!("-ns {name}"),
            Event::Synced => "synced".to_owned(),
            Event::Cni(_) => unreachable!("a file has no plugin"),
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    async fn expect_problem(&mut self, what: &str) -> String {
        let seen =
            timeout(SOON, self.problem.wait_for(|now| now.as_ref().is_some_and(|now| now.contains(what))));
        seen.await.expect("no problem was said").unwrap().clone().unwrap()
    }

    async fn expect_silence(&mut self) {
        tokio::time::sleep(SETTLED).await;
        assert!(self.events.try_recv().is_err(), "something was said");
    }
}

fn with(uids: &[&str]) -> String {
    let pods = uids.iter().map(|uid| format!("- {{uid: {uid}, name: {uid}, namespace: n}}\n"));
    if uids.is_empty() { "pods: []\n".to_owned() } else { format!("pods:\n{}", pods.collect::<String>()) }
}

fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

#[tokio::test]
async fn each_way_to_change_a_file_is_seen_once() {
    let mut source = Fixture::new(|dir| fs::write(dir.join("pods.yaml"), with(&["a"])).unwrap());
    source.expect(&["+a", "synced"]).await;
    replace(&source.path, &with(&["a", "b"]));
    source.expect(&["+b"]).await;
    fs::write(&source.path, with(&["b", "c"])).unwrap();
    source.expect(&["-a", "+c"]).await;
    fs::remove_file(&source.path).unwrap();
    fs::write(&source.path, with(&["d"])).unwrap();
    source.expect(&["-b", "-c", "+d"]).await;
    replace(&source.path, &with(&["d"]));
    replace(&source.dir.path().join("other.yaml"), &with(&["x"]));
    source.expect_silence().await;
    assert_eq!(*source.problem.borrow(), None);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone() {
    let mut source = Fixture::new(|dir| fs::write(dir.join("pods.yaml"), with(&["a", "b", "c"])).unwrap());
    source.expect(&["+a", "+b", "+c", "synced"]).await;
    // Truncated, then written in parts that are each a whole document with fewer pods.
    let mut file = fs::File::create(&source.path).unwrap();
    for part in ["pods:\n", "- {uid: a, name: a, namespace: n}\n", "- {uid: b, name: b, namespace: n}\n"] {
        tokio::time::sleep(Duration::from_millis(50)).await;
        file.write_all(part.as_bytes()).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    file.write_all(b"- {uid: c, name: c, namespace: n}\n- {uid: d, name: d, namespace: n}\n").unwrap();
    drop(file);
    source.expect(&["+d"]).await;
    source.expect_silence().await;
    assert_eq!(*source.problem.borrow(), None);
}

#[tokio::test]
async fn a_file_that_is_gone_or_empty_for_a_while_takes_no_pod_away() {
    let mut source = Fixture::new(|dir| fs::write(dir.join("pods.yaml"), with(&["a"])).unwrap());
    source.expect(&["+a", "synced"]).await;
    fs::write(&source.path, "").unwrap();
    let said = source.expect_problem("the file is empty").await;
    assert!(said.ends_with("the last good version stays in force"), "{said}");
    fs::remove_file(&source.path).unwrap();
    source.expect_problem("No such file").await;
    source.expect_silence().await;
    fs::write(&source.path, with(&["a", "b"])).unwrap();
    source.expect(&["+b"]).await;
    assert_eq!(*source.problem.borrow(), None);
}

#[tokio::test]
async fn a_mistake_is_named_counted_and_changes_nothing() {
    let mut source = Fixture::new(|dir| fs::write(dir.join("pods.yaml"), "pods:\n- uid: a\n").unwrap());
    let said = source.expect_problem("line 2, column 3: pods[0]: missing field `name`").await;
    assert!(said.ends_with("nothing is known of any pod until this is put right"), "{said}");
    replace(&source.path, &with(&["a"]));
    source.expect(&["+a", "synced"]).await;
    replace(&source.path, &(with(&["a"]) + "- {uid: a, name: b, namespace: n}\n"));
    let said = source.expect_problem("pods[1].uid").await;
    assert!(said.contains("pods.yaml: line 3, column 9: pods[1].uid: a is the uid of pod n/a too"), "{said}");
    source.expect_silence().await;
    // The same mistake again is the same problem.
    replace(&source.path, &(with(&["a"]) + "- {uid: a, name: b, namespace: n}\n"));
    source.expect_silence().await;
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"file\"} 2\n"));
    replace(&source.path, &with(&["a"]));
    timeout(SOON, source.problem.wait_for(Option::is_none)).await.expect("the problem stays").unwrap();
}

#[tokio::test]
async fn a_swapped_link_is_followed() {
    // As the kubelet mounts a ConfigMap: pods.yaml → ..data/pods.yaml, ..data → ..v1, and ..data is renamed over.
    let mut source = Fixture::new(|dir| {
        fs::create_dir(dir.join("..v1")).unwrap();
        fs::write(dir.join("..v1/pods.yaml"), with(&["a"])).unwrap();
        symlink("..v1", dir.join("..data")).unwrap();
        symlink("..data/pods.yaml", dir.join("pods.yaml")).unwrap();
    });
    source.expect(&["+a", "synced"]).await;
    for (version, uid, gone) in [("..v2", "b", "-a"), ("..v3", "c", "-b")] {
        let dir = source.dir.path();
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("pods.yaml"), with(&[uid])).unwrap();
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        source.expect(&[gone, &format!("+{uid}")]).await;
    }
    // What the link leads to may also be written in place.
    fs::write(source.dir.path().join("..v3/pods.yaml"), with(&["d"])).unwrap();
    source.expect(&["-c", "+d"]).await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/later/pods.yaml");
    let (source, mut problem) = FileSource::new(path.clone(), Metrics::new());
    let (sender, mut events) = mpsc::channel(4);
    tokio::spawn(source.run(sender));
    timeout(SOON, problem.wait_for(Option::is_some)).await.unwrap().unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, with(&["a"])).unwrap();
    assert!(matches!(timeout(SOON, events.recv()).await.unwrap(), Some(Event::Pod(_))));
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let mut source = Fixture::new(|dir| {
        nix::unistd::mkfifo(&dir.join("pods.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    source.expect_problem("not a regular file").await;
    fs::remove_file(&source.path).unwrap();
    fs::create_dir(&source.path).unwrap();
    source.expect_problem("not a regular file").await;
    fs::remove_dir(&source.path).unwrap();
    fs::write(&source.path, b"pods: [\xff]\n").unwrap();
    source.expect_problem("valid UTF-8").await;
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let source = Fixture::new(|dir| fs::write(dir.join("pods.yaml"), with(&[])).unwrap());
    let mut problem = source.problem.clone();
    drop(source.events);
    // Its end of the problem's channel is dropped with it.
    let ended = async { while problem.changed().await.is_ok() {} };
    timeout(SOON, ended).await.expect("it still runs");
}
