//! The admin socket and `sluicectl`, each against the other: what is asked, answered, shown and refused.
//!
//! What `sluicectl` shows is compared with whole outputs in `tests/golden`; `SLUICE_BLESS=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use sluice_agent::admin::{Server, View, WhyError};
use sluice_shared::admin::{
    ADMIN_VERSION, AdminReply, Check, Choice, LeaseState, LeaseStatus, MAX_ADMIN_REQUEST, NodeStatus,
    PodStatus, SourceStatus, State, ZtunnelStatus,
};
use sluice_shared::conflist::Way;
use sluice_shared::enroll::{Because, Overrides, Reason};
use sluice_shared::ids::{Ifname, NetnsId, PodUid};
use sluice_shared::install::{self, Fought, INSTALL_VERSION, Installation};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// An agent that says what it is told to.
struct Scripted(NodeStatus);

impl View for Scripted {
    async fn status(&self) -> NodeStatus {
        self.0.clone()
    }

    async fn why(&self, pod: &str) -> Result<PodStatus, WhyError> {
        let named: Vec<&PodStatus> = self.0.pods.iter().filter(|known| known.name == pod).collect();
        match named.as_slice() {
            [] => Err(WhyError::Unknown(pod.to_owned())),
            [one] => Ok((*one).clone()),
            several => Err(WhyError::Ambiguous {
                pod: pod.to_owned(),
                candidates: several.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect(),
            }),
        }
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    socket: PathBuf,
    _runtime: Runtime,
}

impl Fixture {
    fn new(status: NodeStatus) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/admin.sock");
        let runtime = Runtime::new().unwrap();
        let server = {
            let _inside = runtime.enter();
            Server::bind(&socket, Arc::new(Scripted(status))).unwrap()
        };
        runtime.spawn(server.run());
        Self { dir, socket, _runtime: runtime }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        ctl(Path::new(env!("CARGO_BIN_EXE_sluicectl")), &self.socket, args)
    }

    /// Sends a line as it is; what comes back.
    fn raw(&self, line: &[u8]) -> AdminReply {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(line).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with('\n') && answer.lines().count() == 1, "{answer:?}");
        serde_json::from_str(&answer).unwrap()
    }
}

fn ctl(program: &Path, socket: &Path, args: &[&str]) -> Output {
    Command::new(program)
        .arg("--socket")
        .arg(socket)
        .args(args)
        .env_remove("SLUICE_ADMIN_SOCKET")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} differs (`make bless` writes it anew); now it is:\n{text}", path.display());
}

fn choice(chosen: &str, because: &str) -> Choice {
    Choice { chosen: chosen.to_owned(), because: because.to_owned() }
}

fn check(name: &str, ok: bool, detail: &str) -> Check {
    Check { name: name.to_owned(), ok, detail: detail.to_owned() }
}

fn pod(name: &str, state: State, reason: &str) -> PodStatus {
    PodStatus {
        uid: PodUid::new(format!("uid-{name}")).unwrap(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ips: vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        state,
        reason: reason.to_owned(),
        because: Some(Because::NamespaceLabel),
        outside: None,
        overrides: Overrides::default(),
        netns: Some(NetnsId { dev: 4, inode: 4_026_532_999 }),
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}

fn outside(name: &str, reason: Reason) -> PodStatus {
    let said = reason.to_string();
    PodStatus { because: None, outside: Some(reason), ..pod(name, State::Outside, &said) }
}

fn enabled() -> PodStatus {
    PodStatus {
        overrides: Overrides {
            bypass_inbound: true,
            dns_capture: Some(false),
            virtual_interfaces: vec![Ifname::new("br0").unwrap()],
            warnings: vec!["istio.io/reroute-virtual-interfaces: \"a b\" is not valid; left out".to_owned()],
        },
        kept_connections: 2,
        drift_repairs: 1,
        checks: vec![
            check("in the mesh", true, "its namespace is labelled"),
            check("rules as planned", true, "captured (outbound)"),
            check("ztunnel acknowledged the pod", true, "by connection #2"),
        ],
        ..pod("web", State::Enabled, "captured")
    }
}

fn pending() -> PodStatus {
    let reason = "waiting for ztunnel: none that is connected has acknowledged the pod";
    let checks = vec![
        check("rules as planned", true, "captured (inbound, outbound, DNS)"),
        check("ztunnel acknowledged the pod", false, "no connected ztunnel has"),
    ];
    PodStatus { checks, ips: Vec::new(), ..pod("cart", State::Pending, reason) }
}

fn installation() -> Installation {
    Installation {
        version: INSTALL_VERSION,
        boot: "b2d0a5de".to_owned(),
        state: install::State::Chained,
        message: "our entry is in the chain".to_owned(),
        directory: "/etc/cni/net.d".to_owned(),
        way: Some(Way::InPlace),
        why: "the runtime's libcni is older than 1.3 and knows no drop-ins".to_owned(),
        file: Some("10-calico.conflist".to_owned()),
        primary: Some("10-calico.conflist".to_owned()),
        primary_seen: true,
        writes: 9,
        repairs: 7,
        istio: Vec::new(),
        fight: None,
        updated: 0,
    }
}

fn healthy() -> NodeStatus {
    NodeStatus {
        version: ADMIN_VERSION,
        agent_version: "0.1.0".to_owned(),
        node_name: "node-1".to_owned(),
        serving: true,
        source: SourceStatus { from: "file /etc/sluice/pods.yaml".to_owned(), problem: None },
        backend: choice("nftables", "the first that works here"),
        probes: choice("source", "snat: the host refuses our table (EPERM)"),
        probe_test: Box::new(choice("works", "source passes in 2 of 2 pods asked")),
        mark_guard: choice("on", ""),
        drift_watch: choice("events", "a change is seen at once"),
        predecessor: None,
        installation: Some(Box::new(installation())),
        lease: Some(LeaseStatus { state: LeaseState::Held, age_seconds: 12, horizon_seconds: 3600 }),
        ztunnels: vec![ZtunnelStatus {
            connection: 2,
            pid: 4711,
            ready: true,
            cgroup: Some("/kubepods/pod1/ztunnel".to_owned()),
        }],
        pods: vec![enabled(), outside("adhoc", Reason::NotSelected)],
    }
}

fn troubled() -> NodeStatus {
    let mut status = healthy();
    status.serving = false;
    status.source.problem =
        Some("/etc/sluice/pods.yaml: line 3, column 5: pods[0].uid: wrong\u{1b}[2J".to_owned());
    let fight = Fought {
        file: "10-calico.conflist".to_owned(),
        times: 5,
        seconds: 20,
        suspect: "calico-node (install-cni)".to_owned(),
    };
    status.installation = Some(Box::new(Installation {
        state: install::State::Fighting,
        fight: Some(fight),
        ..installation()
    }));
    status.predecessor = Some(choice("runs on this node", "remove its DaemonSet; 0 pods taken over"));
    status.lease = Some(LeaseStatus { state: LeaseState::Lapsed, age_seconds: 4000, horizon_seconds: 3600 });
    status.ztunnels.insert(0, ZtunnelStatus { connection: 3, pid: 0, ready: false, cgroup: None });
    status.pods.extend([
        pending(),
        pod("cache", State::Drifted, "its rules are gone; being put right"),
        pod("old", State::Draining, "its namespace's label was removed; 3 proxied connections are left"),
    ]);
    status
}

#[test]
fn status_in_words() {
    let agent = Fixture::new(healthy());
    let output = agent.ctl(&["status"]);
    assert_golden("status-healthy.txt", &stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let output = Fixture::new(troubled()).ctl(&["status"]);
    assert_golden("status-troubled.txt", &stdout(&output));
    assert_eq!(output.status.code(), Some(2));

    let (installation, lease) = (None, None);
    let empty = NodeStatus { ztunnels: Vec::new(), pods: Vec::new(), installation, lease, ..healthy() };
    let output = Fixture::new(empty).ctl(&["status"]);
    assert_golden("status-empty.txt", &stdout(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn status_does_not_excuse_a_node_that_cannot_serve() {
    let output = Fixture::new(NodeStatus { serving: false, ..healthy() }).ctl(&["status"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn status_does_not_excuse_a_chain_without_the_plugin() {
    let message = "/etc/cni/net.d cannot be written: Read-only file system".to_owned();
    let blocked = Installation { state: install::State::Blocked, message, ..installation() };
    let output =
        Fixture::new(NodeStatus { installation: Some(Box::new(blocked)), ..healthy() }).ctl(&["status"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stdout(&output);
    assert!(text.contains("chain     ✗ blocked: /etc/cni/net.d cannot be written"), "{text}");
}

#[test]
fn why_in_words() {
    let mut status = troubled();
    status.pods.extend([
        outside("optout", Reason::OptedOut),
        outside("excluded", Reason::ExcludedNamespace),
        outside("sidecar", Reason::Sidecar),
        outside("host", Reason::HostNetwork),
        outside("done", Reason::Terminal),
        outside("stranger", Reason::Unknown),
    ]);
    let agent = Fixture::new(status);
    for (name, code) in [("web", 0), ("cart", 2), ("cache", 2), ("old", 0), ("adhoc", 0)] {
        let output = agent.ctl(&["why", name]);
        assert_golden(&format!("why-{name}.txt"), &stdout(&output));
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stderr(&output));
    }
    // All that differs between those outside is the rule, and what to do about it.
    let rest = ["optout", "excluded", "sidecar", "host", "done", "stranger"].map(|name| {
        let output = agent.ctl(&["why", name]);
        assert_eq!(output.status.code(), Some(0), "{name}");
        let text = stdout(&output);
        let rule = text.lines().find(|line| line.trim_start().starts_with("rule ")).unwrap().trim_start();
        format!("{name}: {rule}\n  {}\n", text.lines().last().unwrap())
    });
    assert_golden("why-outside.txt", &rest.concat());
}

#[test]
fn json_is_the_agent_s_answer() {
    let agent = Fixture::new(troubled());
    let output = agent.ctl(&["status", "--output", "json"]);
    assert_eq!(serde_json::from_slice::<NodeStatus>(&output.stdout).unwrap(), troubled());
    assert_eq!(output.status.code(), Some(2));
    let output = agent.ctl(&["-o", "json", "why", "cart"]);
    assert_eq!(serde_json::from_slice::<PodStatus>(&output.stdout).unwrap(), pending());
    assert_eq!(output.status.code(), Some(2));
    let output = agent.ctl(&["why", "nobody", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"], "the agent knows no pod \"nobody\" on this node");
}

#[test]
fn each_failure_has_its_exit_code_and_says_what_to_look_at() {
    let mut status = healthy();
    status.pods.push(PodStatus { namespace: "bank".to_owned(), ..pod("web", State::Enabled, "captured") });
    let agent = Fixture::new(status);
    let unknown = agent.ctl(&["why", "nobody"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(stderr(&unknown).contains("knows no pod \"nobody\"") && stdout(&unknown).is_empty());
    let ambiguous = agent.ctl(&["why", "web"]);
    assert_eq!(ambiguous.status.code(), Some(1));
    assert!(stderr(&ambiguous).contains("shop/web, bank/web"), "{}", stderr(&ambiguous));
    assert_eq!(agent.ctl(&["explain"]).status.code(), Some(64));
    assert_eq!(agent.ctl(&["why"]).status.code(), Some(64));

    let program = Path::new(env!("CARGO_BIN_EXE_sluicectl"));
    let absent = ctl(program, &agent.dir.path().join("absent.sock"), &["status"]);
    assert_eq!(absent.status.code(), Some(4));
    assert!(stderr(&absent).contains("Is the agent's pod running on this node?"), "{}", stderr(&absent));
    let dead = agent.dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let refused = ctl(program, &dead, &["status", "-o", "json"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains("nobody listens"), "{}", stderr(&refused));
    assert!(stdout(&refused).contains("\"error\""), "{}", stdout(&refused));
}

#[test]
fn kubectl_finds_it_under_its_own_name() {
    let agent = Fixture::new(healthy());
    let plugin = agent.dir.path().join("kubectl-sluice");
    symlink(env!("CARGO_BIN_EXE_sluicectl"), &plugin).unwrap();
    let output = ctl(&plugin, &agent.socket, &["status"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&ctl(&plugin, &agent.socket, &["--help"])).contains("Usage: kubectl sluice "));
    assert!(stdout(&agent.ctl(&["--help"])).contains("Usage: sluicectl "));
}

#[test]
fn the_socket_is_root_s_and_refuses_what_it_does_not_understand() {
    let agent = Fixture::new(healthy());
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let long = format!("{{\"ask\":\"why\",\"pod\":\"{}\"}}\n", "x".repeat(MAX_ADMIN_REQUEST));
    for (line, what) in [
        (&b"\n"[..], "does not understand the question"),
        (b"", "does not understand the question"),
        (b"{\"ask\":\"reboot\"}\n", "unknown variant `reboot`"),
        (b"{\"ask\":\"status\"} trailing\n", "trailing characters"),
        (b"\xff\n", "does not understand"),
        (long.as_bytes(), "longer than 16384 bytes"),
    ] {
        match agent.raw(line) {
            AdminReply::Error { unknown_pod: false, message } if message.contains(what) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    // A question without its newline, from a caller that has ended its side, is a question.
    assert!(matches!(agent.raw(b"{\"ask\":\"status\"}"), AdminReply::Status(_)));
}

#[test]
fn a_caller_that_is_not_root_is_refused() {
    assert!(nix::unistd::geteuid().is_root(), "this test changes its user, and so needs root");
    let agent = Fixture::new(healthy());
    let program = agent.dir.path().join("sluicectl");
    std::fs::copy(env!("CARGO_BIN_EXE_sluicectl"), &program).unwrap();
    let as_nobody = || {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "--"])
            .arg(&program)
            .arg("--socket")
            .arg(&agent.socket)
            .arg("status")
            .output()
            .unwrap()
    };
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    open(agent.dir.path());
    open(agent.socket.parent().unwrap());
    let output = as_nobody();
    assert_eq!(output.status.code(), Some(4), "the socket's mode lets others in");
    assert!(stderr(&output).contains("Only root may ask the agent"), "{}", stderr(&output));
    // Even where the mode is opened up, SO_PEERCRED keeps others out.
    open(&agent.socket);
    let output = as_nobody();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("only root may ask; you have uid 65534"), "{}", stderr(&output));
}
