//! `sluicectl doctor`: what is gathered on a node that is a directory, what the API server is asked, and how the report reads.
//!
//! Whole reports are compared with `tests/golden`; `SLUICE_BLESS=1` writes them anew. What the kernel can do is tried for
//! real in `tests/kernel`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

mod agent;
mod api_server;
mod confined;
mod findings;
mod hostile;
mod node;

use api_server::{Answers, ApiServer};
use node::{FakeKernel, Node};
use serde_json::json;
use sluice_agent::doctor;
use sluice_shared::doctor::{Agent, BpfProgram, CgroupTree, Facts, Report, Severity, Unlooked, diagnose};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

fn absent() -> Agent {
    Agent::Absent { socket: "/run/sluice/admin.sock".to_owned() }
}

fn gather(options: &doctor::Options, kernel: &FakeKernel) -> Facts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(doctor::gather(options, kernel, absent()))
}

fn report(node: &Node) -> Report {
    diagnose(&gather(&node.options(), &FakeKernel::default()))
}

fn ids(report: &Report, severity: Severity) -> Vec<&'static str> {
    let found = report.findings.iter().filter(|finding| finding.severity == severity);
    found.map(|finding| finding.id).collect()
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} differs (`make bless` writes it anew); now it is:\n{text}", path.display());
}

/// A node with Cilium, a second mesh, a bridge that is not filtered, and things that were left behind.
fn troubled() -> (Node, FakeKernel) {
    let node = Node::new();
    node.write(
        "etc/cni/net.d/05-cilium.conflist",
        "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\"type\": \"cilium-cni\"},\n    \
         {\"type\": \"linkerd-cni\"}\n  ]\n}\n",
    );
    node.write("etc/cni/net.d/10-kindnet.conflist.cilium_bak", "{}");
    node.write("proc/sys/net/ipv4/ip_forward", "0\n");
    node.write("proc/sys/fs/inotify/max_user_instances", "128\n");
    node.write("run/sluice/runtime.json", "{\"name\":");
    let mut kernel = FakeKernel::default();
    let refused = "nftables does not work: message 7, add rule out_raw: Operation not supported".to_owned();
    let trials = kernel.trials.as_mut().unwrap();
    (trials.nftables, trials.nftables_v4, trials.iptables) =
        (Err(refused.clone()), Some(Err(refused)), Ok(()));
    kernel.programs = vec![
        BpfProgram { id: 17, kind: 18, name: "cil_sock4_conne".to_owned() },
        BpfProgram { id: 18, kind: 29, name: "iptables_nftabl".to_owned() },
    ];
    (node, kernel)
}

#[test]
fn a_report_in_words_and_for_programs() {
    let (node, kernel) = troubled();
    let report = diagnose(&gather(&node.options(), &kernel));
    assert_golden("doctor-troubled.txt", &doctor::render(&report));
    assert_golden("doctor-troubled.json", &(serde_json::to_string_pretty(&report).unwrap() + "\n"));
}

#[test]
fn a_node_in_order_before_an_installation() {
    let report = report(&Node::new());
    assert_golden("doctor-fresh.txt", &doctor::render(&report));
    assert_eq!(report.worst(false), Some(Severity::Note));
    assert_eq!(report.worst(true), Some(Severity::Warning), "the API server was not asked");
}

#[test]
fn what_a_stranger_writes_cannot_pass_for_ours() {
    let node = Node::new();
    node.write("etc/cni/net.d/10-kindnet.conflist", "{\"a\": \"\u{1b}[2J\u{202e}\n✗ problem forged");
    let text = doctor::render(&report(&node));
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{202e}') && !text.contains("\n✗ problem forged"),
        "{text}"
    );
}

#[test]
fn directories_are_found_where_platforms_have_them() {
    let k3s = Node::bare();
    k3s.write("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", node::KINDNET);
    k3s.make("var/lib/rancher/k3s/data/cni");
    let facts = gather(&k3s.options(), &FakeKernel::default());
    let cni = facts.cni.unwrap();
    assert_eq!((cni.platform, cni.path.as_str()), (Some("k3s"), "/var/lib/rancher/k3s/agent/etc/cni/net.d"));
    assert_eq!(facts.plugin.unwrap().directory, "/var/lib/rancher/k3s/data/cni");

    k3s.write("bin/host-local", "");
    let facts = gather(&k3s.options(), &FakeKernel::default());
    assert_eq!(facts.cni.unwrap().platform, Some("k3d"));
    assert_eq!(facts.plugin.unwrap().directory, "/bin");

    let gke = Node::new();
    gke.make("home/kubernetes/bin");
    let facts = gather(&gke.options(), &FakeKernel::default());
    assert_eq!(facts.cni.unwrap().platform, Some("gke"));
    assert_eq!(facts.plugin.unwrap().directory, "/home/kubernetes/bin");

    // An empty directory in the usual place does not hide the one that is used; links lead within the node.
    let microk8s = Node::bare();
    microk8s.make("etc/cni/net.d");
    microk8s.write("var/snap/microk8s/12/args/cni-network/10-calico.conflist", node::KINDNET);
    symlink("/var/snap/microk8s/12", microk8s.path("var/snap/microk8s/current")).unwrap();
    let cni = gather(&microk8s.options(), &FakeKernel::default()).cni.unwrap();
    assert_eq!((cni.platform, cni.directory.files.len()), (Some("microk8s"), 1));
}

#[test]
fn the_plugin_s_file_is_compared_with_ours() {
    let node = Node::new();
    let plugin = |node: &Node| gather(&node.options(), &FakeKernel::default()).plugin.unwrap();
    assert_eq!((plugin(&node).mode, plugin(&node).current), (None, None));
    node.write("opt/cni/bin/sluice-cni", "old");
    node.write("opt/cni/bin/kuma-cni", "");
    std::fs::set_permissions(node.path("opt/cni/bin/sluice-cni"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(plugin(&node).current, None, "nothing to compare it with");
    node.write("ours/sluice-cni", "new");
    let found = plugin(&node);
    assert_eq!((found.mode.map(|mode| mode & 0o777), found.current), (Some(0o755), Some(false)));
    assert_eq!(found.others, ["kuma-cni"]);
    node.write("opt/cni/bin/sluice-cni", "new");
    assert_eq!(plugin(&node).current, Some(true));
}

#[test]
fn what_cannot_be_seen_is_said() {
    let nothing = Node::empty();
    let report = report(&nothing);
    for what in [
        "the runtime's CNI configuration",
        "the host's sysctls",
        "how cgroup v2 is mounted",
        "the installation's files",
    ] {
        assert!(
            report.not_looked_at.iter().any(|unseen| unseen.what == what && !unseen.not_asked_for),
            "{what}: {report:#?}"
        );
    }
    assert_eq!(ids(&report, Severity::Problem), Vec::<&str>::new());
    assert_eq!(report.worst(false), Some(Severity::Warning));

    // Sysctls of another network namespace would be read as the host's.
    let elsewhere = Node::new();
    std::fs::remove_file(elsewhere.path("proc/1/ns/net")).unwrap();
    elsewhere.write("proc/1/ns/net", "");
    let facts = gather(&elsewhere.options(), &FakeKernel::default());
    let Unlooked { why, .. } = facts.sysctls.unwrap_err();
    assert!(why.contains("not the host's"), "{why}");
    let denied =
        FakeKernel { trials: Err(Unlooked::new("EPERM", "run it as root")), ..FakeKernel::default() };
    let report = diagnose(&gather(&Node::new().options(), &denied));
    assert!(report.not_looked_at.iter().any(|unseen| unseen.checks.contains(&"kernel-rules")), "{report:#?}");
}

#[test]
fn proc_is_read_as_the_host_has_it() {
    let node = Node::new();
    let facts = gather(&node.options(), &FakeKernel::default());
    assert_eq!(facts.cgroup, Ok(CgroupTree::Unified("/sys/fs/cgroup".to_owned())));
    assert_eq!(facts.sysctls.unwrap()["net.ipv4.ip_forward"], "1");
    assert_eq!(facts.interfaces.unwrap().into_iter().collect::<Vec<_>>(), ["eth0", "lo", "vlan.eth.1"]);
    assert_eq!(facts.limits.unwrap().inotify_instances, Some(8192));
    assert_eq!(facts.notes.unwrap().boot, "b2d0a5de");
    let hybrid = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                  cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
    node.write("proc/1/mounts", hybrid);
    let facts = gather(&node.options(), &FakeKernel::default());
    assert_eq!(facts.cgroup, Ok(CgroupTree::Hybrid("/sys/fs/cgroup/unified".to_owned())));
    node.write("proc/1/mounts", "proc /proc proc rw 0 0\n");
    assert_eq!(gather(&node.options(), &FakeKernel::default()).cgroup, Ok(CgroupTree::Absent));
}

#[test]
fn istio_cni_is_there_while_somebody_answers_on_its_socket() {
    let node = Node::new();
    let seen = |node: &Node| gather(&node.options(), &FakeKernel::default()).traces.unwrap();
    node.make("run/istio-cni");
    let listener =
        std::os::unix::net::UnixListener::bind(node.path("run/istio-cni/pluginevent.sock")).unwrap();
    assert_eq!(seen(&node), ["/run/istio-cni/pluginevent.sock"]);
    drop(listener);
    assert_eq!(seen(&node), Vec::<String>::new(), "its socket is left, and nobody listens");
}

#[test]
fn the_api_server_is_asked_for_lists_and_each_refusal_is_said() {
    let policy = json!([{
        "metadata": {"namespace": "shop", "name": "web", "uid": "1"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"protocol": "TCP", "port": 8080}]}]},
    }]);
    let answers = Answers::default().and("/apis/networking.k8s.io/v1/networkpolicies", policy);
    let server = ApiServer::start(answers.without("/apis/apps/v1/daemonsets"));
    let node = Node::new();
    let mut options = node.options();
    options.api_server = doctor::ApiServer::Kubeconfig(server.kubeconfig(&node.path("kubeconfig")));
    let report = diagnose(&gather(&options, &FakeKernel::default()));
    assert_eq!(ids(&report, Severity::Problem), ["policy-15008"], "{report:#?}");
    let finding = report.findings.iter().find(|finding| finding.id == "policy-15008").unwrap();
    assert!(finding.what.contains("shop/web"), "{finding:?}");
    // The server says no time.
    assert!(report.not_looked_at.iter().any(|unseen| unseen.checks.contains(&"clock")), "{report:#?}");
    let refused = report.not_looked_at.iter().find(|unseen| unseen.what.contains("DaemonSets")).unwrap();
    assert!(refused.why.contains("403") && refused.why.contains("cannot list"), "{refused:?}");
    assert!(!refused.not_asked_for && report.worst(false) >= Some(Severity::Warning));
    let asked = server.asked();
    assert!(asked.iter().all(|line| line.starts_with("GET ")), "{asked:?}");
    assert!(
        asked.iter().any(|line| line.starts_with("GET /api/v1/namespaces?resourceVersion=0 ")),
        "{asked:?}"
    );
}

#[test]
fn an_api_server_that_is_away_is_said() {
    let node = Node::new();
    let gone = ApiServer::start(Answers::default()).kubeconfig(&node.path("kubeconfig"));
    let mut options = node.options();
    // Nobody listens at port 1.
    let text = std::fs::read_to_string(&gone).unwrap();
    let port = text.split("127.0.0.1:").nth(1).unwrap().split('"').next().unwrap().to_owned();
    std::fs::write(&gone, text.replace(&format!(":{port}"), ":1")).unwrap();
    options.api_server = doctor::ApiServer::Kubeconfig(gone);
    let report = diagnose(&gather(&options, &FakeKernel::default()));
    let unseen: Vec<_> =
        report.not_looked_at.iter().filter(|unseen| unseen.checks.contains(&"policy-15008")).collect();
    assert!(!unseen.is_empty());
    assert!(
        unseen.iter().all(|unseen| unseen.why.contains("cannot be reached") && !unseen.not_asked_for),
        "{unseen:#?}"
    );
    options.api_server = doctor::ApiServer::Kubeconfig(node.path("none"));
    let facts = gather(&options, &FakeKernel::default());
    assert!(facts.cluster.unwrap_err().why.contains("none"));
}

/// The program itself, in namespaces of its own and started by these words: what it tries of the kernel is not this
/// machine's affair.
fn program(node: &Node, by: &[&str], args: &[&str]) -> Output {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces, and so needs root");
    Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .args(by)
        .arg(env!("CARGO_BIN_EXE_sluicectl"))
        .args(["doctor", "--host-root"])
        .arg(node.path(""))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_program_s_exit_code_says_how_bad_it_is() {
    let (node, _) = troubled();
    let output = program(&node, &[], &["-o", "json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(2), "{said:#}");
    assert_eq!(said["version"], 1);
    let found: Vec<&str> =
        said["findings"].as_array().unwrap().iter().map(|found| found["id"].as_str().unwrap()).collect();
    for id in ["cni-exclusive", "second-mesh", "notes", "agent", "limits"] {
        assert!(found.contains(&id), "{id} is not in {found:?}");
    }
    let text = program(&node, &[], &[]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("✗ problem cni-exclusive: "), "{text:?}");
    let wrong = program(&node, &[], &["--kubeconfig", "x", "--in-cluster"]);
    assert_eq!(wrong.status.code(), Some(64), "{wrong:?}");
}
