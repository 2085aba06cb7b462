//! Every verb in every version, and who is let through without asking.

use crate::runtime::{Call, Node, PATIENCE, Sandbox, VERSIONS};
use crate::scripted::{Agent, Script};
use serde_json::{Value, json};
use sluice_shared::wire::Verb;

#[test]
fn each_verb_belongs_to_its_versions() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("fine"));
    let since =
        [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")];
    for (verb, first) in since {
        for version in VERSIONS {
            let conf = node.conf_with(version, Some("{}"), &json!({"cni.dev/valid-attachments": []}));
            let outcome = Call::new(verb, conf).netns(&sandbox).run();
            if version >= first {
                outcome.printed(if verb == "ADD" { "{}" } else { "" });
            } else {
                assert!(outcome.error(version, 1).contains(verb), "{outcome:?}");
            }
        }
    }
}

#[test]
fn versions_that_we_do_not_speak_are_refused_by_name() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    for version in ["0.1.0", "0.2.0", "1.2.0", "2.0.0", "1.0", "", "next"] {
        for verb in ["ADD", "CHECK", "GC", "STATUS"] {
            let outcome = Call::new(verb, node.conf(version, Some("{}"))).netns(&sandbox).run();
            let msg = outcome.error("1.1.0", 1);
            assert!(msg.contains(&format!("{version:?}")) && msg.contains("0.3.1"), "{msg}");
        }
    }
    let outcome = Call::new("ADD", r#"{"name":"x","type":"sluice-cni"}"#).netns(&sandbox).run();
    outcome.error("1.1.0", 1);
}

#[test]
fn version_answers_with_and_without_a_netconf() {
    let stdins = [("", "1.1.0"), ("{", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("[7]", "1.1.0")];
    for (stdin, expected) in stdins {
        let outcome = Call::new("VERSION", stdin).without("CNI_ARGS").without("CNI_CONTAINERID").run();
        assert!(outcome.success, "{outcome:?}");
        let answer: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(answer, json!({"cniVersion": expected, "supportedVersions": VERSIONS}));
    }
}

#[test]
fn version_does_not_wait_for_a_stdin_that_never_ends() {
    let outcome = Call::new("VERSION", r#"{"cniVersion":"1.0.0"}"#).run_with_open_stdin();
    assert!(outcome.success && outcome.stdout.contains("supportedVersions"), "{outcome:?}");
    assert!(outcome.took < PATIENCE, "{outcome:?}");
}

#[test]
fn the_meshs_own_pods_and_those_of_the_netconf_start_without_asking() {
    let node = Node::new();
    let agent = Agent::start(&node, Script::error(100, "not now", ""));
    let exempt = json!({"exemptPods": [{"namespace": "infra", "namePrefix": "router-"}]});
    let conf = node.conf_with("1.0.0", Some("{}"), &exempt);
    let pods =
        [("istio-system", "ztunnel-x7k2p"), ("sluice-system", "sluice-agent-q2w3e"), ("infra", "router-0")];
    for (namespace, name) in pods {
        // Not even the namespace is looked at.
        let call =
            |verb| Call::new(verb, conf.clone()).pod(namespace, name).with("CNI_NETNS", "/nonexistent").run();
        call("ADD").printed("{}");
        call("CHECK").printed("");
        call("DEL").printed("");
    }
    assert!(!agent.was_asked());
    let other = Call::new("ADD", conf).pod("shop", "router-0").with("CNI_NETNS", "/nonexistent").run();
    other.error("1.0.0", 101);
}

#[test]
fn mistakes_in_our_keys_do_not_stop_the_pods_that_would_mend_them() {
    let node = Node::new();
    let conf = node.conf_with("1.0.0", Some("{}"), &json!({"timeoutSeconds": "ten"}));
    Call::new("ADD", conf.clone())
        .pod("sluice-system", "sluice-agent-q2w3e")
        .with("CNI_NETNS", "/nonexistent")
        .run()
        .printed("{}");
    let msg = Call::new("ADD", conf).with("CNI_NETNS", "/nonexistent").run().error("1.0.0", 7);
    assert!(msg.contains("timeoutSeconds") && msg.contains("ten"), "{msg}");
}

#[test]
fn a_sandbox_outside_kubernetes_passes() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::error(100, "not now", ""));
    let conf = node.conf("1.0.0", Some(r#"{ "x":1}"#));
    let call = || Call::new("ADD", conf.clone()).netns(&sandbox);
    call().without("CNI_ARGS").run().printed(r#"{ "x":1}"#);
    call().with("CNI_ARGS", "IgnoreUnknown=1;MAC=0a:58:00:00:00:01").run().printed(r#"{ "x":1}"#);
    call().with("CNI_ARGS", "K8S_POD_NAMESPACE=;K8S_POD_NAME=").run().printed(r#"{ "x":1}"#);
    assert!(!agent.was_asked());
}

#[test]
fn check_hands_the_namespace_over_and_reports_the_agents_word() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::error(102, "pod shop/cart is not captured", "no table"));
    let outcome = Call::new("CHECK", node.conf("0.4.0", Some("{}"))).netns(&sandbox).run();
    assert_eq!(outcome.error("0.4.0", 102), "pod shop/cart is not captured");
    let received = agent.request();
    assert!(matches!(received.request.verb, Verb::Check(_)));
    assert_eq!(received.files, [sandbox.id()]);
}

#[test]
fn gc_forwards_the_list_and_never_takes_its_absence_for_proof() {
    let node = Node::new();
    let agent = Agent::start(&node, Script::ok("2 kept"));
    let list = json!({"cni.dev/valid-attachments": [
        {"containerID": "a1", "ifname": "eth0"}, {"containerID": "b2", "ifname": "net1"}]});
    Call::new("GC", node.conf_with("1.1.0", None, &list)).run().printed("");
    let Verb::Gc { valid } = agent.request().request.verb else { panic!("no GC") };
    let valid: Vec<_> = valid.iter().map(|id| (id.container_id.as_str(), id.ifname.as_str())).collect();
    assert_eq!(valid, [("a1", "eth0"), ("b2", "net1")]);

    let outcome = Call::new("GC", node.conf("1.1.0", None)).run();
    outcome.printed("");
    assert!(outcome.stderr.contains("nothing is collected"), "{outcome:?}");
    assert!(!matches!(agent.request().request.verb, Verb::Gc { .. }));

    let wrong = json!({"cni.dev/valid-attachments": "all"});
    Call::new("GC", node.conf_with("1.1.0", None, &wrong)).run().error("1.1.0", 7);
}

#[test]
fn gc_says_when_the_list_does_not_fit() {
    let node = Node::new();
    let _agent = Agent::start(&node, Script::ok("kept"));
    let entry = json!({"containerID": "c".repeat(64), "ifname": "eth0"});
    let list = json!({"cni.dev/valid-attachments": vec![entry; 2000]});
    let msg = Call::new("GC", node.conf_with("1.1.0", None, &list)).run().error("1.1.0", 5);
    assert!(msg.contains("65536"), "{msg}");
}

#[test]
fn status_fails_only_when_the_agent_says_no() {
    let node = Node::new();
    let status = || Call::new("STATUS", node.conf("1.1.0", None)).run();
    let silent = status();
    silent.printed("");
    assert!(silent.stderr.contains("pods of the mesh wait"), "{silent:?}");
    {
        let _agent = Agent::start(&node, Script::ok("serving"));
        status().printed("");
    }
    std::fs::remove_file(node.socket()).unwrap();
    {
        let _agent = Agent::start(&node, Script::error(50, "the kernel has no nf_tables", ""));
        assert_eq!(status().error("1.1.0", 50), "the kernel has no nf_tables");
    }
    std::fs::remove_file(node.socket()).unwrap();
    let _agent = Agent::start(&node, Script::Hang);
    status().printed("");
}
