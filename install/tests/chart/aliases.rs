//! istio-cni's values: those that mean something here do.

use super::helm::{default_image, render, values};
use serde_json::json;

#[test]
#[ignore = "needs helm: make chart-test"]
fn istio_cnis_values_file_is_understood() {
    let rendered = render(&["--values", &values("istio-cni")]);
    let config = rendered.config();
    let expected = [
        ("excludeNamespaces", json!(["kube-system", "monitoring", "mesh"])),
        ("dnsCapture", json!(false)),
        ("ipv6", json!(false)),
        ("whenAgentUnavailable", json!("fail-closed")),
        ("logLevel", json!("debug")),
        ("logFormat", json!("text")),
        ("netnsDirs", json!(["/var/run/docker/netns"])),
        ("probeSourceV4", json!("169.254.9.9")),
        ("metricsAddress", json!("0.0.0.0:15014")),
    ];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["enablementSelectors"].as_array().unwrap().len(), 2);

    let args = rendered.install_args();
    for arg in ["--conf-dir=/etc/cni/other.d", "--bin-dir=/opt/cni/other", "--way=owned", "--log-level=error"]
    {
        assert!(args.contains(arg), "{arg}: {args:?}");
    }
    let (daemon_set, pod) = (rendered.one("DaemonSet"), rendered.pod());
    let template = &daemon_set["spec"]["template"]["metadata"];
    assert_eq!(daemon_set["metadata"]["labels"]["team"], "platform");
    assert_eq!(daemon_set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    assert_eq!(template["labels"]["k8s-app"], "istio-cni-node");
    assert_eq!(template["annotations"]["example.org/owner"], "platform");
    assert_eq!(pod["affinity"]["nodeAffinity"].as_object().unwrap().len(), 1);
    assert_eq!(pod["tolerations"].as_array().unwrap().len(), 3);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry-key"}]));
    assert_eq!(pod["securityContext"]["seLinuxOptions"], json!({"level": "s0", "type": "spc_t"}));
    // Five seconds are too few to leave a node.
    assert_eq!(pod["terminationGracePeriodSeconds"], 20);
    assert_eq!(rendered.one("ResourceQuota")["spec"]["hard"]["pods"], "5000");
    assert_eq!(rendered.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"], "15s");

    let agent = rendered.container("agent");
    assert_eq!(agent["image"], default_image(), "hub, tag and image name Istio's");
    assert_eq!(agent["imagePullPolicy"], "Always");
    assert_eq!(agent["resources"]["requests"], json!({"cpu": "100m", "memory": "100Mi"}));
    let names: Vec<_> = agent["env"].as_array().unwrap().iter().map(|variable| &variable["name"]).collect();
    assert!(!names.contains(&&json!("HOST_PROBE_SNAT_IP")), "that is in the configuration");
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn values_below_cni_are_taken_too() {
    let rendered = render(&["--values", &values("istio-cni-nested")]);
    assert_eq!(rendered.config()["excludeNamespaces"], json!(["istio-system", "kube-system", "mesh"]));
    assert_eq!(rendered.config()["logLevel"], "debug");
    assert_eq!(rendered.one("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    assert_eq!(rendered.count("ResourceQuota"), 0, "it says no, whatever the platform");
    assert_eq!(rendered.writes("install", "/home/kubernetes/bin"), Some(true));
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn a_whole_image_reference_is_taken_but_istios() {
    let image = |value: &str| render(&["--set", value]).container("install")["image"].clone();
    assert_eq!(image("image=registry.example/mirror/sluice:1.0"), "registry.example/mirror/sluice:1.0");
    assert_eq!(image("image=registry.example/istio/install-cni:1.28.1"), default_image());
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let by_digest = image(&format!("imageDigest={digest}"));
    assert_eq!(by_digest, format!("{}@{digest}", default_image()));
    let both = image(&format!("image=registry.example/sluice:1.0,imageDigest={digest}"));
    assert_eq!(both, format!("registry.example/sluice:1.0@{digest}"));
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn a_tag_that_is_not_given_is_the_version() {
    assert_eq!(render(&[]).container("agent")["image"], default_image());
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn everything_of_ones_own_is_passed_on() {
    let rendered = render(&["--values", &values("everything")]);
    let args = rendered.install_args();
    for arg in [
        "--way=in-place",
        "--on-term=keep",
        "--leftover=keep",
        "--lease-horizon=86400",
        "--reboot-grace=60",
        "--timeout-seconds=20",
        "--runtime=cri-o://1.34.1",
        "--exempt-pods=storage/csi-",
        "--exempt-pods=kube-system/node-local-dns",
    ] {
        assert!(args.contains(arg), "{arg}: {args:?}");
    }
    let agent = rendered.container("agent");
    assert_eq!(agent["readinessProbe"]["httpGet"], json!({"host": "::1", "port": 15099, "path": "/readyz"}));
    assert_eq!(agent["ports"][0]["containerPort"], 15099);
    assert_eq!(
        rendered.pod()["securityContext"]["seccompProfile"],
        json!({"type": "Localhost", "localhostProfile": "sluice/seccomp.json"})
    );
    assert_eq!(rendered.config()["nodeTaints"], json!(["cni.istio.io/not-ready", "example.org/no-mesh"]));
    assert_eq!(rendered.pod()["nodeSelector"], json!({"kubernetes.io/os": "linux", "mesh": "yes"}));
    assert_eq!(rendered.count("PrometheusRule"), 1);
}
