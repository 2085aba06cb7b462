//! The life of the process: agents that come and go, drains, kills, and two at once.

use crate::Test;
use crate::agent::Answer;
use crate::apps::{Call, echo};
use crate::lab::{Lab, Netns, PATIENCE};
use crate::protocol::{is_served, is_soon_not_served};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("connections outlive the agent", agent_dies),
    ("Del cuts the pod's connections", del_cuts),
    ("SIGTERM lets connections end", drains),
    ("a drain has an end", drain_ends),
    ("after SIGKILL the next one serves", killed),
    ("two serve one pod", two_at_once),
    ("500 pods are served within seconds", five_hundred),
    ("it waits for an agent", waits_for_an_agent),
    ("it does not start without its workloads", no_workloads),
];

fn agent_dies() {
    let lab = Lab::new();
    let (mut agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    let mut call = Call::open(&lab.a, "10.244.0.3:8080");
    call.seen_as();
    agent.close();
    standin.wait("disconnected");
    call.echo(b"nobody is listening");
    drop(agent);
    let mut agent = lab.agent();
    agent.accept();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    agent.add("ub", "pod-b", &lab.b).expect_ack();
    agent.snapshot_sent().expect_ack();
    call.echo(b"somebody is again");
    call.finish(36);
    assert_eq!(standin.terminate(), 0);
}

fn del_cuts() {
    let lab = Lab::new();
    let (mut agent, _standin) = lab.serve_both(&[]);
    echo(&lab.outside, "[::]:9090");
    let mut call = Call::open(&lab.a, "10.244.0.1:9090");
    call.seen_as();
    agent.del("ua").expect_ack();
    is_soon_not_served(&lab.a);
    assert_eq!(call.line(), "", "the connection has ended");
}

fn drains() {
    let lab = Lab::new();
    let (agent, mut standin) = lab.serve_both(&["--drain-seconds", "60"]);
    echo(&lab.b, "[::]:8080");
    let mut call = Call::open(&lab.a, "10.244.0.3:8080");
    call.seen_as();
    standin.signal(Signal::SIGTERM);
    assert_eq!(agent.answer(PATIENCE), Answer::Closed, "the agent is left first");
    is_soon_not_served(&lab.a);
    is_soon_not_served(&lab.b);
    call.echo(b"still here");
    assert!(standin.is_running());
    call.finish(10);
    assert_eq!(standin.exit_code(), 0);
}

fn drain_ends() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&["--drain-seconds", "1"]);
    echo(&lab.b, "[::]:8080");
    let mut call = Call::open(&lab.a, "10.244.0.3:8080");
    call.seen_as();
    let asked = Instant::now();
    assert_eq!(standin.terminate(), 0);
    assert!(asked.elapsed() >= Duration::from_secs(1), "it did not wait");
    assert_ne!(standin.wait("exit")["cut"], 0);
}

fn killed() {
    let lab = Lab::new();
    let (mut agent, standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    Call::open(&lab.a, "10.244.0.3:8080").seen_as();
    drop(standin);
    let standin = lab.standin(&[]);
    agent.accept();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    agent.add("ub", "pod-b", &lab.b).expect_ack();
    agent.snapshot_sent().expect_ack();
    standin.wait("ready");
    let mut call = Call::open(&lab.a, "10.244.0.3:8080");
    assert_eq!(call.seen_as(), "10.244.0.2");
    call.finish(0);
}

fn two_at_once() {
    let lab = Lab::new();
    let (mut agent, mut old) = lab.serve_both(&["--drain-seconds", "60"]);
    echo(&lab.b, "[::]:8080");
    let mut early = Call::open(&lab.a, "10.244.0.3:8080");
    early.seen_as();
    // The scripted agent has one session: the old one's is closed by the new one's, and its pods go on.
    let mut new = lab.standin(&[]);
    new.wait("connected");
    agent.accept();
    agent.add("ua", "pod-a", &lab.a).expect_ack();
    agent.add("ub", "pod-b", &lab.b).expect_ack();
    agent.snapshot_sent().expect_ack();
    new.wait("ready");
    old.signal(Signal::SIGTERM);
    early.echo(b"by the old one");
    early.finish(14);
    assert_eq!(old.exit_code(), 0);
    assert!(is_served(&lab.a) && is_served(&lab.b));
    assert_eq!(Call::open(&lab.a, "10.244.0.3:8080").seen_as(), "10.244.0.2");
    assert_eq!(new.terminate(), 0);
}

fn five_hundred() {
    let lab = Lab::unredirected();
    let mut agent = lab.agent();
    let mut standin = lab.standin(&[]);
    agent.accept();
    let pods: Vec<_> = (0..500).map(|_| Netns::new()).collect();
    pods.iter().for_each(|pod| pod.sh("ip link set lo up"));
    let began = Instant::now();
    for (n, pod) in pods.iter().enumerate() {
        agent.add(&format!("u{n}"), "pod-a", pod).expect_ack();
    }
    agent.snapshot_sent().expect_ack();
    // An agent has two seconds for this, with its own work; a busy machine has more here.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(is_served(&pods[0]) && is_served(&pods[499]));
    assert_eq!(standin.terminate(), 0);
}

fn waits_for_an_agent() {
    let lab = Lab::new();
    let mut standin = lab.standin(&[]);
    standin.wait("no-agent");
    std::thread::sleep(Duration::from_secs(2));
    // After 20, 60, 140, 300, 620 and 1260 ms, and later on a busy machine.
    let tries = standin.events("no-agent").len();
    assert!((2..=8).contains(&tries), "{tries} tries in two seconds");
    let mut agent = lab.agent();
    agent.accept();
    agent.snapshot_sent().expect_ack();
    standin.wait("ready");
    assert_eq!(standin.terminate(), 0);
}

fn no_workloads() {
    let lab = Lab::unredirected();
    std::fs::remove_file(lab.workloads()).expect("remove");
    let mut standin = lab.standin(&[]);
    assert_eq!(standin.exit_code(), 1);
}
