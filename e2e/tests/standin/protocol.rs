//! ZDS: what each message does, and what each mistake of an agent leads to.

use crate::Test;
use crate::agent::{Agent, Answer, add, del, field};
use crate::lab::{Lab, Netns, PATIENCE, Standin, http_get};
use serde_json::Value;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("Add twice changes nothing", add_twice),
    ("Add into another namespace moves the pod", add_moves),
    ("Del stops the listeners, and may name nobody", del_stops),
    ("the snapshot's end removes what it did not name", reconcile),
    ("Del before the snapshot's end takes effect there", del_before_snapshot),
    ("a pod without lo is pending, and tried again", pending_is_retried),
    ("Keep after the snapshot is the end", || fatal(|agent| agent.keep("ua"))),
    ("a second SnapshotSent is the end", || fatal(Agent::snapshot_sent)),
    ("Add without workload_info is the end", add_without_info),
    ("a packet that is no request drops the connection", garbage),
    ("wrong descriptors drop the connection", wrong_descriptors),
    ("an empty packet is told from the end of the stream", empty_packet),
    ("a request too many is seen", pipelining),
    ("two uids in one namespace are seen", shared_namespace),
    ("what is no network namespace is seen", no_netns),
    ("a changed pod is seen", changed_info),
    ("a pod in ztunnel's own namespace is seen", own_namespace),
    ("without strict mode only ztunnel's own complaints count", not_strict),
    ("a pod can be refused on request", refused_on_request),
    ("a stand-in can hang on request", hangs_on_request),
];

/// Every listener that a served pod has; DNS over UDP is tested by its answers.
pub const LISTENING: [&str; 5] =
    ["127.0.0.1:15001", "127.0.0.1:15006", "127.0.0.1:15008", "127.0.0.1:15053", "[::1]:15053"];

pub fn is_served(pod: &Netns) -> bool {
    let open = LISTENING.map(|address| pod.inside(|| TcpStream::connect(address).is_ok()));
    assert!(open.iter().all(|one| *one == open[0]), "some listen and some do not: {open:?}");
    open[0]
}

/// Listeners go a moment after the answer.
pub fn is_soon_not_served(pod: &Netns) {
    let deadline = Instant::now() + PATIENCE;
    while LISTENING.iter().any(|address| pod.inside(|| TcpStream::connect(address).is_ok())) {
        assert!(Instant::now() < deadline, "it still listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_fault(standin: &Standin, part: &str) {
    let is_it = |e: &Value| {
        e["event"] == "protocol-error" && e["detail"].as_str().is_some_and(|said| said.contains(part))
    };
    standin.wait_for(is_it, part);
}

fn add_twice() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    assert!(is_served(&lab.a));
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    assert!(is_served(&lab.a));
    assert_eq!(standin.terminate(), 0);
    assert_eq!(standin.events("add").iter().filter(|e| e["known"] == true).count(), 1);
    assert_eq!(standin.events("add")[0]["inode"], lab.a.inode());
}

fn add_moves() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    let other = Netns::new();
    other.sh("ip link set lo up");
    agent.add("ua", "pod-a", &other).expect_ack();
    assert!(is_served(&other));
    is_soon_not_served(&lab.a);
    assert_eq!(standin.terminate(), 0);
}

fn del_stops() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    agent.del("ua").expect_ack();
    is_soon_not_served(&lab.a);
    assert!(is_served(&lab.b));
    agent.del("ua").expect_ack();
    agent.del("never heard of").expect_ack();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    assert!(is_served(&lab.a));
    assert_eq!(standin.terminate(), 0);
}

fn reconcile() {
    let lab = Lab::new();
    let (mut agent, mut standin) =
        lab.serve_both(&["--admin", "127.0.0.1:15000", "--readiness", "127.0.0.1:15021"]);
    assert!(http_get(&lab.outside, "127.0.0.1:15021", "/healthz/ready").contains("200 OK"));
    agent.close();
    standin.wait("disconnected");
    assert!(is_served(&lab.a) && is_served(&lab.b), "pods are served without an agent");
    agent.accept();
    assert!(http_get(&lab.outside, "127.0.0.1:15021", "/healthz/ready").contains(" 500 "));
    agent.keep("ub").expect_ack();
    assert!(is_served(&lab.a), "nothing goes before the snapshot's end");
    agent.snapshot_sent().expect_ack();
    is_soon_not_served(&lab.a);
    assert!(is_served(&lab.b));
    let dump = http_get(&lab.outside, "127.0.0.1:15000", "/config_dump");
    assert!(dump.contains("\"ub\"") && dump.contains("\"Up\"") && !dump.contains("\"ua\""), "{dump}");
    assert_eq!(standin.terminate(), 0);
}

fn del_before_snapshot() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    agent.close();
    agent.accept();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    agent.keep("ub").expect_ack();
    agent.del("ua").expect_ack();
    assert!(is_served(&lab.a));
    agent.snapshot_sent().expect_ack();
    is_soon_not_served(&lab.a);
    assert_eq!(standin.terminate(), 0);
}

fn pending_is_retried() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&["--admin", "127.0.0.1:15000"]);
    let pod = Netns::new();
    agent.add("uc", "pod-c", &pod).expect_nack("failure to start proxy : Bind([::1]:15053");
    let dump = || http_get(&lab.outside, "127.0.0.1:15000", "/config_dump");
    assert!(dump().contains("Pending"), "{}", dump());
    pod.sh("ip link set lo up");
    let deadline = Instant::now() + PATIENCE;
    while dump().contains("Pending") {
        assert!(Instant::now() < deadline, "it was not tried again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(is_served(&pod));
    assert_eq!(agent.answer(Duration::from_millis(200)), Answer::Silence, "nobody is told");
    assert_eq!(standin.terminate(), 0);
}

fn fatal(mistake: impl FnOnce(&mut Agent) -> Answer) {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    mistake(&mut agent).expect_nack("failure to process message : ProtocolError(");
    assert_eq!(standin.exit_code(), 1);
}

fn add_without_info() {
    let lab = Lab::new();
    fatal(|agent| agent.ask(&field(1, &field(1, b"ua")), &[lab.a.0.as_fd()]));
}

fn garbage() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    let long = field(2, &field(2, &[b'x'; 1100]));
    for (packet, part) in [(&b"\xff\xff"[..], "decode"), (b"\x22\x00", "no payload"), (&long, "longer")] {
        agent.ask(packet, &[]).expect_nack("failure to read message : ");
        assert_eq!(agent.answer(PATIENCE), Answer::Closed);
        agent.accept();
        wait_for_fault(&standin, part);
    }
    assert!(is_served(&lab.a), "the pods are served on");
    assert_eq!(standin.terminate(), 3);
}

fn wrong_descriptors() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    let fd = lab.a.0.as_fd();
    for (packet, fds) in [
        (add("ua", "pod-a"), &[][..]),
        (add("ua", "pod-a"), &[fd, fd]),
        (add("ua", "pod-a"), &[fd; 5]),
        (del("ua"), &[fd]),
    ] {
        agent.ask(&packet, fds).expect_nack("failure to read message : ");
        assert_eq!(agent.answer(PATIENCE), Answer::Closed);
        agent.accept();
    }
    assert_eq!(standin.terminate(), 3);
    assert_eq!(standin.events("protocol-error").len(), 4);
}

fn empty_packet() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    agent.close();
    agent.accept();
    assert_eq!(agent.ask(b"", &[]), Answer::Closed);
    agent.accept();
    wait_for_fault(&standin, "empty packet");
    assert_eq!(standin.terminate(), 3);
    assert_eq!(standin.events("protocol-error").len(), 1, "closing is no mistake");
}

fn pipelining() {
    let lab = Lab::new();
    let (agent, mut standin) = lab.serve_both(&[]);
    for _ in 0..20 {
        agent.send(&del("nobody"), &[]);
    }
    for _ in 0..20 {
        agent.answer(PATIENCE).expect_ack();
    }
    wait_for_fault(&standin, "before the one before was answered");
    assert_eq!(standin.terminate(), 3);
}

fn shared_namespace() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    // A restarted agent cannot take away, before the snapshot's end, what only the old one named.
    agent.close();
    agent.accept();
    agent.add("ub", "pod-b", &lab.b).expect_ack();
    agent.add("uz", "pod-a", &lab.a).expect_ack();
    agent.snapshot_sent().expect_ack();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    wait_for_fault(&standin, "where \"uz\" is still served");
    assert_eq!(standin.terminate(), 3);
    assert_eq!(standin.events("protocol-error").len(), 1);
}

fn no_netns() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    let file = std::fs::File::open("/proc/self/ns/mnt").expect("a namespace");
    let answer = agent.ask(&add("uc", "pod-a"), &[file.as_fd()]);
    answer.expect_nack("failure to start proxy : Bind(127.0.0.1:15053, Os { code: 22");
    agent.del("uc").expect_ack();
    wait_for_fault(&standin, "no network namespace");
    assert_eq!(standin.terminate(), 3);
}

fn changed_info() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    agent.add("ua", "pod-x", &lab.a).expect_ack();
    wait_for_fault(&standin, "which is known as");
    assert_eq!(standin.terminate(), 3);
}

fn own_namespace() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    agent.add("uh", "pod-h", &lab.outside).expect_ack();
    wait_for_fault(&standin, "own namespace");
    assert_eq!(standin.terminate(), 3);
}

fn not_strict() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&["--no-strict"]);
    agent.add("ua2", "pod-a", &lab.a).expect_ack();
    assert_eq!(standin.terminate(), 0);
    assert!(standin.events("protocol-error").is_empty());
}

fn refused_on_request() {
    let lab = Lab::new();
    let mut agent = lab.agent();
    let mut standin = lab.standin(&["--nack-uid", "ua"]);
    agent.accept();
    agent.add("ua", "pod-a", &lab.a).expect_nack("failure to start proxy : ");
    agent.add("ub", "pod-b", &lab.b).expect_ack();
    agent.snapshot_sent().expect_ack();
    assert!(!is_served(&lab.a) && is_served(&lab.b));
    agent.del("ua").expect_ack();
    assert_eq!(standin.terminate(), 0);
    assert!(standin.events("ready").is_empty(), "a pending pod of the snapshot holds readiness up");
}

fn hangs_on_request() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&["--hang-after", "3"]);
    agent.send(&del("nobody"), &[]);
    standin.wait("hanging");
    assert_eq!(agent.answer(Duration::from_millis(300)), Answer::Silence);
    assert!(standin.is_running() && is_served(&lab.a));
    agent.close();
    assert_eq!(standin.terminate(), 0);
}
