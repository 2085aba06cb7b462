//! In which order things are done, and what a transaction looks like from outside.

use super::agreement::rich_plans;
use super::generate::{cgroup, lineage};
use super::iptables_vm::Iptables;
use super::nft_vm::Nft;
use super::nft_wire::{Message, messages};
use super::vm::{Fate, Machine, Skb};
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::ids::{Family, PodUid};
use sluice_shared::istio::{NftFamily, Remains, RuleId, Table};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::netfilter::{Hook, from_plan, host_by_label};
use sluice_shared::nft;
use sluice_shared::op::{KernelOp, NftBatch};
use sluice_shared::plan::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const NLM_F_ACK: u16 = 0x4;

fn plan() -> RedirectPlan {
    rich_plans().remove(0)
}

/// One word for an op, for the eye.
fn names(ops: &[KernelOp]) -> Vec<String> {
    ops.iter()
        .map(|op| match op {
            KernelOp::LoopbackUp => "lo up".to_owned(),
            KernelOp::PolicyRule(family, presence) => format!("rule {family} {presence:?}"),
            KernelOp::LocalRoute(family, presence) => format!("route {family} {presence:?}"),
            KernelOp::FlushConntrack => "flush conntrack".to_owned(),
            KernelOp::ForgetDirect => "forget direct".to_owned(),
            KernelOp::RememberHalfClosed(presence) => format!("half-closed {presence:?}"),
            KernelOp::ClearIptables => "clear iptables".to_owned(),
            KernelOp::LegacyWithout { family, table, .. } => format!("legacy {family} {table}"),
            KernelOp::DestroyIpset(name) => format!("destroy {name}"),
            KernelOp::NftBatch(_) => "nft".to_owned(),
            KernelOp::IptablesRestore(script) => format!("restore {}", script.family),
        })
        .collect()
}

const READY: [&str; 6] = [
    "lo up",
    "rule IPv4 Present",
    "rule IPv6 Present",
    "route IPv4 Present",
    "route IPv6 Present",
    "half-closed Present",
];
const ROUTING_DOWN: [&str; 4] =
    ["rule IPv4 Absent", "rule IPv6 Absent", "route IPv4 Absent", "route IPv6 Absent"];

#[test]
fn a_new_pod_gets_what_rules_count_on_before_the_rules() {
    let ops = lower(Backend::Nftables, Step::Enroll { plan: &plan(), live: false });
    assert_eq!(names(&ops), [&READY[..], &["nft"]].concat());
    let ops = lower(Backend::Iptables, Step::Enroll { plan: &plan(), live: false });
    assert_eq!(names(&ops), [&READY[..], &["clear iptables", "restore IPv4", "restore IPv6"]].concat());
}

#[test]
fn a_live_pods_conntrack_is_flushed_just_before_the_commit() {
    let ops = lower(Backend::Nftables, Step::Enroll { plan: &plan(), live: true });
    assert_eq!(names(&ops), [&READY[..], &["flush conntrack", "nft"]].concat());
}

/// What istio-cni leaves in both packet filters.
pub fn istios() -> Remains {
    let nat = Table::Nft(NftFamily::Ip, "nat".into());
    let chain = |name: &str| (nat.clone(), name.to_owned());
    let hooks = ["PREROUTING", "OUTPUT"];
    Remains {
        generation: Some(7),
        jumps: hooks.iter().zip(3..).map(|(hook, id)| (nat.clone(), (*hook).into(), RuleId(id))).collect(),
        chains: vec![chain("ISTIO_PRERT"), chain("ISTIO_OUTPUT")],
        emptied: vec![(nat.clone(), hooks.map(String::from).into())],
        tables: vec![Table::Nft(NftFamily::Inet, "istio-ambient-raw".into())],
        legacy: BTreeMap::from([((Family::V4, "mangle".into()), BTreeSet::from(["ISTIO_PRERT".into()]))]),
        ..Remains::default()
    }
}

#[test]
fn istio_cnis_rules_go_in_the_transaction_in_which_ours_come_and_conntrack_stays() {
    let (plan, remains) = (plan(), istios());
    let ops = lower(Backend::Nftables, Step::TakeOver { plan: &plan, remains: &remains });
    assert_eq!(names(&ops), [&READY[..], &["nft", "legacy IPv4 mangle"]].concat());
    let Some(KernelOp::NftBatch(batch)) = ops.iter().find(|op| matches!(op, KernelOp::NftBatch(_))) else {
        panic!("{ops:?}")
    };
    let first = |what: &str| batch.labels.iter().position(|label| label.starts_with(what)).unwrap();
    assert!(first("rule 0 of") < first("delete istio-cni's"), "ours before theirs: {:?}", batch.labels);
    // Ours first here too, and both in force until theirs is off.
    let ops = lower(Backend::Iptables, Step::TakeOver { plan: &plan, remains: &remains });
    let ours = ["clear iptables", "restore IPv4", "restore IPv6"];
    assert_eq!(names(&ops), [&READY[..], &ours, &["legacy IPv4 mangle"]].concat());
}

#[test]
fn a_replacement_touches_the_rules_only() {
    assert_eq!(names(&lower(Backend::Nftables, Step::Replace(&plan()))), ["nft"]);
    assert_eq!(names(&lower(Backend::Iptables, Step::Replace(&plan()))), ["restore IPv4", "restore IPv6"]);
}

#[test]
fn a_repair_forgets_what_slipped_by_after_the_rules_are_back() {
    let ops = lower(Backend::Nftables, Step::Repair(&plan()));
    assert_eq!(names(&ops), [&READY[..], &["nft", "forget direct"]].concat());
}

#[test]
fn removal_takes_both_families_whatever_was_enrolled() {
    let ops = lower(Backend::Nftables, Step::Remove);
    assert_eq!(
        names(&ops),
        [&["nft"], &ROUTING_DOWN[..], &["flush conntrack", "half-closed Absent"]].concat()
    );
    let ops = lower(Backend::Iptables, Step::Remove);
    assert_eq!(
        names(&ops),
        [&["clear iptables"], &ROUTING_DOWN[..], &["flush conntrack", "half-closed Absent"]].concat()
    );
}

#[test]
fn without_ipv6_only_ipv4_gets_rules_and_both_get_the_return_path() {
    let plan = RedirectPlan { ipv6: false, ..plan() };
    for step in [Step::Enroll { plan: &plan, live: false }, Step::Repair(&plan)] {
        let restored: Vec<String> = names(&lower(Backend::Iptables, step))
            .into_iter()
            .filter(|name| name != "clear iptables" && name != "forget direct")
            .collect();
        assert_eq!(restored, [&READY[..], &["restore IPv4"]].concat());
    }
}

#[test]
fn the_same_plan_gives_the_same_bytes() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let steps = [Step::Enroll { plan: &plan(), live: true }, Step::Replace(&plan()), Step::Remove];
        for step in steps {
            assert_eq!(lower(backend, step), lower(backend, step));
        }
    }
}

#[test]
fn messages_are_numbered_from_zero_and_labelled() {
    let batch = nft::replace(&from_plan(&plan()));
    let list = messages(&batch);
    assert_eq!(list.len(), batch.labels.len());
    for (index, message) in list.iter().enumerate() {
        assert_eq!(message.sequence as usize, index);
    }
    assert_eq!((batch.labels[0].as_str(), batch.labels.last().unwrap().as_str()), ("begin", "commit"));
}

#[test]
fn one_answer_is_asked_for_and_it_is_the_last() {
    for batch in [nft::replace(&from_plan(&plan())), nft::remove()] {
        let asking: Vec<u32> = messages(&batch)
            .iter()
            .filter(|message: &&Message| message.flags & NLM_F_ACK != 0)
            .map(|message| message.sequence)
            .collect();
        assert_eq!(asking, [batch.labels.len() as u32 - 2]);
    }
}

#[test]
fn removal_leaves_no_table_whether_there_was_one_or_not() {
    assert!(Nft::load(&nft::remove()).is_none());
    assert_eq!(
        messages(&nft::remove()).iter().map(|message| message.kind & 0xff).collect::<Vec<_>>(),
        [0x10, 0, 2, 0x11]
    );
}

#[test]
fn thousands_of_kept_connections_are_split_and_none_is_lost() {
    let flow = |n: u16| {
        let flows: [(&str, &str); 2] = [("10.0.0.5", "192.0.2.7"), ("fd00::5", "2001:db8::7")];
        flows.map(|(local, remote)| Flow {
            local: (local.parse().unwrap(), 1024 + n),
            remote: (remote.parse().unwrap(), 443),
        })
    };
    let flows: BTreeSet<Flow> = (0..20_000).flat_map(flow).collect();
    let plan = RedirectPlan { stage: Stage::Redirect(Older::Kept(flows.clone())), ..plan() };
    // Reading is strict: an attribute whose length had wrapped would not parse.
    let table = Nft::load(&nft::replace(&from_plan(&plan))).unwrap();
    for family in ["kept4", "kept6"] {
        let keys = table.elements(family).unwrap();
        assert_eq!(keys.len(), 40_000, "{family}: both directions");
        for key in keys {
            let read = nft::flow_of_key(key).unwrap();
            let mirror = Flow { local: read.remote, remote: read.local };
            assert!(flows.contains(&read) || flows.contains(&mirror));
        }
    }
}

#[test]
fn a_key_of_another_length_is_no_flow() {
    for length in [0, 4, 15, 17, 39, 41] {
        assert_eq!(nft::flow_of_key(&vec![1; length]), None);
    }
}

#[test]
fn comments_fit_every_backend() {
    for plan in rich_plans() {
        for rule in from_plan(&plan).chains.iter().flat_map(|chain| &chain.rules) {
            assert!(rule.why.len() <= 120 && rule.why.is_ascii(), "{}", rule.why);
        }
    }
}

#[test]
fn while_draining_the_nat_chains_are_there_and_empty() {
    let plan = RedirectPlan { stage: Stage::Drain, ..plan() };
    let rules = from_plan(&plan);
    let count =
        |name: &str| rules.chains.iter().find(|chain| chain.name.to_string() == name).map(|c| c.rules.len());
    assert_eq!((count("pre_nat"), count("out_nat")), (Some(0), Some(0)));
    assert_eq!((count("pre_mangle"), count("out_mangle")), (Some(1), Some(1)));
    let mut iptables = Iptables::new();
    iptables.apply(&lower(Backend::Iptables, Step::Enroll { plan: &plan, live: false }));
    assert_eq!(iptables.jumps(), 14, "seven hooks, two families: the hooks of NAT among them");
}

#[test]
fn nat_is_the_last_table_to_commit() {
    let ops = lower(Backend::Iptables, Step::Enroll { plan: &plan(), live: false });
    for op in &ops {
        if let KernelOp::IptablesRestore(script) = op {
            let tables: Vec<&str> = script.text.lines().filter(|line| line.starts_with('*')).collect();
            assert_eq!(tables, ["*raw", "*mangle", "*filter", "*nat"]);
        }
    }
}

#[test]
fn enrolling_over_remains_replacing_and_removing_never_double_a_jump() {
    let mut iptables = Iptables::new();
    for _ in 0..2 {
        iptables.apply(&lower(Backend::Iptables, Step::Enroll { plan: &plan(), live: true }));
        assert_eq!(iptables.jumps(), 14);
    }
    iptables.apply(&lower(Backend::Iptables, Step::Replace(&RedirectPlan { stage: Stage::Drain, ..plan() })));
    iptables.apply(&lower(Backend::Iptables, Step::Repair(&plan())));
    assert_eq!(iptables.jumps(), 14);
    iptables.apply(&lower(Backend::Iptables, Step::Remove));
    assert!(iptables.is_clean());
}

pub fn host_plan() -> HostPlan {
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    HostPlan {
        kubelet: cgroup("system"),
        source_v4: PROBE_SOURCE_V4,
        source_v6: PROBE_SOURCE_V6,
        pods: BTreeMap::from([
            (PodUid::new("7f1c2a6e-web").unwrap(), ips(&["10.0.0.5", "fd00::5"])),
            (PodUid::new("a9d04417-db").unwrap(), ips(&["10.0.0.9"])),
        ]),
        trials: BTreeSet::new(),
    }
}

/// What a connection from a socket of `maker` to `to` gets as its source.
fn snat(machine: &dyn Machine, maker: &str, to: &str, kind: Kind) -> Option<IpAddr> {
    let nobody = Receiver::Nobody;
    let to: IpAddr = to.parse().unwrap();
    let from = if to.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    let packet = Packet {
        path: Path::Out,
        kind,
        source: (from.parse().unwrap(), 40001),
        destination: (to, 8080),
        cookie: None,
        mark: 0,
        maker: lineage(maker),
        listeners: Listeners { outbound: nobody, inbound: nobody, hbone: nobody, dns: nobody },
    };
    let mut skb = Skb::new(&packet, None);
    skb.oif = Some((2, "eth0".to_owned()));
    assert_eq!(machine.hook(Hook::Output, &mut skb), Fate::Continue);
    assert_eq!(machine.hook(Hook::Postrouting, &mut skb), Fate::Continue);
    skb.snat
}

#[test]
fn on_the_host_only_the_kubelets_connections_to_pods_of_the_mesh_change() {
    let plan = host_plan();
    let nft = Nft::load(&nft::replace(&host_by_label(&plan))).unwrap();
    let mut iptables = Iptables::new();
    iptables.apply(&host::lower(Backend::Iptables, HostStep::Install(&plan)));
    for machine in [&nft as &dyn Machine, &iptables] {
        let snat = |maker, to, kind| snat(machine, maker, to, kind);
        assert_eq!(snat("system", "10.0.0.5", Kind::OpeningSyn), Some(PROBE_SOURCE_V4.into()));
        assert_eq!(snat("system", "10.0.0.9", Kind::OpeningSyn), Some(PROBE_SOURCE_V4.into()));
        assert_eq!(snat("system", "fd00::5", Kind::OpeningSyn), Some(PROBE_SOURCE_V6.into()));
        assert_eq!(snat("system", "fd00::9", Kind::OpeningSyn), None, "not a pod of the mesh");
        assert_eq!(snat("kube/app", "10.0.0.5", Kind::OpeningSyn), None, "not the kubelet");
        assert_eq!(snat("system", "10.0.0.5", Kind::Udp), None, "no probe is UDP");
    }
}

#[test]
fn on_the_host_a_trial_is_one_connection() {
    let [pod, node]: [IpAddr; 2] = ["10.0.0.9", "10.0.0.1"].map(|text| text.parse().unwrap());
    // From where `snat` sends.
    let flow = Flow { local: (pod, 8080), remote: (node, 40001) };
    let others = [(pod, 8081, 40001), (pod, 8080, 40002), ("10.0.0.7".parse().unwrap(), 8080, 40001)];
    let plan = HostPlan { pods: BTreeMap::new(), trials: BTreeSet::from([flow]), ..host_plan() };
    let elsewhere = others.map(|(to, port, from)| Flow { local: (to, port), remote: (node, from) });
    let others = HostPlan { trials: BTreeSet::from(elsewhere), ..plan.clone() };
    for (plan, expected) in [(&plan, Some(PROBE_SOURCE_V4.into())), (&others, None)] {
        let nft = Nft::load(&nft::replace(&host_by_label(plan))).unwrap();
        let mut iptables = Iptables::new();
        iptables.apply(&host::lower(Backend::Iptables, HostStep::Install(plan)));
        for machine in [&nft as &dyn Machine, &iptables] {
            assert_eq!(snat(machine, "kube/app", "10.0.0.9", Kind::OpeningSyn), expected);
        }
    }
    assert!(plan.amended(Backend::Nftables, &others).is_none(), "rules change: the table is written whole");
}

#[test]
fn a_set_of_pods_without_room_for_more_is_written_anew() {
    let with = |pods: u16| {
        let pods = (0..pods).map(|number| {
            let [high, low] = number.to_be_bytes();
            (PodUid::new(format!("u{number}")).unwrap(), vec![IpAddr::from([10, 1, high, low])])
        });
        HostPlan { pods: pods.collect(), ..host_plan() }
    };
    for (from, to, amended) in [(0, 256, true), (256, 257, false), (257, 512, true), (257, 256, false)] {
        let ops = with(from).amended(Backend::Nftables, &with(to));
        assert_eq!(ops.is_some(), amended, "from {from} pods to {to}");
    }
}

#[test]
fn the_hosts_table_is_replaced_whole_and_removed_whole() {
    let plan = host_plan();
    let fewer = HostPlan { pods: plan.pods.clone().into_iter().take(1).collect(), ..plan.clone() };
    let mut iptables = Iptables::new();
    iptables.apply(&host::lower(Backend::Iptables, HostStep::Install(&plan)));
    iptables.apply(&host::lower(Backend::Iptables, HostStep::Replace(&fewer)));
    assert_eq!(snat(&iptables, "system", "10.0.0.5", Kind::OpeningSyn), Some(PROBE_SOURCE_V4.into()));
    assert_eq!(snat(&iptables, "system", "10.0.0.9", Kind::OpeningSyn), None, "dismissed");
    iptables.apply(&host::lower(Backend::Iptables, HostStep::Remove));
    assert!(iptables.is_clean());
    let ops = host::lower(Backend::Nftables, HostStep::Remove);
    assert_eq!(ops, [KernelOp::NftBatch(nft::remove())]);
}

#[test]
fn a_pods_uid_is_the_note_of_its_addresses() {
    let NftBatch { bytes, .. } = nft::replace(&host_by_label(&host_plan()));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(text.matches("7f1c2a6e-web\0").count(), 2, "one for each address");
    let scripts = host::lower(Backend::Iptables, HostStep::Install(&host_plan()));
    let of = |family| {
        scripts.iter().find_map(|op| match op {
            KernelOp::IptablesRestore(script) if script.family == family => Some(script.text.clone()),
            _ => None,
        })
    };
    assert!(of(Family::V6).unwrap().contains("-d fd00::5/128"));
    assert!(of(Family::V4).unwrap().contains("--comment a9d04417-db"));
}
