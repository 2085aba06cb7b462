//! The plain manifests: what they ask for is exactly this, so that a right, a capability or a path of the host that is
//! added or lost is seen here first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Every document of the YAML files in a directory below this crate's.
fn documents(dir: &str) -> Vec<Value> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let parse = |path| {
        let text = fs::read_to_string(path).unwrap();
        let documents = serde_norway::Deserializer::from_str(&text);
        documents.map(|document| Value::deserialize(document).unwrap()).collect::<Vec<_>>()
    };
    files.iter().flat_map(parse).collect()
}

fn of_kind(documents: Vec<Value>, kind: &str) -> Value {
    let mut found: Vec<_> = documents.into_iter().filter(|document| document["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found.remove(0)
}

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

fn agent() -> Value {
    of_kind(documents("manifests"), "DaemonSet")["spec"]["template"]["spec"].clone()
}

#[test]
fn they_are_these_objects_in_an_order_that_can_be_applied() {
    let name = |object: &Value| {
        let (kind, meta) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        assert_eq!(meta["labels"]["app.kubernetes.io/part-of"], "sluice", "{object}");
        match meta["namespace"].as_str() {
            Some(namespace) => format!("{kind} {namespace}/{}", meta["name"].as_str().unwrap()),
            None => format!("{kind} {}", meta["name"].as_str().unwrap()),
        }
    };
    let names: Vec<_> = documents("manifests").iter().map(name).collect();
    assert_eq!(
        names,
        [
            "Namespace sluice-system",
            "ServiceAccount sluice-system/sluice-agent",
            "ClusterRole sluice-agent",
            "ClusterRoleBinding sluice-agent",
            "ConfigMap sluice-system/sluice-agent",
            "DaemonSet sluice-system/sluice-agent",
        ]
    );
}

#[test]
fn the_agent_may_ask_for_this_and_nothing_else() {
    let role = of_kind(documents("manifests"), "ClusterRole");
    let mut rights = BTreeMap::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(strings(&rule["apiGroups"]), set([""]));
        let keys: BTreeSet<_> = rule.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, set(["apiGroups", "resources", "verbs"]), "{rule}");
        for resource in strings(&rule["resources"]) {
            assert!(rights.insert(resource, strings(&rule["verbs"])).is_none(), "a resource is named twice");
        }
    }
    let expected = [
        ("pods", set(["get", "list", "watch"])),
        ("namespaces", set(["get", "list", "watch"])),
        ("pods/status", set(["patch"])),
        ("events", set(["create", "patch"])),
    ];
    assert_eq!(rights, BTreeMap::from(expected.map(|(resource, verbs)| (resource.to_owned(), verbs))));
    let binding = of_kind(documents("manifests"), "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": "sluice-agent", "namespace": "sluice-system"}])
    );
}

#[test]
fn the_agent_runs_with_these_privileges_and_no_others() {
    let pod = agent();
    assert_eq!(pod["serviceAccountName"], "sluice-agent");
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!((&pod["hostPID"], &pod["hostIPC"]), (&Value::Null, &Value::Null));
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    let context = &pod["containers"][0]["securityContext"];
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(strings(&context["capabilities"]["drop"]), set(["ALL"]));
    let added = set(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "NET_BROADCAST"]);
    assert_eq!(strings(&context["capabilities"]["add"]), added);
}

#[test]
fn the_agent_sees_these_paths_of_the_host_and_writes_to_three() {
    let pod = agent();
    let volumes = pod["volumes"].as_array().unwrap();
    let host = |name: &Value| {
        let volume = volumes.iter().find(|volume| volume["name"] == *name).unwrap();
        volume["hostPath"]["path"].as_str()
    };
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.len(), volumes.len(), "a volume is mounted twice, or not at all");
    let mut paths = BTreeSet::new();
    for mount in mounts {
        if let Some(path) = host(&mount["name"]) {
            let inside = mount["mountPath"].as_str().unwrap();
            paths.insert((path, inside, mount["readOnly"] == true));
        }
    }
    let expected = [
        ("/proc", "/host/proc", true),
        ("/run/containerd", "/run/containerd", true),
        ("/run/netns", "/run/netns", true),
        ("/run/sluice", "/run/sluice", false),
        ("/sys/fs/cgroup", "/sys/fs/cgroup", true),
        ("/var/lib/sluice", "/var/lib/sluice", false),
        ("/var/run/ztunnel", "/var/run/ztunnel", false),
    ];
    assert_eq!(paths, BTreeSet::from(expected));
    // Namespaces that are made after the agent's start must be seen too.
    let netns = mounts.iter().find(|mount| mount["name"] == "netns").unwrap();
    assert_eq!(netns["mountPropagation"], "HostToContainer");
}

#[test]
fn probes_and_configuration_agree() {
    let config = of_kind(documents("manifests"), "ConfigMap");
    let config: Value = serde_norway::from_str(config["data"]["agent.yaml"].as_str().unwrap()).unwrap();
    let pod = agent();
    let container = &pod["containers"][0];
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["path"], path);
        let address = format!("{}:{}", get["host"].as_str().unwrap(), get["port"]);
        assert_eq!(config["metricsAddress"], address);
    }
    let proc = container["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "proc");
    assert_eq!(config["hostProc"], proc.unwrap()["mountPath"]);
    assert_eq!(container["args"], json!(["--config=/etc/sluice/agent.yaml"]));
    // nodeName, by the agent's own name for the variable.
    let node =
        json!([{"name": "SLUICE_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]);
    assert_eq!(container["env"], node);
}

#[test]
fn every_policy_is_about_the_agents_writes_and_is_bound() {
    let documents = documents("manifests/admission");
    let role = of_kind(self::documents("manifests"), "ClusterRole");
    let mut written = BTreeSet::new();
    let (policies, bindings): (Vec<_>, Vec<_>) =
        documents.iter().partition(|document| document["kind"] == "ValidatingAdmissionPolicy");
    for policy in &policies {
        let spec = &policy["spec"];
        assert_eq!(spec["failurePolicy"], "Fail");
        let who = spec["matchConditions"][0]["expression"].as_str().unwrap();
        assert_eq!(who, "request.userInfo.username == 'system:serviceaccount:sluice-system:sluice-agent'");
        for rule in spec["matchConstraints"]["resourceRules"].as_array().unwrap() {
            written.extend(strings(&rule["resources"]));
        }
        let bound =
            bindings.iter().find(|binding| binding["spec"]["policyName"] == policy["metadata"]["name"]);
        assert_eq!(bound.unwrap()["spec"]["validationActions"], json!(["Deny"]));
    }
    // Whatever RBAC lets it write, a policy narrows.
    let writes =
        |rule: &&Value| !strings(&rule["verbs"]).is_disjoint(&set(["create", "patch", "update", "delete"]));
    let rules = role["rules"].as_array().unwrap().iter().filter(writes);
    assert_eq!(written, rules.flat_map(|rule| strings(&rule["resources"])).collect());
}
