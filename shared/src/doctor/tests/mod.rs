//! A node on which all is well, and what is found when one thing is not.

mod chain;
mod cluster;
mod node;
mod product;

use super::*;
use crate::admin::{ADMIN_VERSION, Choice, NodeStatus, SourceStatus, ZtunnelStatus};
use crate::conflist::{Directory, File, Way};
use crate::install::{self, INSTALL_VERSION, Installation, Lease};
use std::collections::BTreeMap;

const BOOT: &str = "b2d0a5de-8a4e-4a3b-9d3e-0c4f5f3f9a11";
const UPTIME: u64 = 5000;

const KINDNET: &str = r#"{
  "cniVersion": "0.3.1",
  "name": "kindnet",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local"}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type":"sluice-cni"}
  ]
}"#;

fn file(name: &str, text: &str) -> File {
    File { name: name.to_owned(), text: Ok(text.to_owned()) }
}

fn set(namespace: &str, name: &str, env: &[(&str, &str)]) -> DaemonSet {
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    DaemonSet { namespace: namespace.to_owned(), name: name.to_owned(), env }
}

fn choice(chosen: &str) -> Choice {
    Choice { chosen: chosen.to_owned(), because: String::new() }
}

fn installation() -> Installation {
    Installation {
        version: INSTALL_VERSION,
        boot: BOOT.to_owned(),
        state: install::State::Chained,
        message: "our entry is in the chain".to_owned(),
        directory: "/etc/cni/net.d".to_owned(),
        way: Some(Way::InPlace),
        why: String::new(),
        file: Some("10-kindnet.conflist".to_owned()),
        primary: Some("10-kindnet.conflist".to_owned()),
        primary_seen: true,
        writes: 1,
        repairs: 0,
        istio: Vec::new(),
        fight: None,
        updated: 0,
    }
}

fn status() -> NodeStatus {
    let ztunnel = ZtunnelStatus { connection: 1, pid: 7, ready: true, cgroup: None };
    NodeStatus {
        version: ADMIN_VERSION,
        agent_version: "0.1.0".to_owned(),
        node_name: "node-1".to_owned(),
        serving: true,
        source: SourceStatus { from: "kubernetes".to_owned(), problem: None },
        backend: choice("nftables"),
        probes: choice("snat"),
        probe_test: Box::new(choice("works")),
        mark_guard: choice("on"),
        drift_watch: choice("events"),
        installation: Some(Box::new(installation())),
        lease: None,
        predecessor: None,
        ztunnels: vec![ztunnel],
        pods: Vec::new(),
    }
}

fn note(kind: NoteKind, text: &str) -> Note {
    Note { kind, path: format!("/run/sluice/{}", kind.file()), bytes: Ok(text.as_bytes().to_vec()) }
}

fn lease(renewed: u64, released: bool) -> Note {
    let lease = Lease { version: INSTALL_VERSION, boot: BOOT.to_owned(), renewed, horizon: 3600, released };
    Note { bytes: Ok(lease.to_bytes()), ..note(NoteKind::Lease, "") }
}

/// Installed, with everything in order and the API server asked.
fn healthy() -> Facts {
    let directory = Directory { files: vec![file("10-kindnet.conflist", KINDNET)], drop_ins: Vec::new() };
    let sysctls = [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "1"),
        ("net.netfilter.nf_conntrack_count", "900"),
        ("net.netfilter.nf_conntrack_max", "262144"),
    ];
    let cluster = Cluster {
        namespaces: Ok(BTreeMap::from([("shop".to_owned(), true), ("other".to_owned(), false)])),
        policies: Ok(Vec::new()),
        daemon_sets: Ok(vec![set("kube-system", "kindnet", &[])]),
        cilium: Ok(None),
        clock_ahead: Ok(1),
    };
    let notes = vec![
        note(NoteKind::Runtime, r#"{"name":"containerd","version":"1.7.28"}"#),
        lease(UPTIME - 10, false),
    ];
    Facts {
        cni: Ok(CniFacts {
            path: "/etc/cni/net.d".to_owned(),
            platform: None,
            directory,
            not_writable: None,
        }),
        plugin: Ok(PluginFile {
            directory: "/opt/cni/bin".to_owned(),
            mode: Some(0o100_755),
            current: Some(true),
            ..PluginFile::default()
        }),
        kernel: Ok(KernelTrials {
            release: "6.12.0".to_owned(),
            nftables: Ok(()),
            iptables: Err("no iptables".to_owned()),
            nftables_v4: None,
            mark_guard: Ok(Ok(())),
            transparent_v4: Ok(()),
            transparent_v6: Ok(()),
        }),
        bpf: Ok(BpfFacts { cookies: Ok(()), programs: Vec::new() }),
        sysctls: Ok(sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        interfaces: Ok(["lo", "eth0"].map(str::to_owned).into()),
        cgroup: Ok(CgroupTree::Unified("/sys/fs/cgroup".to_owned())),
        limits: Ok(Limits { inotify_instances: Some(8192), inotify_now: Ok(Ok(())) }),
        traces: Ok(Vec::new()),
        notes: Ok(Notes { boot: BOOT.to_owned(), uptime: UPTIME, files: notes }),
        agent: Agent::Answers(Box::new(status())),
        cluster: Ok(cluster),
    }
}

/// The healthy node, changed.
fn node(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = healthy();
    change(&mut facts);
    facts
}

/// The healthy node with another primary, and nothing of ours.
fn fresh(name: &str, text: &str) -> Facts {
    node(|facts| {
        let cni = facts.cni.as_mut().unwrap();
        cni.directory.files = vec![file(name, text)];
        facts.agent = Agent::Absent { socket: "/run/sluice/admin.sock".to_owned() };
        facts.notes.as_mut().unwrap().files.clear();
        facts.plugin.as_mut().unwrap().mode = None;
    })
}

fn found(facts: &Facts) -> Vec<(&'static str, Severity)> {
    diagnose(facts).findings.iter().map(|finding| (finding.id, finding.severity)).collect()
}

fn the(facts: &Facts, id: &str) -> Finding {
    let report = diagnose(facts);
    let finding = report.findings.iter().find(|finding| finding.id == id);
    finding.unwrap_or_else(|| panic!("no {id} in {report:#?}")).clone()
}

#[test]
fn a_node_on_which_all_is_well() {
    let report = diagnose(&healthy());
    assert_eq!(report.findings, []);
    assert_eq!(report.not_looked_at, []);
    assert_eq!(report.worst(true), None);
    let all: std::collections::BTreeSet<_> = ALL.iter().map(|check| check.id).collect();
    assert_eq!(
        report.passed.iter().copied().collect::<std::collections::BTreeSet<_>>(),
        all,
        "every check was made"
    );
}

#[test]
fn nothing_is_skipped_in_silence() {
    let away = || Unlooked::new("no permission", "run it as root");
    let blind = Facts {
        cni: Err(away()),
        plugin: Err(away()),
        kernel: Err(away()),
        bpf: Err(away()),
        sysctls: Err(away()),
        interfaces: Err(away()),
        cgroup: Err(away()),
        limits: Err(away()),
        traces: Err(away()),
        notes: Err(away()),
        agent: Agent::Absent { socket: "/run/sluice/admin.sock".to_owned() },
        cluster: Err(Unlooked::no_cluster()),
    };
    let report = diagnose(&blind);
    for check in ALL {
        let missed = report.not_looked_at.iter().any(|unseen| unseen.checks.contains(&check.id));
        let found = report.findings.iter().any(|finding| finding.id == check.id);
        assert!(missed || found, "{} is neither found nor missed", check.id);
        assert!(!report.passed.contains(&check.id), "{} has passed unseen", check.id);
    }
    assert_eq!(report.worst(false), Some(Severity::Warning));
}

#[test]
fn what_nobody_asked_for_counts_only_when_the_report_must_be_complete() {
    let facts = node(|facts| facts.cluster = Err(Unlooked::no_cluster()));
    let report = diagnose(&facts);
    assert_eq!(report.findings, []);
    assert_eq!(report.worst(false), None);
    assert_eq!(report.worst(true), Some(Severity::Warning));
    assert!(report.not_looked_at.iter().any(|unseen| unseen.checks.contains(&"policy-15008")));
    assert!(!report.passed.contains(&"policy-15008") && report.passed.contains(&"cni-way"));
}

#[test]
fn what_a_primary_that_is_not_known_does_is_not_known() {
    let report = diagnose(&node(|facts| facts.cni.as_mut().unwrap().directory.files.clear()));
    assert!(!report.passed.contains(&"cilium-socket-lb"), "{report:#?}");
    assert!(report.not_looked_at.iter().any(|unseen| unseen.checks.contains(&"cilium-socket-lb")));
}

#[test]
fn a_forbidden_answer_is_a_warning() {
    let refused = Unlooked::new("403: forbidden", "use an account that may");
    let facts = node(|facts| facts.cluster.as_mut().unwrap().policies = Err(refused));
    assert_eq!(diagnose(&facts).worst(false), Some(Severity::Warning));
}

#[test]
fn the_worst_comes_first() {
    let facts = node(|facts| {
        facts.limits.as_mut().unwrap().inotify_instances = Some(128);
        facts.sysctls.as_mut().unwrap().insert("net.ipv4.ip_forward".to_owned(), "0".to_owned());
        facts.cgroup = Ok(CgroupTree::Absent);
    });
    let order: Vec<_> = found(&facts);
    let expected =
        [("ip-forward", Severity::Problem), ("cgroup-v2", Severity::Warning), ("limits", Severity::Note)];
    assert_eq!(order, expected);
}

#[test]
fn ids_are_for_programs_and_each_is_documented() {
    let docs = include_str!("../../../../docs/doctor.md");
    let documented: Vec<&str> =
        docs.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    let ids: Vec<&str> = ALL.iter().map(|check| check.id).collect();
    assert_eq!(documented, ids, "docs/doctor.md has one section for each check, in their order");
    for check in ALL {
        assert!(
            check.id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{}",
            check.id
        );
        assert!(check.why.ends_with('.') && !check.why.contains("  "), "{}: {:?}", check.id, check.why);
    }
}
