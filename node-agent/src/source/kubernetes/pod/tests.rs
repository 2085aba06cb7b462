//! Pods as the API server writes them, and what is taken of each.

use super::*;
use serde_json::{Value, json};
use sluice_shared::enroll::EnrollPolicy;

fn read(pod: &Value) -> Result<PodFacts, String> {
    let object: PodObject = serde_json::from_value(pod.clone()).map_err(|error| error.to_string())?;
    facts(object, &WantedLabels::of(&EnrollPolicy::default()))
}

/// A pod with these fields put in place: `/spec/hostNetwork` and its value.
fn pod(changes: &[(&str, Value)]) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0",
            "namespace": "shop",
            "uid": "0f2f7c1e-7d1c-4c5e-9d0f-6d0e7c1a2b3c",
            "resourceVersion": "7",
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"nodeName": "node1", "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    for (path, value) in changes {
        let (parent, field) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    pod
}

#[test]
fn what_is_not_said_has_the_api_s_defaults() {
    let facts = read(&pod(&[("/status", json!({}))])).unwrap();
    assert_eq!((facts.name.as_str(), facts.namespace.as_str()), ("web-0", "shop"));
    assert_eq!(facts.service_account, "default");
    assert_eq!(facts.phase, Phase::Pending);
    assert!(!facts.host_network && facts.netns.is_none());
    assert!(facts.labels.is_empty() && facts.annotations.is_empty());
    assert!(facts.ips.is_empty() && facts.probe_ports.is_empty());
}

#[test]
fn fields_are_taken_as_they_are() {
    let facts = read(&pod(&[
        ("/spec/hostNetwork", json!(true)),
        ("/spec/serviceAccountName", json!("checkout")),
        ("/metadata/labels", json!({"istio.io/dataplane-mode": "none", "app": "web"})),
        (
            "/metadata/annotations",
            json!({"sidecar.istio.io/status": "{}", "ambient.istio.io/redirection": "enabled", "other": "x"}),
        ),
        // It is being deleted, and is there until it is gone.
        ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
    ]))
    .unwrap();
    assert!(facts.host_network);
    assert_eq!(facts.service_account, "checkout");
    assert_eq!(
        facts.labels.into_iter().collect::<Vec<_>>(),
        [("istio.io/dataplane-mode".into(), "none".into())]
    );
    let kept: Vec<_> = facts.annotations.keys().map(String::as_str).collect();
    assert_eq!(kept, ["ambient.istio.io/redirection", "sidecar.istio.io/status"]);
}

#[test]
fn each_phase_is_known_and_a_new_one_is_no_reason_to_lose_the_pod() {
    for (text, phase) in [
        ("Pending", Phase::Pending),
        ("Running", Phase::Running),
        ("Succeeded", Phase::Succeeded),
        ("Failed", Phase::Failed),
        ("Unknown", Phase::Unknown),
        ("Frozen", Phase::Unknown),
    ] {
        assert_eq!(read(&pod(&[("/status/phase", json!(text))])).unwrap().phase, phase);
    }
}

#[test]
fn addresses_are_canonical_in_order_and_only_what_a_pod_can_have() {
    for (status, expected) in [
        (json!({"podIP": "10.0.0.2"}), vec!["10.0.0.2"]),
        (
            json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}),
            vec!["10.0.0.2", "fd00::2"],
        ),
        (json!({"podIPs": [{"ip": "fd00::2"}, {"ip": "10.0.0.2"}]}), vec!["fd00::2", "10.0.0.2"]),
        (json!({"podIPs": [{"ip": "::ffff:10.0.0.2"}]}), vec!["10.0.0.2"]),
        (
            json!({"podIPs": [{"ip": "x"}, {}, {"ip": "127.0.0.1"}, {"ip": "0.0.0.0"}, {"ip": "10.0.0.2"}]}),
            vec!["10.0.0.2"],
        ),
        (json!({"podIPs": null}), vec![]),
    ] {
        let ips: Vec<_> =
            read(&pod(&[("/status", status)])).unwrap().ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, expected);
    }
}

#[test]
fn probed_ports_are_those_that_the_kubelet_connects_to() {
    let ports = json!([{"name": "web", "containerPort": 8080}, {"containerPort": 9}]);
    for (what, containers, init, expected) in [
        ("http", json!([{"livenessProbe": {"httpGet": {"port": 80, "path": "/"}}}]), json!([]), vec![80]),
        ("tcp", json!([{"readinessProbe": {"tcpSocket": {"port": 81}}}]), json!([]), vec![81]),
        ("grpc", json!([{"startupProbe": {"grpc": {"port": 82, "service": null}}}]), json!([]), vec![82]),
        ("exec", json!([{"livenessProbe": {"exec": {"command": ["true"]}}}]), json!([]), vec![]),
        (
            "named",
            json!([{"ports": ports, "livenessProbe": {"httpGet": {"port": "web"}}}]),
            json!([]),
            vec![8080],
        ),
        ("a number as text", json!([{"livenessProbe": {"httpGet": {"port": "83"}}}]), json!([]), vec![83]),
        ("an unknown name", json!([{"livenessProbe": {"httpGet": {"port": "nope"}}}]), json!([]), vec![]),
        (
            "another container's name",
            json!([{"ports": ports}, {"livenessProbe": {"httpGet": {"port": "web"}}}]),
            json!([]),
            vec![],
        ),
        (
            "a native sidecar",
            json!([{}]),
            json!([{"restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 84}}}]),
            vec![84],
        ),
        ("an init container", json!([{}]), json!([{"startupProbe": {"tcpSocket": {"port": 85}}}]), vec![]),
        ("hooks", json!([{"lifecycle": {"preStop": {"httpGet": {"port": 86}}}}]), json!([]), vec![86]),
        (
            "elsewhere",
            json!([{"livenessProbe": {"httpGet": {"host": "1.2.3.4", "port": 87}}}]),
            json!([]),
            vec![],
        ),
        (
            "twice, and none",
            json!([{"livenessProbe": {"httpGet": {"port": 9}}, "readinessProbe": {"httpGet": {"port": 9}}},
                   {"livenessProbe": {"tcpSocket": {"port": 0}}, "readinessProbe": {"tcpSocket": {"port": 70000}}},
                   {"livenessProbe": {"tcpSocket": {"port": {"a": 1}}}}]),
            json!([]),
            vec![9],
        ),
    ] {
        let facts = read(&pod(&[("/spec/containers", containers), ("/spec/initContainers", init)])).unwrap();
        assert_eq!(facts.probe_ports, expected, "{what}");
    }
}

#[test]
fn a_static_pod_has_the_uid_that_the_runtime_knows() {
    let mirror =
        |text: &str| read(&pod(&[("/metadata/annotations", json!({"kubernetes.io/config.mirror": text}))]));
    let hash = "0123456789abcdef0123456789abcdef";
    assert_eq!(mirror(hash).unwrap().uid.as_str(), hash);
    // What could be another pod's uid is not believed.
    for forged in
        ["1f2f7c1e-7d1c-4c5e-9d0f-6d0e7c1a2b3d", "", "../../etc", "0123456789ABCDEF0123456789ABCDEF"]
    {
        assert_eq!(mirror(forged).unwrap().uid.as_str(), "0f2f7c1e-7d1c-4c5e-9d0f-6d0e7c1a2b3c");
    }
}

#[test]
fn what_the_api_server_would_refuse_is_refused_by_field() {
    for (path, value, field) in [
        ("/metadata/uid", json!("a/b"), "metadata.uid"),
        ("/metadata/uid", json!(""), "metadata.uid"),
        ("/metadata/name", json!("a\nb"), "metadata.name"),
        ("/metadata/namespace", json!(""), "metadata.namespace"),
        ("/spec/serviceAccountName", json!("../x"), "spec.serviceAccountName"),
        ("/metadata/labels", json!(["a"]), "expected a map"),
        ("/spec/containers", json!("none"), "expected a sequence"),
    ] {
        let said = read(&pod(&[(path, value)])).unwrap_err();
        assert!(said.contains(field), "{path}: {said}");
    }
}
