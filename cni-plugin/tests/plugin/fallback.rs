//! No agent: what was written down about the mesh decides: at once who starts, and until the deadline who waits.

use crate::runtime::{Call, Node, Outcome, PATIENCE, Sandbox};
use crate::scripted::{Agent, Script, listening};
use nix::sys::socket::Backlog;
use serde_json::json;
use sluice_shared::install::Lease;
use std::time::Duration;

const RESULT: &str = r#"{"cniVersion":"1.0.0","ips":[]}"#;

fn run(verb: &str, node: &Node, sandbox: &Sandbox, namespace: &str) -> Outcome {
    Call::new(verb, node.conf("1.0.0", Some(RESULT))).netns(sandbox).pod(namespace, "cart").run()
}

#[test]
fn each_standing_with_each_choice() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let table = [
        ("auto", [("in", true), ("out", false), ("held", true), ("new", false)]),
        ("fail-closed", [("in", true), ("out", false), ("held", true), ("new", true)]),
        ("pass", [("in", true), ("out", false), ("held", false), ("new", false)]),
    ];
    for (choice, cells) in table {
        let file = format!(
            r#"{{"version":1,"whenAgentUnavailable":"{choice}","namespaces":{{"in":"in","out":"out","held":"held"}}}}"#
        );
        std::fs::write(node.membership(), file).unwrap();
        for (namespace, waits) in cells {
            for verb in ["ADD", "CHECK"] {
                let outcome = run(verb, &node, &sandbox, namespace);
                if waits {
                    let msg = outcome.error("1.0.0", 11);
                    assert!(msg.contains(&format!("sluicectl why {namespace}/cart")), "{choice}: {msg}");
                    assert!(msg.contains("agent.sock"), "{choice}: {msg}");
                } else {
                    outcome.printed(if verb == "ADD" { RESULT } else { "" });
                    assert!(outcome.stderr.contains("outside the mesh for now"), "{choice}: {outcome:?}");
                }
            }
        }
    }
}

#[test]
fn no_file_means_that_nothing_is_in_the_mesh_yet() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    run("ADD", &node, &sandbox, "shop").printed(RESULT);
}

#[test]
fn a_file_that_cannot_be_read_is_not_an_absent_one() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let files: [&[u8]; 6] = [
        b"",
        b"{",
        b"\x00\x00\x00\x00\x00\x00",
        br#"{"version":2,"namespaces":{"shop":"out"}}"#,
        br#"{"version":1,"namespaces":{"shop":"perhaps"}}"#,
        &[b' '; 4 * 1024 * 1024 + 1],
    ];
    let closed = || {
        let outcome = run("ADD", &node, &sandbox, "shop");
        outcome.error("1.0.0", 11);
        assert!(outcome.stderr.contains("membership.json cannot be read"), "{outcome:?}");
        run("ADD", &node, &sandbox, "kube-system").printed(RESULT);
        let ztunnel = Call::new("ADD", node.conf("1.0.0", Some(RESULT))).netns(&sandbox);
        ztunnel.pod("istio-system", "ztunnel-1").run().printed(RESULT);
    };
    for file in files {
        std::fs::write(node.membership(), file).unwrap();
        closed();
    }
    std::fs::remove_file(node.membership()).unwrap();
    std::fs::create_dir(node.membership()).unwrap();
    closed();
}

#[test]
fn a_socket_that_nobody_listens_on_is_an_absent_agent() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    drop(listening(&node, Backlog::new(1).unwrap()));
    assert!(node.socket().exists());
    let outcome = run("ADD", &node, &sandbox, "shop");
    outcome.printed(RESULT);
    assert!(outcome.took < PATIENCE && outcome.stderr.contains("refused"), "{outcome:?}");
}

#[test]
fn what_an_uninstall_has_left_behind_holds_nobody_back() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    std::fs::write(node.membership(), r#"{"version":1,"namespaces":{"shop":"in"}}"#).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec();
    let now = u64::try_from(uptime).unwrap();
    let lease = |boot: &str, renewed: u64, horizon: u64, released: bool| {
        let lease = Lease { version: 1, boot: boot.to_owned(), renewed, horizon, released };
        std::fs::write(node.lease(), lease.to_bytes()).unwrap();
        ["ADD", "CHECK"].map(|verb| run(verb, &node, &sandbox, "shop"))
    };
    let waits = |outcomes: [Outcome; 2]| outcomes.map(|outcome| outcome.error("1.0.0", 11));
    let passes = |outcomes: [Outcome; 2], why: &str| {
        outcomes[0].printed(RESULT);
        outcomes[1].printed("");
        assert!(outcomes.iter().all(|outcome| outcome.stderr.contains(why)), "{outcomes:?}");
    };
    let long_ago = now.saturating_sub(30);
    passes(lease(&boot, now, 3600, true), "uninstalled");
    passes(lease(&boot, long_ago, 0, false), "longer than its lease");
    passes(lease("an older boot", u64::MAX, 0, false), "longer than its lease");
    waits(lease(&boot, now, 3600, false));
    waits(lease(&boot, long_ago, 3600, false));
    // The clock of this boot counts, not how long the node was off.
    waits(lease("an older boot", 0, now + 3600, false));
    std::fs::write(node.lease(), "garbage").unwrap();
    run("ADD", &node, &sandbox, "shop").error("1.0.0", 11);
}

/// An ADD that may take ten seconds, and what is done half a second after it began.
fn meanwhile<T: Send>(node: &Node, sandbox: &Sandbox, then: impl FnOnce() -> T + Send) -> (Outcome, T) {
    let conf = node.conf_with("1.0.0", Some(RESULT), &json!({"timeoutSeconds": 10}));
    std::thread::scope(|scope| {
        let call = Call::new("ADD", conf).netns(sandbox);
        let add = scope.spawn(|| call.run());
        std::thread::sleep(Duration::from_millis(500));
        let then = then();
        (add.join().unwrap(), then)
    })
}

#[test]
fn an_agent_that_is_being_replaced_is_waited_for() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    std::fs::write(node.membership(), r#"{"version":1,"namespaces":{"shop":"in"}}"#).unwrap();
    let (outcome, agent) = meanwhile(&node, &sandbox, || Agent::start(&node, Script::ok("captured")));
    outcome.printed(RESULT);
    assert_eq!(agent.request().files.len(), 1, "the netns comes with the question that is answered");
    drop(agent);
    // One that goes with the question in its hands, and its successor.
    std::fs::remove_file(node.socket()).unwrap();
    let first = Agent::start(&node, Script::HangUp);
    let (outcome, second) = meanwhile(&node, &sandbox, || {
        drop(first);
        std::fs::remove_file(node.socket()).unwrap();
        Agent::start(&node, Script::ok("captured"))
    });
    outcome.printed(RESULT);
    assert!(second.was_asked());
}

#[test]
fn whoever_waits_when_sluice_is_uninstalled_waits_no_longer() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    std::fs::write(node.membership(), r#"{"version":1,"namespaces":{"shop":"in"}}"#).unwrap();
    let released = Lease { version: 1, boot: String::new(), renewed: 0, horizon: 0, released: true };
    let (outcome, ()) =
        meanwhile(&node, &sandbox, || std::fs::write(node.lease(), released.to_bytes()).unwrap());
    outcome.printed(RESULT);
    assert!(outcome.stderr.contains("uninstalled"), "{outcome:?}");
}

#[test]
fn a_wait_in_vain_is_told_once() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    std::fs::write(node.membership(), "garbage").unwrap();
    let outcome = run("ADD", &node, &sandbox, "shop");
    outcome.error("1.0.0", 11);
    assert!(outcome.took >= Duration::from_secs(1) && outcome.took < PATIENCE, "{outcome:?}");
    assert_eq!(outcome.stderr.matches("membership.json cannot be read").count(), 1, "{outcome:?}");
}
