//! What is said after the installation: helm renders it only for a cluster, so a template beside it shows it here.

use super::helm::{root, template_of, values};
use serde_json::Value;
use std::process::Command;

fn notes(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let chart = dir.path().join("sluice");
    assert!(Command::new("cp").arg("-r").arg(root().join("chart")).arg(&chart).status().unwrap().success());
    let shows = r#"notes: {{ include "sluice.notes" . | quote }}"#;
    std::fs::write(chart.join("templates/shows.yaml"), shows).unwrap();
    let text = template_of(&chart, &[&["--show-only", "templates/shows.yaml"], args].concat()).unwrap();
    let shown: Value = serde_norway::from_str(&text).unwrap();
    shown["notes"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn what_of_istio_cnis_values_means_nothing_is_said() {
    let text = notes(&["--values", &values("istio-cni")]);
    let said = |key: &str| text.lines().any(|line| line.starts_with(&format!("  {key}: ")));
    for key in [
        "hub",
        "tag",
        "variant",
        "image",
        "cniConfFileName",
        "istioOwnedCNIConfigFileName",
        "provider",
        "privileged",
        "chained",
        "repair",
        "ambient.reconcileIptablesOnStartup",
        "ambient.shareHostNetworkNamespace",
        "global.hub",
        "global.tag",
        "global.nativeNftables",
        "env.AMBIENT_DISABLE_SAFE_UPGRADE",
    ] {
        assert!(said(key), "{key} is not in:\n{text}");
    }
    for key in ["cniBinDir", "excludeNamespaces", "ambient.dnsCapture", "env.HOST_PROBE_SNAT_IP", "revision"]
    {
        assert!(!said(key), "{key} is in:\n{text}");
    }
    assert!(text.contains("terminationGracePeriodSeconds is 20"), "{text}");
    let nested = notes(&["--values", &values("istio-cni-nested")]);
    assert!(nested.contains("  ambient.redirectMode: ") && nested.contains("  global.defaultResources: "));
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn nothing_is_said_of_values_that_nobody_set() {
    let text = notes(&[]);
    assert!(!text.contains("istio-cni"), "{text}");
    assert!(text.contains("/etc/cni/net.d") && text.contains("rollout status"), "{text}");
    assert!(!text.contains("tag that moves"), "{text}");
    let moves = notes(&["--set", "image=registry.example/sluice:latest"]);
    assert!(moves.contains("registry.example/sluice:latest is named by a tag that moves"), "{moves}");
    let digest = format!("image=registry.example/sluice:dev,imageDigest=sha256:{}", "0".repeat(64));
    for fixed in [digest.as_str(), "image=registry.example/sluice:1.2.3"] {
        assert!(!notes(&["--set", fixed]).contains("tag that moves"), "{fixed}");
    }
    for (value, option) in [
        ("istioOwnedCNIConfig=true", "istioOwnedCNIConfig: true"),
        ("install.way=owned", "install.way: owned"),
    ] {
        let text = notes(&["--set", value]);
        assert!(
            text.contains(&format!(
                "WARNING: the plugin comes into the chain by a list of our own ({option})"
            )),
            "{text}"
        );
        assert!(text.contains("cni.exclusive=false") && text.contains("install.way=auto"), "{text}");
    }
    assert!(!text.contains("WARNING"), "{text}");
    let local = notes(&["--set", "seccomp.type=Localhost"]);
    assert!(local.contains("sluice/seccomp.json"), "{local}");
    // The backend that the image has no programs for.
    assert!(!text.contains("iptables"), "{text}");
    let iptables = notes(&["--set", "config.backend=iptables"]);
    assert!(iptables.contains("image must name one that has them"), "{iptables}");
    assert!(iptables.contains("It names docker.io/sluice/sluice:"), "{iptables}");
    let own =
        notes(&["--set", "config.backend=iptables", "--set", "image=registry.example/sluice-iptables:1"]);
    assert!(own.contains("image must name") && !own.contains("It names"), "{own}");
}
