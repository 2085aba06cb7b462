//! Nodes on which nothing is as it should be: each thing is said, and nothing is waited for.

use crate::node::{FakeKernel, KINDNET, Node};
use crate::{gather, ids, program, report};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sluice_agent::dial;
use sluice_shared::doctor::{Report, Severity, Unseen, diagnose};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::mpsc;
use std::time::Duration;

/// Longer than anything here takes on a machine that is busy, and far shorter than for ever.
const FOR_EVER: Duration = Duration::from_secs(120);

const NOTES: [&str; 5] = [
    "run/sluice/runtime.json",
    "run/sluice/intent.json",
    "run/sluice/install.json",
    "var/lib/sluice/lease.json",
    "var/lib/sluice/membership.json",
];
const PROC: [&str; 6] = [
    "proc/1/mounts",
    "proc/1/net/dev",
    "proc/1/net/route",
    "proc/sys/net/ipv4/ip_forward",
    "proc/sys/fs/inotify/max_user_instances",
    "proc/sys/kernel/random/boot_id",
];

/// Looks at the node, and fails when that does not end.
fn in_time(node: Node) -> (Node, Report) {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let report = report(&node);
        // Nobody listens any more when the test has failed.
        let _ = send.send((node, report));
    });
    receive.recv_timeout(FOR_EVER).expect("it neither hangs nor panics")
}

fn fifo(node: &Node, path: &str) {
    let path = node.path(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(&path);
    mkfifo(&path, Mode::from_bits_truncate(0o666)).unwrap();
}

/// A file of this length that takes no room.
fn long(node: &Node, path: &str, length: u64) {
    node.write(path, "");
    File::options().write(true).open(node.path(path)).unwrap().set_len(length).unwrap();
}

fn the<'a>(report: &'a Report, id: &str) -> &'a sluice_shared::doctor::Finding {
    let found = report.findings.iter().find(|finding| finding.id == id);
    found.unwrap_or_else(|| panic!("no {id} in {report:#?}"))
}

fn unseen<'a>(report: &'a Report, check: &str) -> &'a Unseen {
    let found =
        report.not_looked_at.iter().find(|unseen| unseen.checks.contains(&check) && !unseen.not_asked_for);
    found.unwrap_or_else(|| panic!("{check} was looked at: {report:#?}"))
}

#[test]
fn a_fifo_is_not_waited_for() {
    let node = Node::new();
    fifo(&node, "etc/cni/net.d/05-a.conflist");
    fifo(&node, "etc/cni/net.d/kindnet/90-sluice.conf");
    fifo(&node, "opt/cni/bin/sluice-cni");
    fifo(&node, "ours/sluice-cni");
    NOTES.iter().for_each(|note| fifo(&node, note));
    let (node, report) = in_time(node);
    assert!(the(&report, "cni-primary").what.contains("05-a.conflist"), "{report:#?}");
    assert!(the(&report, "cni-primary").evidence[0].value.contains("no regular file"), "{report:#?}");
    assert!(the(&report, "plugin-file").what.contains("is no file"), "{report:#?}");
    assert_eq!(report.findings.iter().filter(|finding| finding.id == "notes").count(), NOTES.len());
    drop(node);

    let node = Node::new();
    PROC.iter().for_each(|file| fifo(&node, file));
    let (_, report) = in_time(node);
    for check in ["cgroup-v2", "node-local-dns", "rp-filter", "ip-forward", "limits", "lease"] {
        assert!(unseen(&report, check).why.contains("no regular file"), "{check}: {report:#?}");
    }
}

#[test]
fn a_file_without_end_is_not_read() {
    let node = Node::new();
    for file in ["etc/cni/net.d/05-a.conflist", "opt/cni/bin/sluice-cni", "ours/sluice-cni"] {
        long(&node, file, 1 << 40);
    }
    // Of another length: they are compared no further.
    long(&node, "ours/sluice-cni", (1 << 40) + 1);
    NOTES.iter().for_each(|note| long(&node, note, 1 << 40));
    long(&node, "proc/1/mounts", 1 << 40);
    let (_, report) = in_time(node);
    assert_eq!(the(&report, "cni-primary").evidence[0].value, "it has more than 1048576 bytes");
    assert_eq!(the(&report, "plugin-stale").severity, Severity::Note);
    assert!(the(&report, "notes").evidence[0].value.contains("it has more than"), "{report:#?}");
    assert!(unseen(&report, "cgroup-v2").why.contains("it has more than"), "{report:#?}");
}

#[test]
fn links_that_lead_in_circles_or_out_of_the_node() {
    let node = Node::bare();
    node.make("etc/cni");
    symlink("net.d", node.path("etc/cni/net.d")).unwrap();
    symlink("/opt/cni/bin", node.path("opt")).unwrap();
    let (_, report) = in_time(node);
    for check in ["cni-primary", "cni-way", "cni-directory"] {
        assert!(unseen(&report, check).why.contains("Too many levels"), "{check}: {report:#?}");
    }

    let node = Node::new();
    symlink("00-loop.conflist", node.path("etc/cni/net.d/00-loop.conflist")).unwrap();
    let (_, report) = in_time(node);
    assert!(the(&report, "cni-primary").what.contains("00-loop.conflist"), "{report:#?}");

    // An absolute link means a file of the node, and not of whoever looks.
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("primary.conflist");
    std::fs::write(&target, "outside the node").unwrap();
    let node = Node::bare();
    node.make("etc/cni/net.d");
    node.write("var/lib/cni/primary.conflist", KINDNET);
    symlink("/var/lib/cni/primary.conflist", node.path("etc/cni/net.d/10-kindnet.conflist")).unwrap();
    symlink(&target, node.path("etc/cni/net.d/05-outside.conflist")).unwrap();
    symlink(outside.path(), node.path("etc/cni/net.d/05-outside")).unwrap();
    let cni = gather(&node.options(), &FakeKernel::default()).cni.unwrap();
    let texts: Vec<_> = cni.directory.files.iter().map(|file| file.text.clone().unwrap()).collect();
    assert_eq!(texts, [KINDNET]);
}

#[test]
fn broken_json_is_a_finding_whatever_it_is() {
    let deep = "[".repeat(100_000);
    let many = format!("{{\"plugins\":[{}{{\"type\":\"ptp\"}}]}}", "{\"type\":1},".repeat(1000));
    for text in
        ["", "{", "null", "[]", "\"text\"", "{\"plugins\":[]}", "{\"plugins\":null,\"type\":7}", &deep, &many]
    {
        let node = Node::new();
        node.write("etc/cni/net.d/05-a.conflist", text);
        let (_, report) = in_time(node);
        let said = ids(&report, Severity::Problem);
        let shown = &text[..text.len().min(40)];
        assert!(said.contains(&"cni-primary") || said.contains(&"cni-way"), "{shown:?}: {report:#?}");
    }
    let bytes: [&[u8]; 3] = [b"\xff\xfe{", b"\0\0\0", b"{\"a\":\"\xc3"];
    for text in bytes {
        let node = Node::new();
        std::fs::write(node.path("etc/cni/net.d/05-a.conflist"), text).unwrap();
        NOTES.iter().for_each(|note| {
            node.write(note, "");
            std::fs::write(node.path(note), text).unwrap();
        });
        let (_, report) = in_time(node);
        assert_eq!(the(&report, "cni-primary").severity, Severity::Problem);
        assert_eq!(report.findings.iter().filter(|finding| finding.id == "notes").count(), NOTES.len());
    }
}

#[test]
fn numbers_that_no_kernel_has() {
    let most = u64::MAX.to_string();
    for (count, max) in [(most.as_str(), most.as_str()), (&most, "1"), ("0", "0"), ("-1", "99"), ("", "x")] {
        let node = Node::new();
        node.write("proc/sys/net/netfilter/nf_conntrack_count", count);
        node.write("proc/sys/net/netfilter/nf_conntrack_max", max);
        let (_, report) = in_time(node);
        let full = max != "0" && count == most;
        assert_eq!(report.findings.iter().any(|finding| finding.id == "conntrack"), full, "{count} of {max}");
    }
    let node = Node::new();
    node.write("proc/sys/net/ipv4/ip_forward", "perhaps");
    let lease = |renewed: u64| {
        format!(
            "{{\"version\":1,\"boot\":\"b2d0a5de\",\"renewed\":{renewed},\"horizon\":0,\"released\":false}}"
        )
    };
    node.write("var/lib/sluice/lease.json", &lease(u64::MAX));
    let (_, report) = in_time(node);
    assert!(unseen(&report, "ip-forward").why.contains("perhaps"), "{report:#?}");
    assert!(the(&report, "lease").what.contains("has not come yet"), "{report:#?}");
}

#[test]
fn what_a_crash_of_the_installer_s_has_left_is_no_entry() {
    let node = Node::new();
    node.write("etc/cni/net.d/.sluice-1-2.tmp/90-sluice.conf", "{}");
    node.write("etc/cni/net.d/.sluice-1-3.tmp", "{}");
    let (node, report) = in_time(node);
    assert!(!report.findings.iter().any(|finding| finding.id == "leftover"), "{report:#?}");
    node.write("etc/cni/net.d/kindnet/90-sluice.conf", "{}");
    let (_, report) = in_time(node);
    assert!(the(&report, "leftover").what.contains("our entry is in the chain"), "{report:#?}");
}

#[test]
fn a_directory_that_is_none_of_a_runtime_s() {
    let node = Node::new();
    for number in 0..1001 {
        node.write(&format!("etc/cni/net.d/{number}.conf"), "");
    }
    let (node, report) = in_time(node);
    assert!(unseen(&report, "cni-primary").why.contains("more than 1000"), "{report:#?}");
    std::fs::remove_dir_all(node.path("etc/cni/net.d")).unwrap();
    node.write("etc/cni/net.d", "a file");
    let (_, report) = in_time(node);
    assert!(unseen(&report, "cni-primary").why.contains("Not a directory"), "{report:#?}");
}

#[test]
fn a_socket_on_which_nobody_accepts() {
    let node = Node::new();
    node.make("run/istio-cni");
    node.make("run/sluice");
    let hung =
        ["run/istio-cni/pluginevent.sock", "run/sluice/admin.sock"].map(|path| Hung::at(&node.path(path)));
    let output = program(&node, &["timeout", "120"], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("! warning second-mesh: istio-cni is at work"), "{output:?}");
    assert!(text.contains("✗ problem agent: ") && text.contains("has not accepted within"), "{text}");
    drop(hung);
}

/// A process that is stopped: it listens, and as many wait for it as may.
struct Hung {
    _listener: OwnedFd,
    _waiting: Vec<UnixStream>,
}

impl Hung {
    fn at(path: &Path) -> Self {
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let wait = || dial::unix(path, Duration::from_millis(50)).ok();
        Self { _listener: listener, _waiting: std::iter::from_fn(wait).collect() }
    }
}

/// The program as somebody who may read little of the node.
fn as_nobody(node: &Node) -> Output {
    for directory in ["", "etc", "etc/cni", "opt", "opt/cni", "proc", "proc/1", "run", "var", "var/lib"] {
        node.make(directory);
        std::fs::set_permissions(node.path(directory), PermissionsExt::from_mode(0o755)).unwrap();
    }
    program(node, &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"], &[])
}

#[test]
fn who_may_not_look_is_told_so() {
    let node = Node::new();
    NOTES.iter().for_each(|note| node.write(note, "{}"));
    node.write("opt/cni/bin/sluice-cni", "");
    let closed = ["etc/cni/net.d", "opt/cni/bin", "run/sluice", "var/lib/sluice"];
    for directory in closed {
        std::fs::set_permissions(node.path(directory), PermissionsExt::from_mode(0o700)).unwrap();
    }
    let output = as_nobody(&node);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!text.contains("✗ problem"), "what may not be seen is no defect: {text}");
    for directory in [
        "/etc/cni/net.d: Permission denied",
        "/opt/cni/bin: Permission denied",
        "runtime.json: Permission denied",
    ] {
        assert!(text.contains(directory), "{directory}: {text}");
    }

    // A file that may not be read is none that cannot be understood.
    for directory in closed {
        std::fs::set_permissions(node.path(directory), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let config: PathBuf = node.path("etc/cni/net.d/10-kindnet.conflist");
    std::fs::set_permissions(config, PermissionsExt::from_mode(0o600)).unwrap();
    let output = as_nobody(&node);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("10-kindnet.conflist: Permission denied") && !text.contains("cni-primary: "),
        "{text}"
    );
}

#[test]
fn a_kernel_that_forbids_everything() {
    let mut kernel = FakeKernel::default();
    let away =
        || sluice_shared::doctor::Unlooked::new("Function not implemented (os error 38)", "another profile");
    kernel.trials.as_mut().unwrap().mark_guard = Err(away());
    let facts = gather(&Node::new().options(), &kernel);
    let report = diagnose(&facts);
    assert!(unseen(&report, "kernel-mark-guard").why.contains("not implemented"));
    assert!(!report.findings.iter().any(|finding| finding.id == "kernel-mark-guard"), "{report:#?}");
}
