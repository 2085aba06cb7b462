//! DEL always succeeds, prints nothing, and is quick.

use crate::runtime::{Call, Node, Outcome, PATIENCE, Sandbox, VERSIONS};
use crate::scripted::{Agent, Script};
use serde_json::json;
use sluice_shared::wire::Verb;
use std::process::Stdio;

#[track_caller]
fn gone(outcome: &Outcome) {
    outcome.printed("");
    assert!(outcome.took < PATIENCE, "{outcome:?}");
}

#[test]
fn the_agent_is_told_with_and_without_a_namespace() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::ok("gone"));
    for version in VERSIONS {
        for (netns, result) in [(Some(sandbox.netns()), Some("{}")), (None, Some("{}")), (None, None)] {
            let mut call = Call::new("DEL", node.conf(version, result));
            if let Some(netns) = &netns {
                call = call.with("CNI_NETNS", netns);
            }
            gone(&call.run());
            let received = agent.request();
            let Verb::Del(attachment) = received.request.verb else { panic!("{received:?}") };
            assert_eq!(attachment.netns, netns.unwrap_or_default());
            assert_eq!(attachment.id.container_id, "c0ffee");
            assert!(received.files.is_empty(), "a DEL carries no descriptor");
        }
    }
}

#[test]
fn whatever_the_agent_does() {
    let scripts = [
        Script::ok("gone"),
        Script::error(100, "cannot", ""),
        Script::HangUp,
        Script::Hang,
        Script::Answer(b"garbage".to_vec()),
    ];
    for script in scripts {
        let (node, sandbox) = (Node::new(), Sandbox::new());
        let _agent = Agent::start(&node, script);
        let conf = node.conf_with("1.0.0", Some("{}"), &json!({"timeoutSeconds": 60}));
        gone(&Call::new("DEL", conf).netns(&sandbox).run());
    }
}

#[test]
fn with_the_agent_dead_and_the_namespace_gone_and_twice() {
    let node = Node::new();
    std::fs::write(node.membership(), r#"{"version":1,"namespaces":{"shop":"in"}}"#).unwrap();
    for _ in 0..2 {
        gone(&Call::new("DEL", node.conf("1.0.0", None)).with("CNI_NETNS", "/run/netns/gone").run());
        gone(&Call::new("DEL", node.conf("1.0.0", None)).with("CNI_NETNS", "").run());
    }
}

#[test]
fn whatever_is_on_stdin() {
    let node = Node::new();
    let huge = vec![b' '; 3 * 1024 * 1024];
    let stdins: [&[u8]; 10] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        br#"{"cniVersion":"9.9.9"}"#,
        br#"{"cniVersion":7}"#,
        br#"{"cniVersion":"1.0.0","timeoutSeconds":-1}"#,
        br#"{"cniVersion":"1.0.0","prevResult":"nonsense"}"#,
        &huge,
    ];
    for stdin in stdins {
        // The defaults would reach a real agent's socket: the container id is one that no runtime gives.
        let outcome = Call::new("DEL", stdin).with("CNI_CONTAINERID", "-none-").run();
        gone(&outcome);
        assert!(outcome.stderr.contains("sluice-cni: warn: DEL"), "{outcome:?}");
    }
    gone(&Call::new("DEL", node.conf("1.0.0", None)).run_with_open_stdin());
}

#[test]
fn whatever_is_in_the_environment() {
    let node = Node::new();
    let agent = Agent::start(&node, Script::ok("gone"));
    let call = || Call::new("DEL", node.conf("1.0.0", None));
    for args in ["", ";;;", "nonsense", "K8S_POD_NAME=x", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=../../etc"] {
        gone(&call().with("CNI_ARGS", args).run());
        let Verb::Del(attachment) = agent.request().request.verb else { panic!("no DEL") };
        assert_eq!(attachment.pod, None, "{args}");
    }
    gone(&call().without("CNI_CONTAINERID").run());
    gone(&call().without("CNI_IFNAME").run());
    gone(&call().with("CNI_NETNS", "/".repeat(10_000)).run());
}

#[test]
fn with_nobody_at_the_other_end_of_stdout_and_stderr() {
    let node = Node::new();
    let mut plugin = Call::new("DEL", "")
        .with("CNI_CONTAINERID", "-none-")
        .process()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((plugin.stdout.take(), plugin.stderr.take()));
    assert!(plugin.wait().unwrap().success());
    drop(node);
}
