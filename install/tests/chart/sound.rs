//! Every rendering: helm and the API server take it, and it asks for no privilege beyond the known ones.

use super::helm::{apicheck, promcheck, render, renderings, root, run, strings, values};
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
#[ignore = "needs helm: make chart-test"]
fn helm_finds_nothing_wrong() {
    let chart = root().join("chart").display().to_string();
    for values in renderings() {
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        let said = run("helm", &[&["lint", "--strict", &chart], &values[..]].concat());
        assert!(said.is_ok(), "{values:?}: {said:?}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn the_api_server_takes_every_object() {
    for values in renderings() {
        let rendered = render(&values.iter().map(String::as_str).collect::<Vec<_>>());
        let said = apicheck(&rendered.text, None);
        assert!(said.is_ok(), "{values:?}: {said:?}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn prometheus_takes_the_monitor_and_understands_the_rules() {
    let text = render(&["--values", &values("everything")]).text;
    let said = promcheck(&text).unwrap();
    assert!(said.contains("these 2 objects"), "{said}");
    for (right, wrong, named) in [
        ("sluice_held_pods > 0", "sluice_held_pods >> 0", "SluiceConnectionsHeld"),
        ("for: 2m", "for: 2x", "2x"),
        ("interval: 30s", "intervall: 30s", "intervall"),
    ] {
        let text = text.replace(right, wrong);
        let why = promcheck(&text).unwrap_err();
        assert!(why.contains(named), "{why}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn no_rendering_asks_for_more() {
    let set = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<BTreeSet<_>>();
    for values in renderings() {
        let rendered = render(&values.iter().map(String::as_str).collect::<Vec<_>>());
        let pod = rendered.pod();
        for never in ["hostPID", "hostIPC", "shareProcessNamespace", "initContainers"] {
            assert_eq!(pod[never], Value::Null, "{values:?}: {never}");
        }
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["privileged"], false);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(strings(&context["capabilities"]["drop"]), set(&["ALL"]));
            let added = match container["name"].as_str().unwrap() {
                "agent" => set(&["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "NET_BROADCAST"]),
                "install" => set(&["CHOWN", "DAC_OVERRIDE", "FOWNER"]),
                other => panic!("a container {other}"),
            };
            assert_eq!(strings(&context["capabilities"]["add"]), added, "{values:?}");
        }
        // Rights to change something: these, and what taints need where taints are removed.
        let taints = rendered.config()["nodeTaints"] != Value::Null;
        let mut writes = set(&["pods/status", "events"]);
        if taints {
            writes.insert("nodes".to_owned());
        }
        let mut found = BTreeSet::new();
        for role in rendered
            .objects
            .iter()
            .filter(|object| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")))
        {
            for rule in role["rules"].as_array().unwrap() {
                let verbs = strings(&rule["verbs"]);
                assert!(!verbs.contains("*") && !verbs.contains("delete"), "{rule}");
                if verbs.iter().any(|verb| ["create", "patch", "update"].contains(&verb.as_str())) {
                    found.extend(strings(&rule["resources"]));
                }
            }
        }
        assert_eq!(found, writes, "{values:?}");
        // Where there are policies, each of these is narrowed by one.
        let policies = rendered.objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
        let rules = policies.flat_map(|policy| {
            policy["spec"]["matchConstraints"]["resourceRules"].as_array().unwrap().clone()
        });
        let narrowed: BTreeSet<_> = rules.flat_map(|rule| strings(&rule["resources"])).collect();
        assert!(narrowed == writes || narrowed.is_empty(), "{values:?}: {narrowed:?}");
        assert_eq!(rendered.count("ValidatingAdmissionPolicyBinding"), narrowed.len());
    }
}

/// Where iptables-legacy has its lock, on the node and in the container.
const LOCK: &str = "/run/xtables.lock";

/// What iptables-legacy needs, and only where its backend is asked for.
#[test]
#[ignore = "needs helm: make chart-test"]
fn the_backend_iptables_gets_what_its_programs_need() {
    let lock = |args: &[&str]| {
        let rendered = render(args);
        assert!(apicheck(&rendered.text, None).is_ok(), "{args:?}");
        let agent = rendered.container("agent");
        let raw = strings(&agent["securityContext"]["capabilities"]["add"]).contains("NET_RAW");
        // The node's own, or nobody else is locked out.
        let volumes = rendered.pod()["volumes"].as_array().unwrap().clone();
        let file = volumes.iter().find(|volume| volume["hostPath"]["path"] == LOCK);
        assert!(file.is_none_or(|file| file["hostPath"]["type"] == "FileOrCreate"), "{args:?}: {file:?}");
        assert!(rendered.writes("install", LOCK).is_none(), "{args:?}: the installer runs no iptables");
        let env = agent["env"].as_array().unwrap();
        assert!(env.iter().all(|variable| variable["name"] != "XTABLES_LOCKFILE"), "{args:?}: {env:?}");
        (raw, rendered.writes("agent", LOCK))
    };
    assert_eq!(lock(&[]), (false, None));
    assert_eq!(lock(&["--set", "config.backend=nftables"]), (false, None));
    let iptables = ["--set", "config.backend=iptables"];
    assert_eq!(lock(&iptables), (true, Some(true)));
    // On OpenShift what may be asked for is what is asked for.
    let openshift = ["--set", "platform=openshift"];
    for (args, allowed) in [(openshift.to_vec(), false), ([openshift, iptables].concat(), true)] {
        let scc = render(&args).one("SecurityContextConstraints").clone();
        assert_eq!(strings(&scc["allowedCapabilities"]).contains("NET_RAW"), allowed, "{args:?}");
    }
}

/// What comes to the agent over a network, by its own configuration: the one port; and it goes to the API server alone.
#[test]
#[ignore = "needs helm: make chart-test"]
fn a_network_policy_lets_through_what_the_agent_needs() {
    assert_eq!(render(&[]).count("NetworkPolicy"), 0);
    let names = ["networkPolicy.enabled=true", "global.networkPolicy.enabled=true"];
    for (values, on) in renderings().iter().zip(names.into_iter().cycle()) {
        let mut args: Vec<_> = values.iter().map(String::as_str).collect();
        args.extend(["--set", on]);
        let rendered = render(&args);
        let policy = rendered.one("NetworkPolicy");
        let labels = &rendered.one("DaemonSet")["spec"]["template"]["metadata"]["labels"];
        for (key, value) in policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[key], value, "{args:?}");
        }
        assert_eq!(policy["metadata"]["namespace"], "mesh");
        let agent = rendered.container("agent");
        let address = rendered.config()["metricsAddress"].as_str().unwrap().to_owned();
        let ports = policy["spec"]["ingress"][0]["ports"].as_array().unwrap();
        assert_eq!(ports.len(), 1, "{args:?}");
        assert!(address.ends_with(&format!(":{}", ports[0]["port"])), "{args:?}: {address}");
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(agent[probe]["httpGet"]["port"], ports[0]["port"], "{args:?}");
        }
        for port in agent["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["containerPort"], ports[0]["port"], "{args:?}");
        }
        assert!(apicheck(&rendered.text, None).is_ok(), "{args:?}");
        // The API server's address is not known to a chart.
        assert_eq!(policy["spec"]["egress"], serde_json::json!([{}]), "{args:?}");
        assert_eq!(strings(&policy["spec"]["policyTypes"]).len(), 2, "a direction is left open unsaid");
    }
    // That the API server's word counts.
    let text = render(&["--set", names[0]]).text;
    for (right, wrong) in [("policyTypes: [Ingress", "policyTypes: [Inward"), ("ingress:", "incoming:")] {
        assert!(text.contains(right));
        let why = apicheck(&text.replace(right, wrong), None).unwrap_err();
        assert!(why.contains("NetworkPolicy"), "{why}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn parts_can_be_left_out() {
    let alone = render(&["--values", &values("agent-only")]);
    assert_eq!(alone.pod()["containers"].as_array().unwrap().len(), 1);
    assert_eq!(alone.count("ValidatingAdmissionPolicy"), 0);
    assert_eq!(alone.config()["criSocket"], "");
    assert_eq!(alone.writes("agent", "/run/containerd"), None);
    let old = render(&["--kube-version", "1.29.0"]);
    assert_eq!(old.count("ValidatingAdmissionPolicy"), 0, "it has none");
    let agent = &old.container("agent")["securityContext"];
    assert_eq!(agent["appArmorProfile"], Value::Null, "it has no such field");
    let annotations = &old.one("DaemonSet")["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["container.apparmor.security.beta.kubernetes.io/agent"], "unconfined");
    let (cluster, namespace) = (
        render(&["--set", "global.resourceScope=cluster"]),
        render(&["--set", "global.resourceScope=namespace"]),
    );
    let all = render(&[]).objects.len();
    assert_eq!(cluster.objects.len() + namespace.objects.len(), all);
    assert!(cluster.objects.iter().all(|object| object["metadata"]["namespace"] == Value::Null));
    assert!(namespace.objects.iter().all(|object| object["metadata"]["namespace"] == "mesh"));
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn kustomize_builds_the_bases() {
    for base in ["manifests", "manifests/complete"] {
        let built = run("kubectl", &["kustomize", &root().join(base).display().to_string()]).unwrap();
        let said = apicheck(&built, None).unwrap();
        assert!(said.contains("these 12 objects"), "{base}: {said}");
    }
}
