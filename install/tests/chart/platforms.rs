//! What each preset says of the node, in one table; and that a value of one's own comes before it.

use super::helm::{PLATFORMS, render, root};
use std::collections::BTreeSet;

/// Where things are on a node.
#[derive(Debug, PartialEq)]
struct Node {
    conf: &'static str,
    bin: &'static str,
    runtime: &'static str,
}

const USUAL: Node = Node { conf: "/etc/cni/net.d", bin: "/opt/cni/bin", runtime: "/run/containerd" };

fn table(platform: &str) -> Node {
    match platform {
        "gke" => Node { bin: "/home/kubernetes/bin", ..USUAL },
        "openshift" => Node { conf: "/run/multus/cni/net.d", bin: "/var/lib/cni/bin", runtime: "/run/crio" },
        "k3s" => Node {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/var/lib/rancher/k3s/data/cni",
            runtime: "/run/k3s/containerd",
        },
        "k3d" => Node {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/bin",
            runtime: "/run/k3s/containerd",
        },
        "rke2" => Node { runtime: "/run/k3s/containerd", ..USUAL },
        "microk8s" => Node {
            conf: "/var/snap/microk8s/current/args/cni-network",
            bin: "/var/snap/microk8s/current/opt/cni/bin",
            runtime: "/var/snap/microk8s/common/run",
        },
        _ => USUAL,
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn each_says_where_things_are() {
    for (platform, value) in PLATFORMS.iter().flat_map(|name| [(name, "platform"), (name, "global.platform")])
    {
        let rendered = render(&["--set", &format!("{value}={platform}")]);
        let node = table(platform);
        let args = rendered.install_args();
        assert!(args.contains(&format!("--conf-dir={}", node.conf)), "{platform}: {args:?}");
        assert!(args.contains(&format!("--bin-dir={}", node.bin)), "{platform}: {args:?}");
        assert_eq!(rendered.writes("install", node.conf), Some(true), "{platform}");
        assert_eq!(rendered.writes("install", node.bin), Some(true), "{platform}");
        assert_eq!(rendered.writes("agent", node.conf), None, "{platform}: that is the installer's");
        assert_eq!(rendered.writes("agent", node.bin), None, "{platform}: that is the installer's");
        assert_eq!(rendered.writes("agent", node.runtime), Some(false), "{platform}");
        assert_eq!(rendered.writes("install", node.runtime), None, "{platform}: that is the agent's");
        let looks = &rendered.container("install")["readinessProbe"]["exec"]["command"];
        assert!(looks.to_string().contains(&format!("--conf-dir={}", node.conf)), "{looks}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn some_need_more_than_paths() {
    for platform in PLATFORMS {
        let rendered = render(&["--set", &format!("platform={platform}")]);
        assert_eq!(rendered.count("ResourceQuota"), usize::from(platform == "gke"), "{platform}");
        let constraints = usize::from(platform == "openshift");
        assert_eq!(rendered.count("SecurityContextConstraints"), constraints, "{platform}");
        let selinux = match platform {
            "openshift" => Some("spc_t"),
            "bottlerocket" => Some("super_t"),
            _ => None,
        };
        let found = &rendered.pod()["securityContext"]["seLinuxOptions"]["type"];
        assert_eq!(found.as_str(), selinux, "{platform}");
        let chain = rendered.install_args().contains("--auxiliary-chain=vendor-cni-chain");
        assert_eq!(chain, platform == "openshift", "{platform}");
    }
    let system = ["--namespace", "kube-system", "--set", "platform=gke"];
    assert_eq!(render(&system).count("ResourceQuota"), 0, "kube-system needs none");
    let minikube = render(&["--set", "platform=minikube"]);
    assert_eq!(minikube.config()["netnsDirs"], serde_json::json!(["/run/netns", "/run/docker/netns"]));
    assert_eq!(minikube.writes("agent", "/run/docker/netns"), Some(false));
}

/// The pods' own capabilities are what the constraints allow: one that is missing there keeps every pod from starting.
#[test]
#[ignore = "needs helm: make chart-test"]
fn the_constraints_allow_what_the_pods_ask_for() {
    let rendered = render(&["--set", "platform=openshift"]);
    let constraints = rendered.one("SecurityContextConstraints");
    let asked = ["agent", "install"].iter().flat_map(|name| {
        super::helm::strings(&rendered.container(name)["securityContext"]["capabilities"]["add"])
    });
    assert_eq!(super::helm::strings(&constraints["allowedCapabilities"]), asked.collect::<BTreeSet<_>>());
    assert_eq!(constraints["allowHostNetwork"], true);
    assert_eq!(constraints["allowPrivilegedContainer"], false);
    assert_eq!(constraints["users"], serde_json::json!(["system:serviceaccount:mesh:sluice-agent"]));
    for volume in rendered.pod()["volumes"].as_array().unwrap() {
        let kinds = super::helm::strings(&constraints["volumes"]);
        assert!(kinds.iter().any(|kind| volume.get(kind).is_some()), "{volume}");
    }
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn every_preset_is_in_the_table_and_the_schema() {
    let files = std::fs::read_dir(root().join("chart/files/platforms")).unwrap();
    let mut names: BTreeSet<_> =
        files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(names.remove("default"));
    assert_eq!(names, PLATFORMS.map(str::to_owned).into());
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn ones_own_value_comes_first() {
    let rendered = render(&["--set", "platform=k3s,cniBinDir=/opt/mine,runtimeDir=/run/mine"]);
    assert_eq!(rendered.writes("install", "/opt/mine"), Some(true));
    assert_eq!(rendered.writes("agent", "/run/mine"), Some(false));
    assert_eq!(rendered.writes("install", "/var/lib/rancher/k3s/agent/etc/cni/net.d"), Some(true));
}
