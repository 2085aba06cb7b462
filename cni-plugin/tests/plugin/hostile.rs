//! Bad input gets a clear error with the spec's code, on stdout, as one object.

use crate::runtime::{Call, Node, PATIENCE, Sandbox};
use crate::scripted::{Agent, Script};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

#[test]
fn stdin_that_is_no_netconf() {
    let sandbox = Sandbox::new();
    let deep = "[".repeat(500_000);
    let table: [(&[u8], u32, &str); 11] = [
        (b"", 6, "empty"),
        (b" \n\t ", 6, "empty"),
        (b"{\"cniVersion\":\n  \"1.0.0\",,}", 6, "line 2 column 11"),
        (b"{\"cniVersion\":\"1.0.0\"} trailing", 6, "line 1 column 24"),
        (b"\xef\xbb\xbf{}", 6, "line 1 column 1"),
        (b"\"text\"", 7, "expected struct"),
        (b"7", 7, "expected struct"),
        (br#"{"cniVersion":1.0}"#, 7, "cniVersion"),
        (br#"{"cniVersion":"1.0.0","cniVersion":"1.0.0"}"#, 7, "cniVersion"),
        (br#"{"cniVersion":"1.0.0","prevResult":"{}"}"#, 7, "prevResult"),
        (deep.as_bytes(), 6, "not JSON"),
    ];
    for (stdin, code, said) in table {
        let outcome = Call::new("ADD", stdin).netns(&sandbox).run();
        let msg = outcome.error("1.1.0", code);
        assert!(msg.contains(said), "{:?}: {msg}", String::from_utf8_lossy(&stdin[..stdin.len().min(60)]));
    }
}

#[test]
fn stdin_without_an_end() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let endless = vec![b'x'; 8 * 1024 * 1024];
    let msg = Call::new("ADD", endless).netns(&sandbox).run().error("1.1.0", 7);
    assert!(msg.contains("1048576"), "{msg}");
    let outcome = Call::new("ADD", node.conf("1.0.0", None)).netns(&sandbox).run_with_open_stdin();
    assert!(outcome.error("1.1.0", 5).contains("not closed"), "{outcome:?}");
    assert!(outcome.took < PATIENCE, "{outcome:?}");
}

#[test]
fn our_own_keys() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let long = format!("/{}", "x".repeat(120));
    let table = [
        (json!({"timeoutSeconds": 0}), "timeoutSeconds"),
        (json!({"timeoutSeconds": 61}), "1 to 60"),
        (json!({"timeoutSeconds": -5}), "timeoutSeconds"),
        (json!({"timeoutSeconds": 1.5}), "timeoutSeconds"),
        (json!({"timeoutSeconds": "10"}), "timeoutSeconds"),
        (json!({"agentSocket": "run/agent.sock"}), "agentSocket"),
        (json!({"agentSocket": long}), "107"),
        (json!({"agentSocket": ["/run"]}), "agentSocket"),
        (json!({"stateDir": "../lib"}), "stateDir"),
        (json!({"stateDir": "/a\u{0}b"}), "stateDir"),
        (json!({"logLevel": "loud"}), "logLevel"),
        (json!({"exemptPods": {"namespace": "a"}}), "exemptPods"),
        (json!({"exemptPods": [{"namespace": "a"}]}), "namePrefix"),
        (json!({"exemptPods": [{"namespace": "a", "namePrefix": ""}]}), "empty"),
        (json!({"exemptPods": [{"namespace": "a", "namePrefix": "b", "label": "c"}]}), "label"),
    ];
    for (keys, said) in table {
        let outcome = Call::new("ADD", node.conf_with("1.0.0", Some("{}"), &keys)).netns(&sandbox).run();
        let msg = outcome.error("1.0.0", 7);
        assert!(msg.contains(said), "{keys}: {msg}");
    }
}

#[test]
fn the_environment() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let call = || Call::new("ADD", node.conf("1.0.0", Some("{}"))).netns(&sandbox);
    let all = call().without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME").run();
    let msg = all.error("1.0.0", 4);
    assert!(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"].iter().all(|name| msg.contains(name)), "{msg}");
    let not_utf8 = OsString::from_vec(vec![b'e', 0xff]);
    let table: [(&'static str, OsString, &str); 17] = [
        ("CNI_CONTAINERID", "".into(), "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "../../etc".into(), "container id"),
        ("CNI_CONTAINERID", "-rf".into(), "container id"),
        ("CNI_CONTAINERID", "a".repeat(300).into(), "container id"),
        ("CNI_CONTAINERID", "a\nb".into(), "container id"),
        ("CNI_IFNAME", "a".repeat(16).into(), "CNI_IFNAME"),
        ("CNI_IFNAME", "..".into(), "CNI_IFNAME"),
        ("CNI_IFNAME", "a/b".into(), "CNI_IFNAME"),
        ("CNI_IFNAME", "a b".into(), "CNI_IFNAME"),
        ("CNI_IFNAME", not_utf8, "UTF-8"),
        ("CNI_NETNS", "/".repeat(9000).into(), "4096"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE".into(), "KEY=VALUE"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop".into(), "K8S_POD_NAME"),
        ("CNI_ARGS", "K8S_POD_NAME=cart".into(), "K8S_POD_NAMESPACE"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_NAME=c".into(), "twice"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\nc".into(), "not a name"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=../x".into(), "K8S_POD_UID"),
    ];
    for (name, value, said) in table {
        let msg = call().with(name, value).run().error("1.0.0", 4);
        assert!(msg.contains(said), "{name}: {msg}");
    }
}

#[test]
fn the_command() {
    let missing = Call::new("ADD", "").without("CNI_COMMAND").run();
    assert!(missing.error("1.1.0", 4).contains("container runtime"), "{missing:?}");
    for command in ["", "add", "ADD ", "INSTALL", "ADD\u{1b}[2J"] {
        let msg = Call::new(command, "{}").run().error("1.1.0", 4);
        assert!(msg.contains("CNI_COMMAND"), "{msg}");
    }
}

#[test]
fn namespaces_that_are_none_of_the_pods() {
    let node = Node::new();
    let agent = Agent::start(&node, Script::ok("captured"));
    let scratch = tempfile::tempdir().unwrap();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let table = [
        ("/nonexistent/netns", "No such file"),
        ("/proc/self/ns/net", "the host's own"),
        ("/etc/passwd", "not a network namespace"),
        ("/", "not a network namespace"),
        ("/dev/null", "not a network namespace"),
        (fifo.to_str().unwrap(), "not a network namespace"),
    ];
    for verb in ["ADD", "CHECK"] {
        for (path, said) in table {
            let outcome = Call::new(verb, node.conf("1.0.0", Some("{}"))).with("CNI_NETNS", path).run();
            let msg = outcome.error("1.0.0", 101);
            assert!(msg.contains(said) && msg.contains(path), "{msg}");
        }
    }
    assert!(!agent.was_asked());
}

#[test]
fn foreign_text_forges_no_line_in_a_log() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::ok("captured"));
    let result = r#"{"ips":[{"address":"1\nsluice-cni: error: forged\u001b[2J\u202e\r"}]}"#;
    let outcome = Call::new("ADD", node.conf("1.0.0", Some(result))).netns(&sandbox).run();
    outcome.printed(result);
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.trim_end().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{outcome:?}");
    let _add = agent.request();
    let log = serde_json::to_value(agent.request().request).unwrap();
    assert!(log["message"].as_str().unwrap().chars().all(|c| !c.is_control()), "{log}");
}

#[test]
fn a_result_that_nobody_reads_is_a_failure() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("captured"));
    let call = Call::new("ADD", "").netns(&sandbox);
    let conf = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(conf.path(), node.conf("1.0.0", Some("{}"))).unwrap();
    let mut plugin = call
        .process()
        .stdin(conf.reopen().unwrap())
        .stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(!plugin.wait().unwrap().success());
}
