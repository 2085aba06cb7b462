//! Sysctls, limits, and what else a node is set up with.

use super::catalogue::{BRIDGE_NF, CONNTRACK, IP_FORWARD, LIMITS, NODE_LOCAL_DNS, RP_FILTER};
use super::facts::{Facts, Limits};
use super::{Diagnosis, Finding, Severity, Unlooked};
use crate::conflist::Primary;
use std::collections::BTreeMap;

/// Plugins that put pods onto a bridge of the host, and who else has pods on one.
const BRIDGES: [&str; 3] = ["bridge", "flannel", "weave-net"];
/// What distributions ship, and a node full of pods uses up.
const FEW_INSTANCES: u64 = 128;
/// From here on a table counts as nearly full, in percent.
const NEARLY_FULL: u64 = 90;

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    let about = [RP_FILTER, BRIDGE_NF, IP_FORWARD, CONNTRACK];
    if let Some(sysctls) = diagnosis.look("the host's sysctls", &about, facts.sysctls.as_ref()) {
        forwarding(sysctls, diagnosis);
        conntrack(sysctls, diagnosis);
        let types = primary_types(facts);
        let is = |kind: &str| types.iter().any(|found| found == kind);
        if BRIDGES.iter().any(|kind| is(kind)) {
            bridge(sysctls, diagnosis);
        }
        if is("aws-cni") || is("ovn-k8s-cni-overlay") {
            reverse_path(sysctls, diagnosis);
        }
    }
    if let Some(limits) = diagnosis.look("limits on inotify", &[LIMITS], facts.limits.as_ref()) {
        inotify(limits, diagnosis);
    }
    node_local_dns(facts, diagnosis);
}

fn primary_types(facts: &Facts) -> Vec<String> {
    match facts.cni.as_ref().map(|cni| cni.directory.primary()) {
        Ok(Primary::Found(found)) => found.types,
        _ => Vec::new(),
    }
}

fn number(sysctls: &BTreeMap<String, String>, name: &str) -> Option<u64> {
    sysctls.get(name)?.parse().ok()
}

fn seen(finding: Finding, sysctls: &BTreeMap<String, String>, name: &str) -> Finding {
    finding.seen(name, sysctls.get(name).map_or("not there", String::as_str))
}

fn forwarding(sysctls: &BTreeMap<String, String>, diagnosis: &mut Diagnosis) {
    const V4: &str = "net.ipv4.ip_forward";
    match number(sysctls, V4) {
        Some(1..) => {}
        Some(0) => {
            let fix =
                "sysctl -w net.ipv4.ip_forward=1, and put net.ipv4.ip_forward=1 into a file of /etc/sysctl.d";
            let finding = Finding::new(IP_FORWARD, Severity::Problem, "the host does not forward IPv4", fix);
            diagnosis.find(seen(finding, sysctls, V4));
        }
        None => {
            let unlooked = Unlooked::new(
                format!("{V4} is not a number: {:?}", sysctls.get(V4)),
                "say where the node's /proc is with --host-proc",
            );
            diagnosis.miss("whether the host forwards", &[IP_FORWARD], &unlooked);
        }
    }
}

fn conntrack(sysctls: &BTreeMap<String, String>, diagnosis: &mut Diagnosis) {
    const COUNT: &str = "net.netfilter.nf_conntrack_count";
    const MAX: &str = "net.netfilter.nf_conntrack_max";
    let (Some(count), Some(max @ 1..)) = (number(sysctls, COUNT), number(sysctls, MAX)) else { return };
    if count.saturating_mul(100) >= max.saturating_mul(NEARLY_FULL) {
        let what = "the host's connection tracking table is nearly full";
        let fix = format!(
            "sysctl -w {MAX}={}, and --conntrack-max-per-core of kube-proxy to match",
            max.saturating_mul(2)
        );
        let finding = Finding::new(CONNTRACK, Severity::Warning, what, fix);
        diagnosis.find(seen(seen(finding, sysctls, COUNT), sysctls, MAX));
    }
}

fn bridge(sysctls: &BTreeMap<String, String>, diagnosis: &mut Diagnosis) {
    const CALL: &str = "net.bridge.bridge-nf-call-iptables";
    if number(sysctls, CALL) != Some(1) {
        let what = "pods are on a bridge of the host, and its packets pass by the host's rules";
        let fix = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                   net.bridge.bridge-nf-call-ip6tables=1, and both in /etc/modules-load.d and /etc/sysctl.d";
        diagnosis.find(seen(Finding::new(BRIDGE_NF, Severity::Warning, what, fix), sysctls, CALL));
    }
}

/// The kernel takes the stricter of `all` and the interface's own.
fn reverse_path(sysctls: &BTreeMap<String, String>, diagnosis: &mut Diagnosis) {
    const ALL: &str = "net.ipv4.conf.all.rp_filter";
    let is_own = |name: &str| name.starts_with("net.ipv4.conf.") && name.ends_with(".rp_filter");
    let of = |name: &str| name.trim_start_matches("net.ipv4.conf.").trim_end_matches(".rp_filter").to_owned();
    let all = number(sysctls, ALL).unwrap_or(0);
    let strict = |name: &str| all.max(number(sysctls, name).unwrap_or(0)) == 1;
    let found: Vec<&String> =
        sysctls.keys().filter(|name| *name != ALL && is_own(name) && strict(name)).collect();
    let Some(first) = found.first() else { return };
    let what = format!("reverse path filtering is strict on {}", of(first));
    let fix = format!("sysctl -w {first}=2, and the same in a file of /etc/sysctl.d");
    let finding = seen(Finding::new(RP_FILTER, Severity::Warning, what, fix), sysctls, ALL);
    diagnosis.find(found.iter().fold(finding, |finding, name| seen(finding, sysctls, name)));
}

fn inotify(limits: &Limits, diagnosis: &mut Diagnosis) {
    const INSTANCES: &str = "fs.inotify.max_user_instances";
    let fix = "sysctl -w fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288, and the same in a file of \
               /etc/sysctl.d";
    let shown = |finding: Finding| match limits.inotify_instances {
        Some(limit) => finding.seen(INSTANCES, limit.to_string()),
        None => finding,
    };
    let now = diagnosis.peek("whether inotify instances can be had", &[LIMITS], limits.inotify_now.as_ref());
    if let Some(Err(why)) = now {
        let what = "no inotify instance can be had";
        let finding = Finding::new(LIMITS, Severity::Warning, what, fix).seen("inotify_init", why);
        diagnosis.find(shown(finding));
    } else if limits.inotify_instances.is_some_and(|limit| limit <= FEW_INSTANCES) {
        let what = "few inotify instances are allowed for one user, and all of root's processes on the node share them";
        diagnosis.find(shown(Finding::new(LIMITS, Severity::Note, what, fix)));
    }
}

fn node_local_dns(facts: &Facts, diagnosis: &mut Diagnosis) {
    const INTERFACE: &str = "nodelocaldns";
    let interfaces = diagnosis.look("the host's interfaces", &[NODE_LOCAL_DNS], facts.interfaces.as_ref());
    let here = interfaces.is_some_and(|names| names.contains(INTERFACE));
    let sets = facts.of_cluster(|cluster| &cluster.daemon_sets).ok();
    let set = sets.and_then(|sets| sets.iter().find(|set| set.name == "node-local-dns"));
    if !here && set.is_none() {
        return;
    }
    let what = "NodeLocal DNSCache is on this node";
    let fix = "Nothing, unless captured pods are to be served by it: then give ztunnel's pod the cache's address (dnsConfig), \
               or set `dnsCapture: false` in the agent's configuration";
    let mut finding = Finding::new(NODE_LOCAL_DNS, Severity::Note, what, fix);
    if here {
        finding = finding.seen("the host's interfaces", INTERFACE);
    }
    if let Some(set) = set {
        finding = finding.seen(format!("daemonset {}/{}", set.namespace, set.name), "is there");
    }
    diagnosis.find(finding);
}
