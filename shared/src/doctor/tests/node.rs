//! The kernel, sysctls and limits.

use super::*;

fn kernel(change: impl FnOnce(&mut KernelTrials)) -> Facts {
    node(|facts| change(facts.kernel.as_mut().unwrap()))
}

fn sysctl(name: &str, value: &str) -> Facts {
    node(|facts| {
        facts.sysctls.as_mut().unwrap().insert(name.to_owned(), value.to_owned());
    })
}

fn refused() -> Trial {
    Err("message 3, add chain pre_nat: Operation not supported".to_owned())
}

#[test]
fn backends() {
    use Severity::{Note, Problem, Warning};
    let neither = kernel(|kernel| (kernel.nftables, kernel.nftables_v4) = (refused(), Some(refused())));
    assert_eq!(found(&neither), [("kernel-rules", Problem)]);
    assert!(the(&neither, "kernel-rules").evidence[0].value.contains("add chain pre_nat"));
    let old = kernel(|kernel| {
        (kernel.nftables, kernel.nftables_v4, kernel.iptables) = (refused(), Some(refused()), Ok(()));
    });
    assert_eq!(found(&old), [("kernel-rules", Note)]);
    let without_v6 = kernel(|kernel| (kernel.nftables, kernel.nftables_v4) = (refused(), Some(Ok(()))));
    assert_eq!(found(&without_v6), [("kernel-ipv6", Problem)]);
    let by_iptables = kernel(|kernel| {
        (kernel.nftables, kernel.nftables_v4, kernel.iptables) = (refused(), Some(Ok(())), Ok(()));
    });
    assert_eq!(found(&by_iptables), [("kernel-rules", Note)], "iptables takes IPv6, too");
    let guard = kernel(|kernel| kernel.mark_guard = Ok(refused()));
    assert_eq!(found(&guard), [("kernel-mark-guard", Warning)]);
    let sockets = kernel(|kernel| (kernel.transparent_v4, kernel.transparent_v6) = (refused(), refused()));
    assert_eq!(found(&sockets), [("kernel-transparent", Problem), ("kernel-transparent", Warning)]);
}

#[test]
fn a_guard_that_could_not_be_tried_is_not_refused() {
    let away = Unlooked::new("enter the host's cgroup namespace: EPERM", "run it on the node");
    let report = diagnose(&kernel(|kernel| kernel.mark_guard = Err(away)));
    assert_eq!(report.findings, []);
    assert!(!report.passed.contains(&"kernel-mark-guard"), "{report:#?}");
    assert_eq!(report.worst(false), Some(Severity::Warning));
}

#[test]
fn cgroups_and_bpf() {
    let tree = |tree| node(|facts| facts.cgroup = Ok(tree));
    assert_eq!(found(&tree(CgroupTree::Absent)), [("cgroup-v2", Severity::Warning)]);
    let hybrid = tree(CgroupTree::Hybrid("/sys/fs/cgroup/unified".to_owned()));
    assert_eq!(found(&hybrid), [("cgroup-v2", Severity::Note)]);
    let bpf = node(|facts| facts.bpf.as_mut().unwrap().cookies = refused());
    assert_eq!(found(&bpf), [("bpf", Severity::Note)]);
}

#[test]
fn hosts_that_refuse_rules() {
    let program = |kind| BpfProgram { id: 9, kind, name: "iptables_nftabl".to_owned() };
    let with = |kind| node(|facts| facts.bpf.as_mut().unwrap().programs = vec![program(kind)]);
    assert_eq!(found(&with(29)), [("host-rules", Severity::Warning)]);
    assert_eq!(found(&with(3)), [], "a program of that name that is no security module");
    // The agent has tried it: one finding, with its word, and no need to look at programs.
    let said = node(|facts| {
        let because =
            "snat does not work here: the host refuses the rules: Operation not permitted (os error 1)";
        let probes = Choice { chosen: "source".to_owned(), because: because.to_owned() };
        facts.agent = Agent::Answers(Box::new(NodeStatus { probes, ..status() }));
        facts.bpf.as_mut().unwrap().programs = vec![program(29)];
    });
    assert_eq!(found(&said), [("host-rules", Severity::Warning)]);
    assert_eq!(the(&said, "host-rules").evidence[0].place, "the agent, probes");
}

#[test]
fn sysctls() {
    use Severity::{Problem, Warning};
    assert_eq!(found(&sysctl("net.ipv4.ip_forward", "0")), [("ip-forward", Problem)]);
    assert_eq!(found(&sysctl("net.netfilter.nf_conntrack_count", "250000")), [("conntrack", Warning)]);
    let small = node(|facts| {
        let sysctls = facts.sysctls.as_mut().unwrap();
        sysctls.insert("net.netfilter.nf_conntrack_max".to_owned(), "99".to_owned());
        sysctls.insert("net.netfilter.nf_conntrack_count".to_owned(), "1".to_owned());
    });
    assert_eq!(found(&small), [], "a hundredth is not nine tenths");
    assert_eq!(found(&sysctl("net.ipv4.conf.all.rp_filter", "1")), [], "kindnet does not mind");
}

#[test]
fn bridges_need_their_packets_to_meet_the_host_s_rules() {
    let bridge = |value: Option<&str>| {
        node(|facts| {
            let text = KINDNET.replace("\"ptp\"", "\"bridge\"");
            facts.cni.as_mut().unwrap().directory.files = vec![file("10-kindnet.conflist", &text)];
            let value =
                value.map(|value| ("net.bridge.bridge-nf-call-iptables".to_owned(), value.to_owned()));
            facts.sysctls.as_mut().unwrap().extend(value);
        })
    };
    assert_eq!(found(&bridge(Some("1"))), []);
    assert_eq!(found(&bridge(Some("0"))), [("bridge-nf", Severity::Warning)]);
    assert_eq!(the(&bridge(None), "bridge-nf").evidence[0].value, "not there");
}

#[test]
fn reverse_path_filtering_counts_the_stricter_of_two() {
    let aws = |all: &str, eth0: &str| {
        node(|facts| {
            let text = KINDNET.replace("\"ptp\"", "\"aws-cni\"");
            facts.cni.as_mut().unwrap().directory.files = vec![file("10-aws.conflist", &text)];
            let sysctls = facts.sysctls.as_mut().unwrap();
            sysctls.insert("net.ipv4.conf.all.rp_filter".to_owned(), all.to_owned());
            sysctls.insert("net.ipv4.conf.eth0.rp_filter".to_owned(), eth0.to_owned());
        })
    };
    for (all, eth0, strict) in
        [("0", "0", false), ("0", "1", true), ("1", "0", true), ("1", "2", false), ("2", "1", false)]
    {
        let expected: &[(&str, Severity)] = if strict { &[("rp-filter", Severity::Warning)] } else { &[] };
        assert_eq!(found(&aws(all, eth0)), expected, "all={all} eth0={eth0}");
    }
}

#[test]
fn inotify_and_the_node_s_dns() {
    let few = node(|facts| facts.limits.as_mut().unwrap().inotify_instances = Some(128));
    assert_eq!(found(&few), [("limits", Severity::Note)]);
    let none = node(|facts| {
        facts.limits.as_mut().unwrap().inotify_now = Ok(Err("Too many open files".to_owned()));
    });
    assert_eq!(found(&none), [("limits", Severity::Warning)]);
    let dns = node(|facts| {
        facts.interfaces.as_mut().unwrap().insert("nodelocaldns".to_owned());
    });
    assert_eq!(found(&dns), [("node-local-dns", Severity::Note)]);
}
