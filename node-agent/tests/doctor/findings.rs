//! Every check comes to find what it is for, from what is on a node: files, mounts, an agent, an API server, and a kernel
//! that refuses something.

use crate::agent::{self, Agent, healthy};
use crate::api_server::{Answers, ApiServer};
use crate::confined::{self, refusing};
use crate::node::{FakeKernel, KINDNET, Node};
use crate::{gather, program};
use serde_json::{Value, json};
use sluice_agent::doctor;
use sluice_shared::admin::{NodeStatus, SourceStatus};
use sluice_shared::doctor::{ALL, Report, diagnose};
use sluice_shared::install::{self, Installation, Lease};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::process::Output;

/// The worst severity of each id that was found.
type Found = BTreeMap<String, String>;

const CILIUM: &str = "{\"cniVersion\":\"0.3.1\",\"name\":\"cilium\",\"plugins\":[{\"type\":\"cilium-cni\"}]}";
const AWS: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"aws-cni\",\"plugins\":[{\"type\":\"aws-cni\",\
                   \"podSGEnforcingMode\":\"strict\"}]}";
const CHAINED: &str =
    "{\"cniVersion\":\"0.3.1\",\"name\":\"n\",\"plugins\":[{\"type\":\"ptp\"},{\"type\":\"sluice-cni\"}]}";

/// A check, how bad what it finds is, and how it comes to it.
type Case = (&'static str, &'static str, fn() -> Found);

const CASES: &[Case] = &[
    ("cni-primary", "warning", || on(&with_only("not-a-configuration", ""))),
    ("cni-primary", "problem", || on(&with_only("10-kindnet.conflist", "{\"cniVersion\":"))),
    ("cni-way", "note", || on(&Node::new())),
    ("cni-way", "problem", || on(&with_only("10-kindnet.conflist", &KINDNET.replace("0.3.1", "0.2.0")))),
    ("cni-exclusive", "problem", || cilium(&json!({"cni-exclusive": "true"}))),
    ("cni-directory", "note", in_k3s_place),
    ("cni-directory", "problem", || {
        mounted("mount --bind \"$1/etc/cni\" \"$1/etc/cni\" && mount -o remount,bind,ro \"$1/etc/cni\"")
    }),
    ("plugin-file", "problem", || on(&with_only("10-kindnet.conflist", CHAINED))),
    ("plugin-file", "problem", || mounted("mount -t tmpfs -o noexec none \"$1/opt/cni/bin\"")),
    ("plugin-stale", "note", || on(&with_another_plugin())),
    ("plugin-stale", "warning", || said_by(&with_another_plugin(), healthy())),
    ("leftover", "problem", || on(&with_only("10-kindnet.conflist", CHAINED))),
    ("leftover", "warning", || on(&with_lease(&lease(|lease| lease.released = true)))),
    ("cilium-socket-lb", "problem", || cilium(&json!({"kube-proxy-replacement": "true"}))),
    ("cilium-host-routing", "warning", || {
        cilium(&json!({"kube-proxy-replacement": "true", "enable-bpf-masquerade": "true"}))
    }),
    // The made-up node has a branch interface.
    ("aws-sg-strict", "problem", || on(&with_only("10-aws.conflist", AWS))),
    ("ovn-gateway", "warning", || {
        on(&with_only(
            "10-ovn.conf",
            "{\"cniVersion\":\"0.4.0\",\"name\":\"ovn\",\"type\":\"ovn-k8s-cni-overlay\"}",
        ))
    }),
    ("policy-15008", "problem", || policy("shop")),
    ("policy-15008", "note", || policy("other")),
    ("host-rules", "warning", || {
        let because =
            "snat does not work here: the host refuses the rules: Operation not permitted (os error 1)";
        said(NodeStatus { probes: agent::choice("source", because), ..healthy() })
    }),
    ("kernel-rules", "problem", without_netfilter),
    ("kernel-transparent", "problem", || {
        // IP_TRANSPARENT at SOL_IP
        refused((libc::SYS_setsockopt, &[(1, 0), (2, 19)]), libc::EPERM)
    }),
    ("kernel-transparent", "warning", || {
        // IPV6_TRANSPARENT at SOL_IPV6
        refused((libc::SYS_setsockopt, &[(1, 41), (2, 75)]), libc::EPERM)
    }),
    ("cgroup-v2", "warning", || with_proc("1/mounts", "proc /proc proc rw 0 0\n")),
    ("cgroup-v2", "note", || {
        with_proc(
            "1/mounts",
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n",
        )
    }),
    // BPF_PROG_LOAD
    ("bpf", "note", || refused((libc::SYS_bpf, &[(0, 5)]), libc::EINVAL)),
    ("limits", "note", || with_proc("sys/fs/inotify/max_user_instances", "128\n")),
    ("limits", "warning", without_inotify),
    ("conntrack", "warning", || {
        let node = Node::new();
        node.write("proc/sys/net/netfilter/nf_conntrack_count", "236000\n");
        node.write("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
        on(&node)
    }),
    ("rp-filter", "warning", || {
        let node = with_only("10-aws.conflist", AWS);
        node.write("proc/1/net/route", "Iface\tDestination\tGateway\nens5.7\t00000000\t0102A8C0\n");
        node.write("proc/sys/net/ipv4/conf/all/rp_filter", "0\n");
        node.write("proc/sys/net/ipv4/conf/ens5.7/rp_filter", "1\n");
        on(&node)
    }),
    ("bridge-nf", "warning", || on(&with_only("10-bridge.conflist", &KINDNET.replace("ptp", "bridge")))),
    ("ip-forward", "problem", || with_proc("sys/net/ipv4/ip_forward", "0\n")),
    ("node-local-dns", "note", || with_proc("1/net/dev", "Inter-|\n face |\n  nodelocaldns: 1 2\n")),
    ("second-mesh", "note", || {
        let node = Node::new();
        node.write("opt/cni/bin/linkerd-cni", "");
        on(&node)
    }),
    ("second-mesh", "warning", || {
        asked(
            &Node::new(),
            Answers::default().and(
                "/apis/apps/v1/daemonsets",
                json!([{
                    "metadata": {"namespace": "istio-system", "name": "istio-cni-node"},
                    "spec": {"template": {"spec": {"containers": [{"name": "install-cni"}]}}},
                }]),
            ),
        )
    }),
    ("agent", "note", || on(&Node::new())),
    ("agent", "problem", || {
        let node = Node::new();
        node.make("run/sluice");
        drop(UnixListener::bind(node.path("run/sluice/admin.sock")).unwrap());
        parsed(&program(&node, &[], &["-o", "json"]))
    }),
    ("agent", "problem", || said(NodeStatus { serving: false, ..healthy() })),
    ("chain-state", "problem", || {
        let blocked = |found: Box<Installation>| {
            Box::new(Installation {
                state: install::State::Blocked,
                message: "Read-only file system".to_owned(),
                ..*found
            })
        };
        said(NodeStatus { installation: healthy().installation.map(blocked), ..healthy() })
    }),
    ("chain-state", "warning", || said(NodeStatus { installation: None, ..healthy() })),
    ("ztunnel", "problem", || said(NodeStatus { ztunnels: Vec::new(), ..healthy() })),
    ("source", "problem", || {
        let problem = Some("the API server answers 403".to_owned());
        said(NodeStatus { source: SourceStatus { from: "kubernetes".to_owned(), problem }, ..healthy() })
    }),
    ("pods", "problem", || said(NodeStatus { pods: vec![agent::pending()], ..healthy() })),
    ("notes", "warning", || with_file("run/sluice/runtime.json", "{\"name\":")),
    ("notes", "problem", || with_file("var/lib/sluice/membership.json", "{\"name\":")),
    ("intent", "warning", || {
        let node = Node::new();
        let intent = install::Intent {
            version: install::INSTALL_VERSION,
            wanted: install::Wanted::Leave,
            why: "uninstalled".to_owned(),
        };
        node.write("run/sluice/intent.json", &serde_json::to_string(&intent).unwrap());
        said_by(&node, healthy())
    }),
    ("lease", "warning", || said_by(&with_lease(&lease(|lease| lease.released = true)), healthy())),
    ("lease", "warning", || on(&with_lease(&lease(|lease| lease.renewed = u64::MAX)))),
    ("clock", "problem", || {
        let answers = Answers { date: Some("Sun, 06 Nov 1994 08:49:37 GMT"), ..Answers::default() };
        asked(&Node::new(), answers)
    }),
];

/// Those that nothing here can bring about, and why. What they conclude is tested on facts in `shared/src/doctor/tests`.
const NOT_SHOWN: [(&str, &str); 3] = [
    ("calico-ebpf", "it takes a program at connect(), of the kind that Calico's agent loads"),
    ("kernel-ipv6", "it takes a kernel whose packet filter has no IPv6"),
    ("kernel-mark-guard", "it takes a kernel before 5.13; `tests/kernel` has an iptables that refuses it"),
];

#[test]
fn every_check_finds_what_it_is_for() {
    let mut missing = Vec::new();
    for (index, (id, severity, find)) in CASES.iter().enumerate() {
        let found = find();
        if found.get(*id).map(String::as_str) != Some(severity) {
            missing.push(format!("case {index}: {severity} {id}, and not only {found:?}"));
        }
    }
    assert!(missing.is_empty(), "not found:\n{}", missing.join("\n"));
    let shown: BTreeSet<&str> = CASES.iter().map(|(id, ..)| *id).chain(NOT_SHOWN.map(|(id, _)| id)).collect();
    assert_eq!(shown, ALL.iter().map(|check| check.id).collect(), "each has a case, or a reason why not");
    assert_eq!(
        shown.len(),
        CASES.iter().map(|(id, ..)| *id).collect::<BTreeSet<_>>().len() + NOT_SHOWN.len()
    );
}

#[test]
fn a_kernel_without_bpf_is_no_fault_of_the_node_s() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        let output = confined::program(&Node::new(), refusing((libc::SYS_bpf, &[]), errno), &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            text.contains("the node's BPF programs (") && text.contains("without a seccomp profile"),
            "{text}"
        );
        assert!(!text.contains("bpf: "), "{text}");
    }
}

#[test]
fn calls_that_are_forbidden_are_no_findings() {
    let calls = [
        (libc::SYS_inotify_init1, "limits"),
        (libc::SYS_unshare, "kernel-rules"),
        (libc::SYS_bpf, "host-rules"),
    ];
    for (call, check) in calls {
        let output = confined::program(&Node::new(), refusing((call, &[]), libc::ENOSYS), &["-o", "json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let unseen = report["notLookedAt"].as_array().unwrap();
        let said = unseen.iter().any(|unseen| unseen["checks"].as_array().unwrap().contains(&json!(check)));
        assert!(said && !parsed(&output).contains_key(check), "{check}: {report:#}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn in_the_agent_s_container_everything_can_be_looked_at() {
    let output = confined::program(&Node::new(), confined::charts_profile(), &["-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let asked_for = |unseen: &&Value| unseen["notAskedFor"] == json!(false);
    let unseen: Vec<_> = report["notLookedAt"].as_array().unwrap().iter().filter(asked_for).collect();
    assert!(unseen.is_empty(), "{unseen:#?}");
    let found = parsed(&output);
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["agent", "cni-way"], "{report:#}");
}

fn worst(found: impl IntoIterator<Item = (String, String)>) -> Found {
    let rank = |severity: &str| ["note", "warning", "problem"].iter().position(|name| *name == severity);
    let mut worst = Found::new();
    for (id, severity) in found {
        let known = worst.entry(id).or_insert_with(|| severity.clone());
        if rank(&severity) > rank(known) {
            *known = severity;
        }
    }
    worst
}

fn of(report: &Report) -> Found {
    worst(report.findings.iter().map(|finding| (finding.id.to_owned(), finding.severity.as_str().to_owned())))
}

/// What the program has printed.
fn parsed(output: &Output) -> Found {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    worst(
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| (text(&found["id"]), text(&found["severity"]))),
    )
}

fn on(node: &Node) -> Found {
    of(&diagnose(&gather(&node.options(), &FakeKernel::default())))
}

fn asked(node: &Node, answers: Answers) -> Found {
    let server = ApiServer::start(answers);
    let mut options = node.options();
    options.api_server = doctor::ApiServer::Kubeconfig(server.kubeconfig(&node.path("kubeconfig")));
    of(&diagnose(&gather(&options, &FakeKernel::default())))
}

/// With an agent that says this.
fn said_by(node: &Node, status: NodeStatus) -> Found {
    let _agent = Agent::start(node, status);
    let plugin = node.path("ours/sluice-cni");
    parsed(&program(node, &[], &["-o", "json", "--plugin", plugin.to_str().unwrap()]))
}

fn said(status: NodeStatus) -> Found {
    said_by(&Node::new(), status)
}

fn refused(call: confined::Call<'_>, errno: i32) -> Found {
    parsed(&confined::program(&Node::new(), refusing(call, errno), &["-o", "json"]))
}

/// NETLINK_NETFILTER at AF_NETLINK: neither nf_tables nor what iptables is looked at by.
fn without_netfilter() -> Found {
    refused((libc::SYS_socket, &[(0, 16), (2, 12)]), libc::EPROTONOSUPPORT)
}

fn with_only(name: &str, text: &str) -> Node {
    let node = Node::bare();
    node.make("opt/cni/bin");
    node.write(&format!("etc/cni/net.d/{name}"), text);
    node
}

fn with_file(path: &str, text: &str) -> Found {
    let node = Node::new();
    node.write(path, text);
    on(&node)
}

fn with_proc(path: &str, text: &str) -> Found {
    with_file(&format!("proc/{path}"), text)
}

fn with_another_plugin() -> Node {
    let node = Node::new();
    node.write("opt/cni/bin/sluice-cni", "old");
    node.write("ours/sluice-cni", "new");
    node
}

fn lease(change: fn(&mut Lease)) -> Lease {
    let boot = "b2d0a5de".to_owned();
    let mut lease =
        Lease { version: install::INSTALL_VERSION, boot, renewed: 0, horizon: 3600, released: false };
    change(&mut lease);
    lease
}

/// Chained, with a lease.
fn with_lease(lease: &Lease) -> Node {
    let node = with_only("10-kindnet.conflist", CHAINED);
    node.write("opt/cni/bin/sluice-cni", "");
    node.write("var/lib/sluice/lease.json", &String::from_utf8(lease.to_bytes()).unwrap());
    node
}

fn in_k3s_place() -> Found {
    let node = Node::bare();
    node.write("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", KINDNET);
    node.make("var/lib/rancher/k3s/data/cni");
    on(&node)
}

fn cilium(config: &Value) -> Found {
    asked(&with_only("05-cilium.conflist", CILIUM), Answers::default().cilium(config))
}

fn policy(namespace: &str) -> Found {
    let policy = json!([{
        "metadata": {"namespace": namespace, "name": "web"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8080}]}]},
    }]);
    asked(&Node::new(), Answers::default().and("/apis/networking.k8s.io/v1/networkpolicies", policy))
}

/// The program after this was mounted on the node, in a mount namespace of its own.
fn mounted(script: &str) -> Found {
    let node = Node::new();
    let script = format!("{script} && shift && exec \"$@\"");
    let root = node.path("");
    parsed(&program(&node, &["sh", "-ec", &script, "sh", root.to_str().unwrap()], &["-o", "json"]))
}

/// In a user namespace, whose limit is its own.
fn without_inotify() -> Found {
    let script = "echo 0 >/proc/sys/user/max_inotify_instances; exec \"$@\"";
    let node = Node::new();
    parsed(&program(
        &node,
        &["unshare", "--user", "--map-root-user", "sh", "-ec", script, "sh"],
        &["-o", "json"],
    ))
}
