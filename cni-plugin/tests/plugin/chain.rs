//! ADD as a member of a chain: prevResult in, prevResult out, byte for byte, in every version.

use crate::runtime::{Call, Node, Sandbox, VERSIONS};
use crate::scripted::{Agent, Script};
use sluice_shared::wire::{Verb, WIRE_VERSION};
use std::net::IpAddr;

/// Results that a typed reader and writer would change.
const ODD_RESULTS: [&str; 9] = [
    r#"{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","mac":"0a:58:0a:00:00:05","sandbox":"/x"}],"ips":[{"version":"4","address":"10.0.0.5/24","gateway":"10.0.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#,
    // aws: a VLAN id as mac, a device number as sandbox.
    r#"{"cniVersion":"1.0.0","interfaces":[{"name":"dummy12ab","mac":"0","sandbox":"2"}],"ips":[{"address":"10.0.0.5/32","interface":7}]}"#,
    "{ \"ips\" :\t[ ],\r\n\n   \"cniVersion\"\n:\"1.0.0\" }",
    r#"{"cniVersion":"1.0.0","mtu":"9001","enabled":"false","n":1.0,"m":1e400,"big":123456789012345678901234567890,"z":-0}"#,
    r#"{"b":1,"a":2,"b":3,"":null,"cniVersion":"1.0.0"}"#,
    r#"{"cniVersion":"1.0.0","text":"\u00e9 é \/ / \ud83d\ude00 😀 \u0000"}"#,
    r#"{"cniVersion":"1.0.0","ips":"none","interfaces":{"not":"a list"}}"#,
    r#"{"cniVersion":"0.4.0","ips":[{"version":"6","address":"fd00::5/64"},{"version":"4","address":"10.0.0.5/24"}]}"#,
    "{}",
];

#[test]
fn every_result_comes_out_as_it_went_in() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("captured"));
    for version in VERSIONS {
        for result in ODD_RESULTS {
            Call::new("ADD", node.conf(version, Some(result))).netns(&sandbox).run().printed(result);
        }
    }
}

#[test]
fn a_large_and_a_deep_result_come_out_as_they_went_in() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("captured"));
    let large = format!(r#"{{"cniVersion":"1.0.0","pad":"{}"}}"#, "x".repeat(900_000));
    Call::new("ADD", node.conf("1.0.0", Some(&large))).netns(&sandbox).run().printed(&large);
    let deep = format!(r#"{{"deep":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    Call::new("ADD", node.conf("1.0.0", Some(&deep))).netns(&sandbox).run().printed(&deep);
}

#[test]
fn without_a_result_before_us_an_empty_one_of_the_asked_version() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("captured"));
    for version in VERSIONS {
        let expected = format!(r#"{{"cniVersion":"{version}","dns":{{}}}}"#);
        Call::new("ADD", node.conf(version, None)).netns(&sandbox).run().printed(&expected);
        Call::new("ADD", node.conf(version, Some("null"))).netns(&sandbox).run().printed(&expected);
    }
}

#[test]
fn the_agent_gets_the_pod_its_addresses_and_its_namespace() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::ok("captured"));
    let result = r#"{"ips":[{"address":"10.0.0.5/24"},{"address":"fd00::5/64"}]}"#;
    Call::new("ADD", node.conf("1.0.0", Some(result))).netns(&sandbox).run().printed(result);
    let received = agent.request();
    assert_eq!(received.files, [sandbox.id()], "exactly one descriptor, and it is the pod's namespace");
    assert_eq!(received.request.version, WIRE_VERSION);
    let Verb::Add(attachment) = received.request.verb else { panic!("{:?}", received.request) };
    assert_eq!(attachment.id.container_id, "c0ffee");
    assert_eq!(attachment.id.ifname, "eth0");
    assert_eq!(attachment.netns, sandbox.netns());
    assert_eq!(attachment.pod.unwrap().to_string(), "shop/cart");
    assert_eq!(attachment.uid.unwrap().as_str(), "6f1d8d1e-0001");
    let ips: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    assert_eq!(attachment.ips, ips);
}

#[test]
fn addresses_that_cannot_be_read_are_said_and_do_not_stop_the_pod() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::ok("captured"));
    let result = r#"{"ips":[{"address":"ten dot one"},{"address":"10.0.0.5/24"},7]}"#;
    let outcome = Call::new("ADD", node.conf("1.0.0", Some(result))).netns(&sandbox).run();
    outcome.printed(result);
    let Verb::Add(attachment) = agent.request().request.verb else { panic!("no ADD") };
    assert_eq!(attachment.ips, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
    assert!(outcome.stderr.contains("prevResult.ips[0].address"), "{outcome:?}");
    // The same lines reach the agent's log.
    let Verb::Log { level, message } = agent.request().request.verb else { panic!("no log line") };
    assert_eq!(level, "warn");
    assert!(message.contains("ten dot one") && message.contains("shop/cart"), "{message}");
}

#[test]
fn a_second_run_for_the_same_sandbox_is_no_different() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let agent = Agent::start(&node, Script::ok("captured"));
    for _ in 0..2 {
        Call::new("ADD", node.conf("1.0.0", Some("{}"))).netns(&sandbox).run().printed("{}");
        assert_eq!(agent.request().files, [sandbox.id()]);
    }
}
