//! What the primary CNI is set to, other meshes, and NetworkPolicies.

use super::*;
use serde_json::{Value, json};

const CILIUM: &str =
    r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"sluice-cni"}]}"#;
const AWS: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","plugins":[
{"name":"aws-cni","type":"aws-cni","mtu":"9001","podSGEnforcingMode":"strict"},
{"type":"portmap"},{"type":"sluice-cni"}]}"#;

fn primary(name: &str, text: &str) -> Facts {
    node(|facts| facts.cni.as_mut().unwrap().directory.files = vec![file(name, text)])
}

/// Keys of Cilium's configuration, and their values.
type Settings<'a> = &'a [(&'a str, &'a str)];

fn cilium(settings: Settings<'_>) -> Facts {
    let mut facts = primary("05-cilium.conflist", CILIUM);
    let settings = [("cni-exclusive", "false")].iter().chain(settings);
    let config = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    facts.cluster.as_mut().unwrap().cilium = Ok(Some(config));
    facts
}

fn program(kind: u32, name: &str) -> BpfProgram {
    BpfProgram { id: 42, kind, name: name.to_owned() }
}

#[test]
fn load_balancing_at_the_socket() {
    use Severity::{Problem, Warning};
    let (lb, routing) = ("cilium-socket-lb", "cilium-host-routing");
    let table: [(Settings<'_>, &[(&str, Severity)]); 6] = [
        (&[], &[]),
        (&[("kube-proxy-replacement", "false")], &[]),
        (&[("kube-proxy-replacement", "true")], &[(lb, Problem)]),
        (&[("bpf-lb-sock", "true")], &[(lb, Problem)]),
        (&[("kube-proxy-replacement", "strict"), ("bpf-lb-sock-hostns-only", "true")], &[]),
        (
            &[
                ("kube-proxy-replacement", "true"),
                ("enable-bpf-masquerade", "true"),
                ("bpf-lb-sock-hostns-only", "true"),
            ],
            &[(routing, Warning)],
        ),
    ];
    for (settings, expected) in table {
        assert_eq!(found(&cilium(settings)), expected, "{settings:?}");
    }
    let legacy = [
        ("kube-proxy-replacement", "true"),
        ("enable-bpf-masquerade", "true"),
        ("bpf-lb-sock-hostns-only", "true"),
        ("enable-host-legacy-routing", "true"),
    ];
    assert_eq!(found(&cilium(&legacy)), []);
}

#[test]
fn load_balancing_at_the_socket_is_seen_on_the_node_too() {
    let mut facts = cilium(&[]);
    facts.cluster = Err(Unlooked::no_cluster());
    facts.bpf.as_mut().unwrap().programs =
        vec![program(18, "cil_sock4_conne"), program(3, "cil_sock4_other")];
    let warning = the(&facts, "cilium-socket-lb");
    assert_eq!(warning.severity, Severity::Warning);
    assert_eq!(warning.evidence.len(), 1, "{warning:?}");
    assert_eq!(warning.evidence[0].value, "cil_sock4_conne (cgroup_sock_addr)");
}

#[test]
fn an_agent_that_does_not_use_snat_does_not_mind_host_routing() {
    let mut facts = cilium(&[
        ("kube-proxy-replacement", "true"),
        ("enable-bpf-masquerade", "true"),
        ("bpf-lb-sock-hostns-only", "true"),
    ]);
    facts.agent = Agent::Answers(Box::new(NodeStatus { probes: choice("source"), ..status() }));
    assert_eq!(found(&facts), []);
}

#[test]
fn strict_mode_of_security_groups() {
    let aws = |env: &[(&str, &str)]| {
        let mut facts = primary("10-aws.conflist", AWS);
        facts.cluster.as_mut().unwrap().daemon_sets = Ok(vec![set("kube-system", "aws-node", env)]);
        facts
    };
    assert_eq!(found(&aws(&[])), [("rp-filter", Severity::Warning)], "no pod has a security group");
    let strict = aws(&[("ENABLE_POD_ENI", "true"), ("POD_SECURITY_GROUP_ENFORCING_MODE", "strict")]);
    let problem = the(&strict, "aws-sg-strict");
    assert_eq!(problem.severity, Severity::Problem);
    assert_eq!(
        (problem.evidence[0].line, problem.evidence[0].place.as_str()),
        (Some(2), "/etc/cni/net.d/10-aws.conflist")
    );
    assert!(
        problem.evidence.iter().any(|seen| seen.value == "POD_SECURITY_GROUP_ENFORCING_MODE=strict"),
        "{problem:?}"
    );
    // Standard mode is written into the list.
    let standard = primary("10-aws.conflist", &AWS.replace("strict", "standard"));
    assert!(!found(&standard).iter().any(|(id, _)| *id == "aws-sg-strict"));
    // Without the API server: not known, or seen in use.
    let mut blind = strict.clone();
    blind.cluster = Err(Unlooked::no_cluster());
    assert_eq!(the(&blind, "aws-sg-strict").severity, Severity::Warning);
    blind.interfaces.as_mut().unwrap().insert("vlan.eth.1".to_owned());
    assert_eq!(the(&blind, "aws-sg-strict").severity, Severity::Problem);
}

#[test]
fn calico_s_ebpf_and_ovn() {
    let mut calico = primary("10-calico.conflist", &KINDNET.replace("\"ptp\"", "\"calico\""));
    assert_eq!(found(&calico), []);
    calico.bpf.as_mut().unwrap().programs = vec![program(18, "calico_connect_")];
    assert_eq!(found(&calico), [("calico-ebpf", Severity::Problem)]);
    let ovn = primary(
        "10-ovn-kubernetes.conf",
        r#"{"cniVersion":"0.4.0","name":"ovn","type":"ovn-k8s-cni-overlay"}"#,
    );
    assert_eq!(the(&ovn, "ovn-gateway").severity, Severity::Warning);
}

#[test]
fn another_mesh() {
    use Severity::{Note, Warning};
    let linkerd = primary(
        "10-kindnet.conflist",
        &KINDNET
            .replace("{\"type\":\"sluice-cni\"}", "{\"type\":\"sluice-cni\"},{\"type\": \"linkerd-cni\"}"),
    );
    let warning = the(&linkerd, "second-mesh");
    assert_eq!((warning.severity, warning.evidence[0].line), (Warning, Some(7)));
    let daemon_set = node(|facts| {
        facts.cluster.as_mut().unwrap().daemon_sets = Ok(vec![set("istio-system", "istio-cni-node", &[])]);
    });
    assert!(the(&daemon_set, "second-mesh").fix.contains("Migrating from istio-cni"));
    let socket = node(|facts| facts.traces = Ok(vec!["/run/istio-cni/pluginevent.sock".to_owned()]));
    assert_eq!(found(&socket), [("second-mesh", Warning)]);
    let file_only = node(|facts| facts.plugin.as_mut().unwrap().others = vec!["kuma-cni".to_owned()]);
    assert_eq!(found(&file_only), [("second-mesh", Note)]);
}

fn policies(namespace: &str, specs: &[Value]) -> Facts {
    let parsed = specs.iter().enumerate().map(|(index, spec)| {
        let name = format!("p{index}");
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}))
            .unwrap()
    });
    let parsed = parsed.collect();
    node(|facts| facts.cluster.as_mut().unwrap().policies = Ok(parsed))
}

#[test]
fn policies_that_leave_out_the_mesh_s_port() {
    let web =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 8080}]}]});
    let with = |spec: &Value, key: &str, value: Value| {
        let mut spec = spec.clone();
        spec[key] = value;
        spec
    };
    let hbone = json!([{"ports": [{"port": 8080}, {"port": 15008}]}]);
    let peers = json!([{"podSelector": {"matchLabels": {"app": "front"}}}]);
    let fine: [(&str, Vec<Value>); 12] = [
        ("it names 15008", vec![with(&web, "ingress", hbone)]),
        (
            "a range has it",
            vec![with(&web, "ingress", json!([{"ports": [{"port": 8080, "endPort": 20000}]}]))],
        ),
        ("all ports", vec![with(&web, "ingress", json!([{"from": peers}]))]),
        ("all of TCP", vec![with(&web, "ingress", json!([{"ports": [{"protocol": "TCP"}]}]))]),
        ("deny everything means it", vec![with(&web, "ingress", json!([]))]),
        ("rules of a direction that it is not about", vec![with(&web, "policyTypes", json!(["Egress"]))]),
        ("UDP only", vec![with(&web, "ingress", json!([{"ports": [{"protocol": "UDP", "port": 514}]}]))]),
        (
            "DNS",
            vec![
                json!({"egress": [{"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]}),
            ],
        ),
        (
            "another for all pods",
            vec![web.clone(), json!({"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]})],
        ),
        (
            "another for the same pods",
            vec![web.clone(), with(&web, "ingress", json!([{"ports": [{"port": 15008}]}]))],
        ),
        (
            "another rule for the same peers",
            vec![with(
                &web,
                "ingress",
                json!([{"from": peers, "ports": [{"port": 80}]}, {"from": peers, "ports": [{"port": 15008}]}]),
            )],
        ),
        (
            "another rule for anybody",
            vec![with(
                &web,
                "ingress",
                json!([{"from": peers, "ports": [{"port": 80}]}, {"ports": [{"port": 15008}]}]),
            )],
        ),
    ];
    for (why, specs) in fine {
        assert_eq!(found(&policies("shop", &specs)), [], "{why}");
    }
    let blocking: [(&str, Vec<Value>); 7] = [
        ("one port", vec![web.clone()]),
        (
            "a range with port 53 in it",
            vec![with(&web, "ingress", json!([{"ports": [{"port": 1, "endPort": 10000}]}]))],
        ),
        ("a port by name", vec![with(&web, "ingress", json!([{"ports": [{"port": "http"}]}]))]),
        (
            "15008 over UDP",
            vec![with(
                &web,
                "ingress",
                json!([{"ports": [{"port": 80}, {"protocol": "UDP", "port": 15008}]}]),
            )],
        ),
        (
            "egress",
            vec![
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers, "ports": [{"port": 5432}]}]}),
            ],
        ),
        (
            "another for other pods",
            vec![
                web.clone(),
                json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [{"port": 15008}]}]}),
            ],
        ),
        (
            "another rule for other peers",
            vec![with(
                &web,
                "ingress",
                json!([{"from": peers, "ports": [{"port": 80}]}, {"from": [{"podSelector": {}}], "ports": [{"port": 15008}]}]),
            )],
        ),
    ];
    for (why, specs) in blocking {
        let report = found(&policies("shop", &specs));
        assert_eq!(report, [("policy-15008", Severity::Problem)], "{why}");
    }
}

#[test]
fn a_policy_outside_the_mesh_bites_when_its_namespace_joins() {
    let spec =
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}, {"port": 9000, "endPort": 9010}]}]});
    let note = the(&policies("other", std::slice::from_ref(&spec)), "policy-15008");
    assert_eq!(note.severity, Severity::Note);
    assert_eq!(note.evidence[0].value, "ingress: TCP 8080, 9000-9010");
    let problem = the(&policies("shop", &[spec]), "policy-15008");
    assert_eq!(problem.evidence[0].place, "networkpolicy shop/p0");
    assert!(problem.fix.starts_with("kubectl -n shop edit networkpolicy p0"), "{problem:?}");
}

#[test]
fn policies_of_other_kinds_are_said_not_to_be_read() {
    let report = diagnose(&cilium(&[]));
    assert!(report.not_looked_at.iter().any(|unseen| unseen.what == "CiliumNetworkPolicies"), "{report:#?}");
    assert_eq!(report.worst(false), None);
}
