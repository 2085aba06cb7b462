//! What the kernel can do, as it was tried in a network namespace of its own, and who forbids it.

use super::catalogue::{
    BPF, CGROUP_V2, HOST_RULES, KERNEL_IPV6, KERNEL_MARK_GUARD, KERNEL_RULES, KERNEL_TRANSPARENT,
};
use super::facts::{BpfFacts, CgroupTree, Facts, KernelTrials};
use super::{Diagnosis, Finding, Severity};

/// `BPF_PROG_TYPE_LSM` (include/uapi/linux/bpf.h)
const LSM: u32 = 29;
/// How AKS' programs are called that refuse rules in the host's namespace; the kernel keeps 15 bytes of a name.
const BLOCKERS: [&str; 4] = ["iptables_legacy", "iptables_nftabl", "block_nf_netlin", "block_iptables"];

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    let about = [KERNEL_RULES, KERNEL_IPV6, KERNEL_MARK_GUARD, KERNEL_TRANSPARENT];
    let what = "what the kernel can do, tried in a network namespace made for it";
    if let Some(kernel) = diagnosis.look(what, &about, facts.kernel.as_ref()) {
        rules(kernel, diagnosis);
        sockets(kernel, diagnosis);
    }
    if let Some(tree) = diagnosis.look("how cgroup v2 is mounted", &[CGROUP_V2], facts.cgroup.as_ref()) {
        cgroup(tree, diagnosis);
    }
    host_rules(facts, diagnosis);
    if let Some(BpfFacts { cookies: Err(why), .. }) =
        diagnosis.look("the node's BPF programs", &[BPF], facts.bpf.as_ref())
    {
        let what = "the kernel does not take the BPF program of the probe strategy `cookie`";
        let fix = "Nothing, unless `probes: cookie` is wanted: that takes Linux 5.10 with CONFIG_CGROUP_BPF, and CAP_SYS_ADMIN";
        diagnosis.find(Finding::new(BPF, Severity::Note, what, fix).seen("the kernel", why));
    }
}

fn rules(kernel: &KernelTrials, diagnosis: &mut Diagnosis) {
    let by = |backend: &str| format!("kernel {}, {backend}", kernel.release);
    let without_v6 = kernel.nftables_v4 == Some(Ok(()));
    match (&kernel.nftables, &kernel.iptables) {
        (Err(nftables), Err(_)) if without_v6 => {
            let what = "the kernel takes the rules for IPv4 and refuses those for IPv6";
            let fix = "Set `ipv6: false` in the agent's configuration (chart: ambient.ipv6=false), if no pod of the mesh has IPv6; \
                       else boot without ipv6.disable=1, or with a kernel that has nf_tables for IPv6";
            let finding = Finding::new(KERNEL_IPV6, Severity::Problem, what, fix);
            diagnosis.find(finding.seen(by("nftables"), nftables));
        }
        (Err(nftables), Err(iptables)) => {
            let what = "the kernel takes the rules neither by nftables nor by iptables";
            let fix = "modprobe nf_tables nf_conntrack nft_ct nft_redir nft_fib_inet nft_socket, or a kernel with CONFIG_NF_TABLES_INET, \
                       CONFIG_NFT_REDIR, CONFIG_NFT_CT, CONFIG_NFT_SOCKET and CONFIG_NF_CONNTRACK_ZONES. The evidence names \
                       the first rule that was refused";
            let finding = Finding::new(KERNEL_RULES, Severity::Problem, what, fix);
            diagnosis.find(finding.seen(by("nftables"), nftables).seen(by("iptables"), iptables));
            // There are no rules to tell anything by.
            return;
        }
        (Err(nftables), Ok(())) => {
            let what = "the kernel takes the rules by iptables only";
            let fix = "Nothing: the agent then uses iptables, which is slower. modprobe nf_tables may help";
            diagnosis
                .find(Finding::new(KERNEL_RULES, Severity::Note, what, fix).seen(by("nftables"), nftables));
        }
        // iptables is what is left where nftables fails: nobody misses it.
        (Ok(()), _) => {}
    }
    let what = "whether rules tell sockets by their cgroup";
    let guard = diagnosis.peek(what, &[KERNEL_MARK_GUARD], kernel.mark_guard.as_ref());
    if let Some(Err(why)) = guard {
        let what =
            "rules cannot tell sockets by their cgroup: the mark guard and the strategy `snat` will be off";
        let fix = "nf_tables has this from Linux 5.13 on, and on nodes that are containers from 6.11 on. Nothing has to be set: \
                   probes pass by their source then; drop CAP_NET_RAW from pods that are not trusted";
        diagnosis.find(
            Finding::new(KERNEL_MARK_GUARD, Severity::Warning, what, fix).seen(by("rules by cgroup"), why),
        );
    }
}

fn sockets(kernel: &KernelTrials, diagnosis: &mut Diagnosis) {
    for (family, trial, severity) in [
        ("IPv4", &kernel.transparent_v4, Severity::Problem),
        ("IPv6", &kernel.transparent_v6, Severity::Warning),
    ] {
        let Err(why) = trial else { continue };
        let what = format!("no socket can be made transparent with {family}");
        let fix = match severity {
            Severity::Problem => {
                "A kernel with CONFIG_INET as usual; a security module may forbid IP_TRANSPARENT: see its log"
            }
            _ => "Set `ipv6: false` in the agent's configuration if the node has no IPv6; see kernel-ipv6",
        };
        let finding = Finding::new(KERNEL_TRANSPARENT, severity, what, fix);
        diagnosis.find(finding.seen(format!("kernel {}, {family}", kernel.release), why));
    }
}

fn cgroup(tree: &CgroupTree, diagnosis: &mut Diagnosis) {
    let fix = "Boot with systemd.unified_cgroup_hierarchy=1, and let kubelet and runtime use the systemd driver. Without it \
               probes pass by their source: nothing has to be set";
    let (severity, what, place, seen) = match tree {
        CgroupTree::Unified(_) => return,
        CgroupTree::Hybrid(path) => (
            Severity::Note,
            "cgroup v2 is there beside v1: it tells sockets apart only where pods live in it too",
            path.as_str(),
            "cgroup2, and hierarchies of v1 beside it",
        ),
        CgroupTree::Absent => (
            Severity::Warning,
            "cgroup v2 is not mounted",
            "/sys/fs/cgroup",
            "no file system of the type cgroup2",
        ),
    };
    diagnosis.find(Finding::new(CGROUP_V2, severity, what, fix).seen(place, seen));
}

/// The host's own namespace is never tried: what refuses is looked for, and the agent is asked what it met.
fn host_rules(facts: &Facts, diagnosis: &mut Diagnosis) {
    let fix = "`probes: source` in the agent's configuration (chart: config.probes=source), which is what `auto` falls back to, or \
               `probes: cookie`: nothing else of Sluice needs rules on the host. AKS installs the block with eBPF host routing";
    let told = facts.answer().filter(|status| status.probes.because.contains("Operation not permitted"));
    let finding = |what: &str| Finding::new(HOST_RULES, Severity::Warning, what, fix);
    if let Some(status) = told {
        let what = "the host refused the agent's rules";
        diagnosis.find(
            finding(what)
                .seen("the agent, probes", format!("{}: {}", status.probes.chosen, status.probes.because)),
        );
    }
    let Some(bpf) = diagnosis.look("the node's BPF programs", &[HOST_RULES], facts.bpf.as_ref()) else {
        return;
    };
    let blocks = |name: &str| BLOCKERS.contains(&name);
    let blockers = bpf.programs.iter().filter(|program| program.kind == LSM && blocks(&program.name));
    let seen =
        blockers.map(|program| (format!("BPF program {}", program.id), format!("{} (lsm)", program.name)));
    let seen: Vec<_> = seen.collect();
    if seen.is_empty() || told.is_some() {
        return;
    }
    let start = finding("a BPF security module refuses packet filter rules in the host's network namespace");
    diagnosis.find(seen.into_iter().fold(start, |finding, (place, value)| finding.seen(place, value)));
}
