//! What the primary CNI is known to do to a mesh. Everything here is set by its operator, so each finding names the setting.

use super::catalogue::{AWS_SG_STRICT, CALICO_EBPF, CILIUM_HOST_ROUTING, CILIUM_SOCKET_LB, OVN_GATEWAY};
use super::facts::{BpfProgram, CniFacts, Facts};
use super::{Diagnosis, Finding, Severity, Unlooked};
use crate::conflist::Primary;
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) const CILIUM: &str = "cilium-cni";
const AWS: &str = "aws-cni";
const CALICO: &str = "calico";
const OVN: &str = "ovn-k8s-cni-overlay";

const CILIUM_CONFIG: &str = "configmap kube-system/cilium-config";
const CILIUM_CONFIG_WORDS: &str = "Cilium's configuration (ConfigMap kube-system/cilium-config)";

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` (include/uapi/linux/bpf.h): programs at connect() and sendmsg().
const SOCK_ADDR: u32 = 18;

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    let about = [CILIUM_SOCKET_LB, CILIUM_HOST_ROUTING, AWS_SG_STRICT, CALICO_EBPF, OVN_GATEWAY];
    let Some(cni) = diagnosis.peek("the runtime's CNI configuration", &about, facts.cni.as_ref()) else {
        return;
    };
    let Primary::Found(found) = cni.directory.primary() else {
        let unknown = Unlooked {
            why: "which CNI is the primary is not known".to_owned(),
            how: "see cni-primary".to_owned(),
            // `cni-primary` is a finding.
            not_asked_for: true,
        };
        diagnosis.miss("what the primary CNI is set to", &about, &unknown);
        return;
    };
    diagnosis.looked.extend(about.map(|check| check.id));
    let is = |kind: &str| found.types.iter().any(|found| found == kind);
    if is(CILIUM) {
        cilium(facts, diagnosis);
    }
    if is(AWS) {
        aws(cni, found.name, found.text, facts, diagnosis);
    }
    if is(CALICO) {
        calico(facts, diagnosis);
    }
    if is(OVN) {
        let what =
            "OVN-Kubernetes is the primary CNI; whether it routes pods' traffic by the host is not known";
        let fix = "kubectl patch network.operator.openshift.io cluster --type merge -p '{\"spec\":{\"defaultNetwork\":\
                   {\"ovnKubernetesConfig\":{\"gatewayConfig\":{\"routingViaHost\":true}}}}}', or probes: source or \
                   cookie in the agent's configuration. A masquerade network that contains 169.254.7.127 needs another `probeSourceV4`";
        let finding = Finding::new(OVN_GATEWAY, Severity::Warning, what, fix);
        diagnosis.find(finding.seen_in(format!("{}/{}", cni.path, found.name), found.text, OVN));
    }
}

/// The programs that replace addresses at connect(), by how their names begin.
fn at_connect<'a>(facts: &'a Facts, prefix: &str) -> Vec<&'a BpfProgram> {
    let programs = facts.bpf.as_ref().map(|bpf| bpf.programs.as_slice()).unwrap_or_default();
    programs.iter().filter(|program| program.kind == SOCK_ADDR && program.name.starts_with(prefix)).collect()
}

fn on(config: &BTreeMap<String, String>, key: &str) -> bool {
    // `strict`, `partial` and `probe` are the older words of kube-proxy-replacement.
    config.get(key).is_some_and(|value| matches!(value.as_str(), "true" | "strict" | "partial" | "probe"))
}

fn named(config: &BTreeMap<String, String>, key: &str) -> String {
    config.get(key).map_or_else(|| format!("{key} is not set"), |value| format!("{key}: {value:?}"))
}

fn cilium(facts: &Facts, diagnosis: &mut Diagnosis) {
    let about = [CILIUM_SOCKET_LB, CILIUM_HOST_ROUTING];
    let config = facts.of_cluster(|cluster| &cluster.cilium);
    let config = diagnosis.look(CILIUM_CONFIG_WORDS, &about, config).and_then(Option::as_ref);
    socket_lb(config, facts, diagnosis);
    let Some(config) = config else { return };
    let host_routing = on(config, "kube-proxy-replacement")
        && on(config, "enable-bpf-masquerade")
        && !on(config, "enable-host-legacy-routing");
    let strategy = facts.answer().map(|status| status.probes.chosen.as_str());
    if host_routing && strategy.is_none_or(|strategy| strategy == "snat") {
        let what = "Cilium routes answers to probes by BPF, past the host's routing table";
        let fix = "Set `probes: source` or `cookie` in the agent's configuration (chart: config.probes=source), or let the host route: helm \
                   upgrade cilium cilium/cilium -n kube-system --reuse-values --set bpf.hostLegacyRouting=true";
        let finding = ["kube-proxy-replacement", "enable-bpf-masquerade", "enable-host-legacy-routing"]
            .iter()
            .fold(Finding::new(CILIUM_HOST_ROUTING, Severity::Warning, what, fix), |finding, key| {
                finding.seen(CILIUM_CONFIG, named(config, key))
            });
        diagnosis.find(finding);
    }
}

fn socket_lb(config: Option<&BTreeMap<String, String>>, facts: &Facts, diagnosis: &mut Diagnosis) {
    let fix = "helm upgrade cilium cilium/cilium -n kube-system --reuse-values --set socketLB.hostNamespaceOnly=true, or: \
               kubectl -n kube-system patch configmap cilium-config --type merge -p \
               '{\"data\":{\"bpf-lb-sock-hostns-only\":\"true\"}}' and kubectl -n kube-system rollout restart daemonset/cilium";
    let programs = at_connect(facts, "cil_sock");
    let finding = match config {
        Some(config) => {
            let active = on(config, "bpf-lb-sock") || on(config, "kube-proxy-replacement");
            if !active || on(config, "bpf-lb-sock-hostns-only") {
                return;
            }
            let what = "Cilium replaces services' addresses within pods, before ztunnel sees them";
            ["bpf-lb-sock", "kube-proxy-replacement", "bpf-lb-sock-hostns-only"]
                .iter()
                .fold(Finding::new(CILIUM_SOCKET_LB, Severity::Problem, what, fix), |finding, key| {
                    finding.seen(CILIUM_CONFIG, named(config, key))
                })
        }
        None if !programs.is_empty() => {
            let what =
                "Cilium replaces services' addresses at connect(); whether within pods too is not known";
            Finding::new(CILIUM_SOCKET_LB, Severity::Warning, what, fix)
        }
        None => return,
    };
    diagnosis.find(with_programs(finding, &programs));
}

fn with_programs(finding: Finding, programs: &[&BpfProgram]) -> Finding {
    programs.iter().take(2).fold(finding, |finding, program| {
        finding.seen(format!("BPF program {}", program.id), format!("{} (cgroup_sock_addr)", program.name))
    })
}

fn aws(cni: &CniFacts, file: &str, text: &str, facts: &Facts, diagnosis: &mut Diagnosis) {
    // It is written into the list whether or not any pod has a security group.
    if mode_in(text).as_deref() != Some("strict") {
        return;
    }
    let branches: Vec<&String> = facts
        .interfaces
        .as_ref()
        .map(|names| names.iter().filter(|name| name.starts_with("vlan.eth.")).collect())
        .unwrap_or_default();
    let sets = facts.of_cluster(|cluster| &cluster.daemon_sets);
    let sets = match branches.is_empty() {
        true => diagnosis.look("the DaemonSet kube-system/aws-node", &[AWS_SG_STRICT], sets),
        // Seen to be in use: nobody has to be asked.
        false => sets.ok(),
    };
    let aws_node = sets.and_then(|sets| sets.iter().find(|set| set.name == "aws-node"));
    let enabled = aws_node.map(|set| set.env.get("ENABLE_POD_ENI").is_some_and(|value| value == "true"));
    let (severity, what) = match (enabled, branches.is_empty()) {
        (_, false) | (Some(true), _) => (
            Severity::Problem,
            "pods with security groups are in strict mode: their probes go through the VPC",
        ),
        (None, true) => (
            Severity::Warning,
            "security groups for pods are in strict mode, if they are used: whether ENABLE_POD_ENI is set is not known",
        ),
        (Some(false), true) => return,
    };
    let fix = "kubectl -n kube-system set env daemonset/aws-node POD_SECURITY_GROUP_ENFORCING_MODE=standard, and then start \
               the pods with security groups anew; or `probes: source` in the agent's configuration, with \
               DISABLE_TCP_EARLY_DEMUX=true on aws-node's init container";
    let mut finding = Finding::new(AWS_SG_STRICT, severity, what, fix);
    finding = finding.seen_in(format!("{}/{file}", cni.path), text, "podSGEnforcingMode");
    if let Some(set) = aws_node {
        for key in ["POD_SECURITY_GROUP_ENFORCING_MODE", "ENABLE_POD_ENI"] {
            if let Some(value) = set.env.get(key) {
                finding = finding
                    .seen(format!("daemonset {}/{}", set.namespace, set.name), format!("{key}={value}"));
            }
        }
    }
    if let Some(branch) = branches.first() {
        finding = finding.seen("the host's interfaces", format!("{branch}: a branch interface is in use"));
    }
    diagnosis.find(finding);
}

fn mode_in(list: &str) -> Option<String> {
    let list: Value = serde_json::from_str(list).ok()?;
    let plugins = list.get("plugins")?.as_array()?;
    plugins.iter().find_map(|plugin| plugin.get("podSGEnforcingMode")?.as_str().map(str::to_owned))
}

fn calico(facts: &Facts, diagnosis: &mut Diagnosis) {
    let Some(_) = diagnosis.peek("the node's BPF programs", &[CALICO_EBPF], facts.bpf.as_ref()) else {
        return;
    };
    let programs = at_connect(facts, "calico_connect");
    if programs.is_empty() {
        return;
    }
    let what = "Calico replaces services' addresses within pods, before ztunnel sees them";
    let fix = "kubectl patch felixconfiguration default --type merge -p '{\"spec\":{\"bpfConnectTimeLoadBalancing\":\
               \"Disabled\",\"bpfHostConntrackBypass\":false}}'";
    diagnosis.find(with_programs(Finding::new(CALICO_EBPF, Severity::Problem, what, fix), &programs));
}
