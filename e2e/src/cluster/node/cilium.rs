//! Cilium's agent on a node. `ci/cluster cni-cilium` builds it.
//!
//! On a machine of its own it writes sysctls that belong to no namespace, and attaches to the root of all cgroups. Here it
//! gets a mount namespace in which those sysctls are read-only, with a bpffs of its own and cgroup v2 as the node's
//! cgroup namespace has it, whose root is the node's cgroup. It runs in the node's network namespace, and has none of the
//! capabilities that are about the whole machine and that it does not need.

use super::Node;
use super::enter::Place;
use crate::cluster::address;
use crate::cluster::pki::{Authority, Subject};
use crate::cluster::programs::Programs;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The list that it writes when it is ready.
pub const LIST: &str = "05-cilium.conflist";
/// The user that it is for the API server.
const USER: &str = "cilium";
/// Below the directory of the upstream programs: programs, BPF sources (`bpf`) and CustomResourceDefinitions (`crds`).
const PROGRAMS: &str = "primaries/cilium";
/// Its kubeconfig, on the node.
const KUBECONFIG: &str = "var/lib/cilium/cilium.kubeconfig";

/// What its programs do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Datapath {
    /// They give it to the host's stack, and kube-proxy is there for services
    Legacy,
    /// The same, and no other CNI configuration may be there than its own
    Exclusive,
    /// They send it on themselves, past the host's stack, and are there for services too
    Bpf,
}

/// Its own view of the node; then it becomes what its arguments say. `/proc/sys/net` is the network namespace's.
const JAIL: &str = r#"set -e
for dir in /proc/sys/*; do
    [ "$dir" = /proc/sys/net ] && continue
    mount --rbind "$dir" "$dir"
    mount -o remount,bind,ro "$dir"
done
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/cilium/cgroupv2
mount -t cgroup2 cgroup2 /run/cilium/cgroupv2
exec setpriv --bounding-set=-sys_module,-sys_boot,-sys_rawio,-sys_time \
    --inh-caps=-sys_module,-sys_boot,-sys_rawio,-sys_time "$@"
"#;

/// Issues its certificate, and puts its plugin into the node's directory.
///
/// # Errors
/// When it is not built, or a file cannot be written.
pub fn configure(place: &Place, authority: &Authority, programs: &Programs) -> Result<()> {
    for part in ["cilium-agent", "cilium-cni", "cilium-dbg", "clang", "bpf", "crds"] {
        let path = programs.path(PROGRAMS).join(part);
        ensure!(path.exists(), "{} is not there: `ci/cluster cni-cilium` builds it", path.display());
    }
    std::fs::copy(programs.path(PROGRAMS).join("cilium-cni"), place.disk("opt/cni/bin/cilium-cni"))
        .context("copy Cilium's plugin")?;
    let kubeconfig = place.disk(KUBECONFIG);
    let dir = kubeconfig.parent().context("a kubeconfig in no directory")?;
    authority.kubeconfig(dir, USER, &Subject::client(USER, "")).map(drop)
}

/// The program and its arguments.
#[must_use]
pub fn program(node: &str, datapath: Datapath) -> Vec<String> {
    let own = format!("/usr/local/bin/{PROGRAMS}");
    // Mounts of pods' network namespaces come in, its own do not get out.
    let mut program: Vec<String> =
        ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", JAIL, "jail", "env"]
            .map(str::to_owned)
            .to_vec();
    program.push(format!("K8S_NODE_NAME={node}"));
    program.push(format!("PATH={own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
    program.push(format!("{own}/cilium-agent"));
    program.extend(settings(datapath).into_iter().map(|(key, value)| format!("--{key}={value}")));
    program
}

/// How it is set: as its chart sets it for this kind of cluster, without the parts that are not here (operator, Envoy,
/// Hubble), and with tables of a size for a small machine.
fn settings(datapath: Datapath) -> Vec<(&'static str, String)> {
    let (v4, v6) = address::POD_CIDRS.split_once(',').unwrap_or_default();
    let bpf = datapath == Datapath::Bpf;
    let is = |value: bool| value.to_string();
    vec![
        ("k8s-kubeconfig-path", format!("/{KUBECONFIG}")),
        ("lib-dir", format!("/usr/local/bin/{PROGRAMS}")),
        ("bpf-root", "/sys/fs/bpf".into()),
        ("cgroup-root", "/run/cilium/cgroupv2".into()),
        ("write-cni-conf-when-ready", format!("/etc/cni/net.d/{LIST}")),
        ("cni-exclusive", is(datapath == Datapath::Exclusive)),
        ("cni-chaining-mode", if bpf { "none" } else { "portmap" }.into()),
        ("k8s-namespace", "kube-system".into()),
        // What it is set to is in its arguments; the ConfigMap is for others.
        ("enable-dynamic-config", is(false)),
        ("identity-allocation-mode", "crd".into()),
        ("ipam", "kubernetes".into()),
        ("k8s-require-ipv4-pod-cidr", is(true)),
        ("k8s-require-ipv6-pod-cidr", is(true)),
        ("enable-ipv4", is(true)),
        ("enable-ipv6", is(true)),
        // Pods' own addresses are on the fabric, where the captures look for them.
        ("routing-mode", "native".into()),
        ("auto-direct-node-routes", is(true)),
        ("ipv4-native-routing-cidr", v4.into()),
        ("ipv6-native-routing-cidr", v6.into()),
        ("devices", "eth0".into()),
        // Only what is masqueraded by programs may be sent on by programs.
        ("enable-ipv4-masquerade", is(bpf)),
        ("enable-ipv6-masquerade", is(bpf)),
        ("enable-bpf-masquerade", is(bpf)),
        ("enable-host-legacy-routing", is(!bpf)),
        ("kube-proxy-replacement", is(bpf)),
        // As a mesh needs it: else `connect` in a pod is given another address than the service's.
        ("bpf-lb-sock-hostns-only", is(true)),
        ("enable-l7-proxy", is(false)),
        ("enable-health-checking", is(false)),
        ("enable-endpoint-health-checking", is(false)),
        ("enable-hubble", is(false)),
        ("bpf-map-dynamic-size-ratio", "0".into()),
        ("bpf-ct-global-tcp-max", "65536".into()),
        ("bpf-ct-global-any-max", "32768".into()),
        ("bpf-nat-global-max", "65536".into()),
        ("bpf-neigh-global-max", "65536".into()),
        ("bpf-policy-map-max", "1024".into()),
        ("bpf-lb-map-max", "4096".into()),
        ("preallocate-bpf-maps", is(false)),
    ]
}

/// Fails unless it says that it is well, and has written its list.
///
/// # Errors
/// What it says.
pub fn is_ready(node: &Node) -> Result<()> {
    let list = node.disk("etc/cni/net.d").join(LIST);
    ensure!(list.is_file(), "there is no {}", list.display());
    node.run(&[&format!("/usr/local/bin/{PROGRAMS}/cilium-dbg"), "status", "--brief"]).map(drop)
}

/// Its CustomResourceDefinitions, which the operator would make, what it may ask of the API server, and its settings where
/// its chart leaves them: others read them there (`sluicectl doctor`).
///
/// # Errors
/// When they cannot be read.
pub fn objects(programs: &Programs, datapath: Datapath) -> Result<Vec<String>> {
    let dir = programs.path(PROGRAMS).join("crds");
    let mut objects = vec![rights(), config_map(datapath)];
    for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        objects.push(std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(objects)
}

fn config_map(datapath: Datapath) -> String {
    let data: BTreeMap<_, _> = settings(datapath).into_iter().collect();
    let metadata = json!({"name": "cilium-config", "namespace": "kube-system"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}

fn rights() -> String {
    let watch = ["get", "list", "watch"].as_slice();
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| -> Value {
        json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
    };
    let write = ["create", "update", "patch", "delete"].as_slice();
    let own = ["ciliumidentities", "ciliumendpoints", "ciliumnodes"];
    let status = ["ciliumendpoints/status", "ciliumnodes/status"];
    let rules = json!([
        rule(&[""], &["namespaces", "services", "pods", "nodes", "secrets"], watch),
        rule(&["networking.k8s.io"], &["networkpolicies"], watch),
        rule(&["discovery.k8s.io"], &["endpointslices"], watch),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], watch),
        rule(&["cilium.io"], &["*"], watch),
        rule(&["cilium.io"], &own, write),
        rule(&["cilium.io"], &status, write),
    ]);
    let api = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRole", "metadata": {"name": USER},
                      "rules": rules});
    let binding = json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": USER},
                         "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": USER},
                         "subjects": [{"apiGroup": api, "kind": "User", "name": USER}]});
    json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(datapath: Datapath) -> BTreeMap<&'static str, String> {
        let settings = settings(datapath);
        let count = settings.len();
        let map = BTreeMap::from_iter(settings);
        assert_eq!(map.len(), count, "a key is there twice");
        map
    }

    #[test]
    fn the_host_stack_is_left_out_only_where_masquerading_and_services_are_its_own() {
        for datapath in [Datapath::Legacy, Datapath::Exclusive, Datapath::Bpf] {
            let settings = of(datapath);
            let keys = ["kube-proxy-replacement", "enable-bpf-masquerade", "enable-ipv4-masquerade"];
            let own = keys.map(|key| settings[key] == "true");
            let past_the_host = settings["enable-host-legacy-routing"] == "false";
            assert_eq!(own, [past_the_host; 3]);
            assert_eq!(past_the_host, datapath == Datapath::Bpf);
        }
    }

    #[test]
    fn only_one_takes_away_what_others_configure() {
        let exclusive = |datapath| of(datapath)["cni-exclusive"] == "true";
        assert_eq!(
            [Datapath::Legacy, Datapath::Exclusive, Datapath::Bpf].map(exclusive),
            [false, true, false]
        );
    }

    #[test]
    fn whatever_the_datapath_it_runs_in_its_own_view_of_the_node() {
        let program = program("node1", Datapath::Legacy);
        assert_eq!(program[..5], ["unshare", "--mount", "--propagation", "slave", "--"]);
        let agent = program.iter().position(|word| word.ends_with("/cilium-agent")).unwrap();
        let jail = program.iter().position(|word| word == JAIL).unwrap();
        assert!(jail < agent);
    }
}
