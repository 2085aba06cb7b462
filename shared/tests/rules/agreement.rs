//! One plan, one packet, one answer: from the plan itself, from the nf_tables bytes and from the iptables text.

use super::generate::{cookies, packet, plan, without_cookies, world};
use super::iptables_vm::Iptables;
use super::nft_vm::Nft;
use super::vm::{Outcome, walk};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::ids::Ifname;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::netfilter::{ChainName, Ruleset, from_plan};
use sluice_shared::nft;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::*;
use std::collections::BTreeSet;

fn nft_of(plan: &RedirectPlan) -> Nft {
    let ops = lower(Backend::Nftables, Step::Enroll { plan, live: false });
    let [KernelOp::NftBatch(batch)] = &ops[ops.len() - 1..] else { panic!("no batch at the end of {ops:?}") };
    Nft::load(batch).expect("a table")
}

fn iptables_of(plan: &RedirectPlan) -> Iptables {
    let mut iptables = Iptables::new();
    iptables.apply(&lower(Backend::Iptables, Step::Enroll { plan, live: false }));
    iptables
}

proptest! {
    /// For packets that conntrack does not know, both backends do what the plan means, and treat marks and zones alike.
    /// With iptables no cookie passes.
    #[test]
    fn backends_agree_with_the_plan((plan, packets) in world()) {
        let (nft, iptables) = (nft_of(&plan), iptables_of(&plan));
        for packet in &packets {
            let by_nft = walk(&nft, packet, None);
            let by_iptables = walk(&iptables, packet, None);
            prop_assert_eq!(by_nft.verdict, verdict(&plan, packet), "nftables, {:?}", packet);
            let without = without_cookies(&plan);
            if without == plan {
                prop_assert_eq!(&by_iptables, &by_nft, "iptables, {:?}", packet);
            } else {
                prop_assert_eq!(by_iptables.verdict, verdict(&without, packet), "iptables, {:?}", packet);
            }
        }
    }

    /// Packets of known connections are never redirected, and both backends restore and keep marks alike.
    #[test]
    fn backends_agree_on_known_connections(
        (plan, packets) in world(),
        known in prop::sample::select(vec![0u32, 0x111, 0x2111, 0x539]),
    ) {
        let (nft, iptables) = (nft_of(&plan), iptables_of(&plan));
        for packet in &packets {
            let by_nft = walk(&nft, packet, Some(known));
            prop_assert!(!matches!(by_nft.verdict, Verdict::ToOutbound | Verdict::ToInbound | Verdict::ToDns));
            prop_assert_eq!(&walk(&iptables, packet, Some(known)), &by_nft, "{:?}", packet);
        }
    }

    /// Refilling chains gives what installing them gives, whatever was there before.
    #[test]
    fn a_replaced_plan_is_the_plan((plan, packets) in world(), before in plan()) {
        let before = RedirectPlan { ipv6: plan.ipv6, ..before };
        let plan = without_cookies(&plan);
        let mut iptables = iptables_of(&before);
        iptables.apply(&lower(Backend::Iptables, Step::Replace(&plan)));
        for packet in &packets {
            prop_assert_eq!(walk(&iptables, packet, None).verdict, verdict(&plan, packet), "{:?}", packet);
        }
    }
}

/// Packets that are the same in every run.
fn sample(count: usize) -> Vec<Packet> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let packet = packet();
    (0..count).map(|_| packet.new_tree(&mut runner).unwrap().current()).collect()
}

/// The generator reaches every answer: a property that only ever sees `Direct` would prove nothing.
#[test]
fn every_verdict_is_reached() {
    let mut reached = BTreeSet::new();
    for hold in [Hold::Drop, Hold::Reject] {
        let plan = RedirectPlan { hold, ..rich_plans().remove(0) };
        reached.extend(sample(2000).iter().map(|packet| verdict(&plan, packet)));
    }
    let all = [
        Verdict::Direct,
        Verdict::ToOutbound,
        Verdict::ToInbound,
        Verdict::ToDns,
        Verdict::Held,
        Verdict::Rejected,
    ];
    assert_eq!(reached, BTreeSet::from(all));
}

/// No rule is there for nothing: take any one away, and some packet fares differently.
#[test]
fn every_rule_matters() {
    // What conntrack does not know, and some answers on connections that came through ztunnel.
    let packets = sample(6000).into_iter().map(|packet| (packet, None));
    let packets: Vec<_> =
        sample(100).into_iter().map(|packet| (packet, Some(0x111))).chain(packets).collect();
    let load = |rules: &Ruleset| Nft::load(&nft::replace(rules)).expect("a table");
    for plan in rich_plans() {
        let whole = from_plan(&plan);
        let nft = load(&whole);
        let before: Vec<Outcome> = packets.iter().map(|(packet, known)| walk(&nft, packet, *known)).collect();
        for (chain, index) in places(&whole) {
            let mut less = whole.clone();
            let rules = &mut less.chains.iter_mut().find(|candidate| candidate.name == chain).unwrap().rules;
            let removed = rules.remove(index);
            let nft = load(&less);
            let differs = packets
                .iter()
                .zip(&before)
                .any(|((packet, known), then)| walk(&nft, packet, *known) != *then);
            assert!(differs, "{chain} does the same without: {removed}");
        }
    }
}

fn places(rules: &Ruleset) -> Vec<(ChainName, usize)> {
    rules.chains.iter().flat_map(|chain| (0..chain.rules.len()).map(|index| (chain.name, index))).collect()
}

/// Plans that have between them every rule there is.
pub fn rich_plans() -> Vec<RedirectPlan> {
    let kept = sample(400).into_iter().filter(|packet| packet.kind == Kind::MidStream);
    let flows = kept.map(|packet| Flow { local: packet.source, remote: packet.destination }).collect();
    let one = RedirectPlan {
        ipv6: true,
        stage: Stage::Redirect(Older::Kept(flows)),
        capture_inbound: true,
        capture_dns: true,
        virtual_interfaces: vec![Ifname::new("k6t-eth0").unwrap()],
        probe: ProbeDoor::Snat { v4: PROBE_SOURCE_V4, v6: PROBE_SOURCE_V6 },
        guard: MarkGuard::Cgroups(["system", "kube/zt"].into_iter().map(super::generate::cgroup).collect()),
        hold: Hold::Drop,
    };
    let addresses: BTreeSet<_> = ["10.0.0.1", "fd00::1"].map(|text| text.parse().unwrap()).into();
    let two = RedirectPlan {
        stage: Stage::Redirect(Older::AnyMidStream),
        probe: ProbeDoor::Source { addresses: addresses.clone(), ports: BTreeSet::from([80, 81]) },
        guard: MarkGuard::Off,
        hold: Hold::Reject,
        ..one.clone()
    };
    let three = RedirectPlan {
        probe: ProbeDoor::Cookie {
            cookies: cookies()[..2].iter().copied().collect(),
            addresses,
            ports: BTreeSet::from([80, 81, 443]),
        },
        ..one.clone()
    };
    vec![one, two, three]
}
