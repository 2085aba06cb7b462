//! What an agent may answer, and what it may do instead.

use crate::runtime::{Call, Node, Outcome, PATIENCE, Sandbox};
use crate::scripted::{Agent, Script, listening};
use nix::sys::socket::Backlog;
use serde_json::json;
use std::os::unix::net::UnixListener;
use std::time::Duration;

const IN_MESH: &str = r#"{"version":1,"namespaces":{"shop":"in"}}"#;
const OUTSIDE: &str = r#"{"version":1,"namespaces":{"shop":"out"}}"#;

/// An ADD with a deadline of one second.
fn add(node: &Node, sandbox: &Sandbox) -> Outcome {
    let conf = node.conf_with("1.0.0", Some("{ }"), &json!({"timeoutSeconds": 1}));
    Call::new("ADD", conf).netns(sandbox).run()
}

/// With this agent a pod of the mesh gets `code`, and a pod outside it starts.
#[track_caller]
fn by_membership(script: Script, code: u32, said: &str) {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, script);
    std::fs::write(node.membership(), IN_MESH).unwrap();
    let inside = add(&node, &sandbox);
    let msg = inside.error("1.0.0", code);
    assert!(msg.contains(said), "{msg}");
    assert!(msg.contains("pod shop/cart waits for") && msg.contains("sluicectl why shop/cart"), "{msg}");
    std::fs::write(node.membership(), OUTSIDE).unwrap();
    let outside = add(&node, &sandbox);
    outside.printed("{ }");
    assert!(outside.stderr.contains(said), "{outside:?}");
}

#[test]
fn a_refusal_keeps_its_code_and_words() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let words = "pod shop/cart waits for ztunnel: none is connected";
    let _agent = Agent::start(&node, Script::error(11, words, "waited \"9\" s\nline two"));
    let outcome = add(&node, &sandbox);
    assert_eq!(outcome.error("1.0.0", 11), words);
    assert!(outcome.stdout.contains(r#""details":"waited \"9\" s\nline two""#), "{outcome:?}");
}

#[test]
fn a_refusal_without_a_code_gets_one() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::error(0, "no", ""));
    assert_eq!(add(&node, &sandbox).error("1.0.0", 100), "no");
}

/// Stopped, or out of its wits: it is there, and takes nothing.
#[test]
fn an_agent_that_reads_nothing_is_given_up_where_the_namespace_is_outside() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    // Room for the first two callers; the connection of any other one is not even queued.
    let _never_accepts = listening(&node, Backlog::new(1).unwrap());
    let conf = node.conf_with("1.0.0", Some("{ }"), &json!({"timeoutSeconds": 3}));
    let add = || Call::new("ADD", conf.clone()).netns(&sandbox).run();
    std::fs::write(node.membership(), OUTSIDE).unwrap();
    for _ in 0..3 {
        let outside = add();
        outside.printed("{ }");
        assert!(outside.stderr.contains("has not read the question"), "{outside:?}");
    }
    for unsure in [IN_MESH, r#"{"version":1,"namespaces":{}}"#] {
        std::fs::write(node.membership(), unsure).unwrap();
        let waits = add();
        let said = format!("{}{}", waits.stdout, waits.stderr);
        assert!(said.contains("waited 3000 ms"), "{waits:?}");
    }
}

#[test]
fn an_agent_that_has_read_the_question_may_take_its_time() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::Hang);
    std::fs::write(node.membership(), OUTSIDE).unwrap();
    let conf = node.conf_with("1.0.0", Some("{ }"), &json!({"timeoutSeconds": 3}));
    let outside = Call::new("ADD", conf).netns(&sandbox).run();
    assert!(outside.stderr.contains("waited 3000 ms"), "{outside:?}");
}

#[test]
fn a_hung_agent_costs_the_deadline_and_no_more() {
    by_membership(Script::Hang, 11, "waited 1000 ms");
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::Hang);
    let outcome = add(&node, &sandbox);
    assert!(outcome.took >= Duration::from_secs(1) && outcome.took < PATIENCE, "{outcome:?}");
}

#[test]
fn an_agent_that_takes_no_connections_costs_the_deadline_and_no_more() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _listener = listening(&node, Backlog::new(0).unwrap());
    std::fs::write(node.membership(), IN_MESH).unwrap();
    // The first fills the backlog and waits for its answer, the second for its connection.
    let filled = std::thread::scope(|scope| {
        let first = scope.spawn(|| add(&node, &sandbox));
        let second = scope.spawn(|| add(&node, &sandbox));
        [first.join().unwrap(), second.join().unwrap()]
    });
    for outcome in filled {
        outcome.error("1.0.0", 11);
        assert!(outcome.took < PATIENCE, "{outcome:?}");
    }
}

#[test]
fn an_agent_that_hangs_up_has_not_answered() {
    by_membership(Script::HangUp, 11, "hung up");
    by_membership(Script::Answer(Vec::new()), 11, "hung up");
}

#[test]
fn an_answer_that_is_none_does_not_pass_for_one() {
    let whole = br#"{"result":"ok","outcome":"captured"}"#;
    let answers: [&[u8]; 9] = [
        b"garbage",
        &whole[..whole.len() / 2],
        b"{}",
        b"null",
        b"[]",
        br#"{"result":"maybe"}"#,
        br#"{"result":"ok"}"#,
        b"\x00\xff\xfe",
        br#"{"result":"error","code":-1,"msg":"x"}"#,
    ];
    for answer in answers {
        by_membership(Script::Answer(answer.to_vec()), 103, "no answer");
    }
    by_membership(Script::Answer(vec![b' '; 70 * 1024]), 103, "more than 65536");
}

#[test]
fn an_agent_of_another_version_is_said_to_be_one() {
    by_membership(
        Script::error(103, "it has version 1, this agent speaks 2", ""),
        103,
        "this agent speaks 2",
    );
}

#[test]
fn an_answer_may_have_fields_that_we_do_not_know() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let reply = br#"{"took":3,"result":"ok","outcome":"captured","more":{"a":[1]}}"#;
    let _agent = Agent::start(&node, Script::Answer(reply.to_vec()));
    add(&node, &sandbox).printed("{ }");
}

#[test]
fn a_socket_of_another_kind_is_no_agent() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _stream = UnixListener::bind(node.socket()).unwrap();
    std::fs::write(node.membership(), IN_MESH).unwrap();
    let msg = add(&node, &sandbox).error("1.0.0", 11);
    assert!(msg.contains("cannot be reached"), "{msg}");
}
