//! No agent: what was written down about the mesh decides, at once.

use crate::runtime::{Call, Node, Outcome, PATIENCE, Sandbox};
use crate::scripted::listening;
use nix::sys::socket::Backlog;

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
