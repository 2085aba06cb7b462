//! The plain manifests, which `make manifests` renders from the chart: what they ask for is exactly this, so that a
//! right, a capability or a path of the host that is added or lost is seen here first. That they are what the chart
//! renders now is for `make chart-test` to say.

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

/// The agent alone; and agent and installer.
const BOTH: [&str; 2] = ["manifests", "manifests/complete"];

fn pod(dir: &str) -> Value {
    of_kind(documents(dir), "DaemonSet")["spec"]["template"]["spec"].clone()
}

fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["containers"].as_array().unwrap().iter().find(|container| container["name"] == name)
}

/// Paths of the host that a container sees: there, here, and whether only to read.
fn host_paths(pod: &Value, container: &Value) -> BTreeSet<(String, String, bool)> {
    let host = |name: &Value| {
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == *name);
        volume.unwrap()["hostPath"]["path"].as_str().map(str::to_owned)
    };
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    let path = |mount: &Value| {
        let inside = mount["mountPath"].as_str().unwrap().to_owned();
        host(&mount["name"]).map(|path| (path, inside, mount["readOnly"] == true))
    };
    mounts.filter_map(path).collect()
}

fn paths<const N: usize>(paths: [(&str, &str, bool); N]) -> BTreeSet<(String, String, bool)> {
    paths.map(|(host, inside, read_only)| (host.to_owned(), inside.to_owned(), read_only)).into()
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
    for dir in BOTH {
        let names: Vec<_> = documents(dir).iter().map(name).collect();
        assert_eq!(
            names,
            [
                "Namespace sluice-system",
                "ServiceAccount sluice-system/sluice-agent",
                "ClusterRole sluice-agent",
                "ClusterRoleBinding sluice-agent",
                "Role sluice-system/sluice-agent",
                "RoleBinding sluice-system/sluice-agent",
                "ConfigMap sluice-system/sluice-agent",
                "DaemonSet sluice-system/sluice-agent",
            ]
        );
    }
}

#[test]
fn kustomize_has_them_all() {
    for dir in BOTH {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        let base: Value =
            serde_norway::from_str(&fs::read_to_string(dir.join("Kustomization")).unwrap()).unwrap();
        let mut files = BTreeSet::new();
        for below in ["", "admission/"] {
            for entry in fs::read_dir(dir.join(below)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.ends_with(".yaml") {
                    files.insert(format!("{below}{name}"));
                }
            }
        }
        assert_eq!(strings(&base["resources"]), files);
    }
}

#[test]
fn the_agent_may_ask_for_this_and_nothing_else() {
    for dir in BOTH {
        let role = of_kind(documents(dir), "ClusterRole");
        let mut rights = BTreeMap::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(strings(&rule["apiGroups"]), set([""]));
            let keys: BTreeSet<_> = rule.as_object().unwrap().keys().cloned().collect();
            assert_eq!(keys, set(["apiGroups", "resources", "verbs"]), "{rule}");
            for resource in strings(&rule["resources"]) {
                assert!(
                    rights.insert(resource, strings(&rule["verbs"])).is_none(),
                    "a resource is named twice"
                );
            }
        }
        let expected = [
            ("pods", set(["get", "list", "watch"])),
            ("namespaces", set(["list", "watch"])),
            ("pods/status", set(["patch"])),
            ("events", set(["create", "patch"])),
            ("nodes", set(["get"])),
        ];
        assert_eq!(rights, BTreeMap::from(expected.map(|(resource, verbs)| (resource.to_owned(), verbs))));
        let own = of_kind(documents(dir), "Role");
        assert_eq!(
            own["rules"],
            json!([{"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["sluice-agent"], "verbs": ["get"]}])
        );
        for (role, binding) in [(role, "ClusterRoleBinding"), (own, "RoleBinding")] {
            let binding = of_kind(documents(dir), binding);
            assert_eq!(binding["roleRef"]["kind"], role["kind"]);
            assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
            assert_eq!(
                binding["subjects"],
                json!([{"kind": "ServiceAccount", "name": "sluice-agent", "namespace": "sluice-system"}])
            );
        }
    }
}

#[test]
fn operators_are_told_of_every_right() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install.md")).unwrap();
    let table = docs.split_once("What it may ask of the API server is all here:").unwrap().1.trim_start();
    let rows =
        table.lines().take_while(|line| line.starts_with('|')).map(|row| row.split('|').nth(1).unwrap());
    // What the chart adds with a value of its own is not in the manifests.
    let told = rows.filter(|rule| rule.contains('`') && !rule.contains("only where")).map(|rule| {
        let (resource, verbs) = rule.trim().strip_prefix('`').unwrap().split_once("`: ").unwrap();
        let verbs = verbs.split(", ").take_while(|verb| !verb.contains(' '));
        (resource.to_owned(), verbs.map(str::to_owned).collect::<BTreeSet<_>>())
    });
    let given = documents("manifests")
        .into_iter()
        .filter(|object| ["ClusterRole", "Role"].iter().any(|kind| object["kind"] == *kind));
    let rules = given.flat_map(|role| role["rules"].as_array().unwrap().clone());
    let given = rules.flat_map(|rule| {
        let verbs = strings(&rule["verbs"]);
        strings(&rule["resources"]).into_iter().map(move |resource| (resource, verbs.clone()))
    });
    assert_eq!(told.collect::<BTreeMap<_, _>>(), given.collect());
}

#[test]
fn the_containers_run_with_these_privileges_and_no_others() {
    for dir in BOTH {
        let pod = pod(dir);
        assert_eq!(pod["serviceAccountName"], "sluice-agent");
        assert_eq!(pod["hostNetwork"], true);
        assert_eq!((&pod["hostPID"], &pod["hostIPC"]), (&Value::Null, &Value::Null));
        assert_eq!(
            pod["securityContext"],
            json!({"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}})
        );
        let mut capabilities = BTreeMap::new();
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["privileged"], false);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["seccompProfile"], Value::Null, "the pod's holds for both");
            assert_eq!(strings(&context["capabilities"]["drop"]), set(["ALL"]));
            capabilities
                .insert(container["name"].as_str().unwrap(), strings(&context["capabilities"]["add"]));
        }
        let mut expected =
            BTreeMap::from([("agent", set(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "NET_BROADCAST"]))]);
        if dir != "manifests" {
            expected.insert("install", set(["CHOWN", "DAC_OVERRIDE", "FOWNER"]));
        }
        assert_eq!(capabilities, expected);
    }
}

#[test]
fn each_container_sees_these_paths_of_the_host() {
    for dir in BOTH {
        let pod = pod(dir);
        let agent = container(&pod, "agent").unwrap();
        let expected = paths([
            ("/proc", "/host/proc", true),
            ("/run/containerd", "/run/containerd", true),
            ("/run/netns", "/run/netns", true),
            ("/run/sluice", "/run/sluice", false),
            ("/sys/fs/cgroup", "/sys/fs/cgroup", true),
            ("/var/lib/sluice", "/var/lib/sluice", false),
            ("/var/run/ztunnel", "/var/run/ztunnel", false),
        ]);
        assert_eq!(host_paths(&pod, agent), expected);
        // Namespaces that are made after the agent's start must be seen too.
        let mounts = agent["volumeMounts"].as_array().unwrap();
        let netns = mounts.iter().find(|mount| mount["name"] == "netns").unwrap();
        assert_eq!(netns["mountPropagation"], "HostToContainer");
        let Some(install) = container(&pod, "install") else {
            assert_eq!(dir, "manifests");
            continue;
        };
        let expected = paths([
            ("/etc/cni/net.d", "/etc/cni/net.d", false),
            ("/opt/cni/bin", "/opt/cni/bin", false),
            ("/run/sluice", "/run/sluice", false),
            ("/var/lib/cni", "/var/lib/cni", true),
            ("/var/lib/sluice", "/var/lib/sluice", false),
        ]);
        assert_eq!(host_paths(&pod, install), expected);
        // A chain that names a plugin which the runtime cannot find fails every pod: a wrong directory is not made.
        let volumes = pod["volumes"].as_array().unwrap();
        let bin = volumes.iter().find(|volume| volume["name"] == "cni-bin").unwrap();
        assert_eq!(bin["hostPath"]["type"], "Directory");
        let mounted: BTreeSet<_> = pod["containers"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|container| {
                container["volumeMounts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|mount| mount["name"].as_str().unwrap())
            })
            .collect();
        assert_eq!(mounted.len(), volumes.len(), "a volume is not mounted");
    }
}

#[test]
fn probes_and_configuration_agree() {
    for dir in BOTH {
        let config = of_kind(documents(dir), "ConfigMap");
        let config: Value = serde_norway::from_str(config["data"]["agent.yaml"].as_str().unwrap()).unwrap();
        let pod = pod(dir);
        let container = container(&pod, "agent").unwrap();
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["path"], path);
            let address = format!("{}:{}", get["host"].as_str().unwrap(), get["port"]);
            assert_eq!(config["metricsAddress"], address);
        }
        let proc = container["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "proc");
        assert_eq!(config["hostProc"], proc.unwrap()["mountPath"]);
        assert_eq!(container["args"], json!(["--config=/etc/sluice/agent.yaml"]));
        // nodeName, by the agent's own name for the variable; and its DaemonSet and pod.
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        assert_eq!(
            container["env"],
            json!([
                {"name": "SLUICE_NODE_NAME", "valueFrom": field("spec.nodeName")},
                {"name": "SLUICE_NAMESPACE", "valueFrom": field("metadata.namespace")},
                {"name": "SLUICE_POD_NAME", "valueFrom": field("metadata.name")},
                {"name": "SLUICE_POD_UID", "valueFrom": field("metadata.uid")},
                {"name": "SLUICE_DAEMONSET", "value": "sluice-agent"},
            ])
        );
    }
}

#[test]
fn every_policy_is_about_the_agents_writes_and_is_bound() {
    for dir in BOTH {
        every_policy_in(dir);
    }
}

fn every_policy_in(dir: &str) {
    let documents = documents(&format!("{dir}/admission"));
    let role = of_kind(self::documents(dir), "ClusterRole");
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

#[test]
fn the_charts_schema_knows_the_agents_keys_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = fs::read_to_string(root.join("chart/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let known: BTreeSet<_> =
        schema["$defs"]["agent"]["properties"].as_object().unwrap().keys().cloned().collect();
    // Generated from the agent's own table.
    let keys = fs::read_to_string(root.join("../docs/config.md")).unwrap();
    let keys = keys.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned);
    assert_eq!(known, keys.collect(), "add the key to $defs.agent of install/chart/values.schema.json");
}

/// The version is Cargo.toml's; whatever else says one says the same.
#[test]
fn there_is_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("chart/Chart.yaml");
    let chart: Value = serde_norway::from_str(&fs::read_to_string(chart).unwrap()).unwrap();
    assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
    for dir in BOTH {
        for container in pod(dir)["containers"].as_array().unwrap() {
            assert_eq!(container["image"], format!("docker.io/sluice/sluice:{version}"), "{dir}");
        }
    }
}
