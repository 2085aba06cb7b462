//! The host's rules for the probe strategy `snat`: the kubelet's own connections to enrolled pods get a source address
//! that the pods let pass.

use super::{
    Chain, ChainName, Elements, Hook, Layer, Match, Proto, Rule, Ruleset, Set, SetName, Target, Test,
    family_of,
};
use crate::host::HostPlan;
use crate::ids::Family;
use crate::plan::Flow;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The bit of the connection's label that says "made by the kubelet".
const KUBELET_LABEL: u8 = 127;

/// For nftables, whose `socket` expression is refused at postrouting: output labels the connections of the kubelet's
/// sockets, and postrouting goes by the label.
#[must_use]
pub fn by_label(plan: &HostPlan) -> Ruleset {
    let pods: Vec<(Family, BTreeMap<IpAddr, String>)> =
        Family::BOTH.map(|family| (family, pods(plan, family))).into_iter().collect();
    let mut sets = vec![kubelet(plan)];
    let mut output = Vec::new();
    let mut postrouting = Vec::new();
    for (family, addresses) in pods {
        let to_pod = Match::DstIn(SetName::Pods(family));
        sets.push(Set { name: SetName::Pods(family), elements: Elements::Addresses(family, addresses) });
        output.push(Rule {
            family: Some(family),
            matches: vec![Match::Proto(Proto::Tcp), to_pod.clone(), by_kubelet(plan)],
            target: Target::SetCtLabel(KUBELET_LABEL),
            why: Cow::Borrowed("the kubelet's own connections to pods of the mesh"),
        });
        postrouting.push(Rule {
            family: Some(family),
            matches: vec![Match::Proto(Proto::Tcp), to_pod, Match::CtLabel(KUBELET_LABEL)],
            target: Target::Snat(source(plan, family)),
            why: Cow::Borrowed("get the source that the pods' rules let pass"),
        });
    }
    postrouting.extend(trials(plan));
    let chains = vec![
        Chain { name: ChainName::Base(Layer::Filter, Hook::Output), rules: output },
        Chain { name: ChainName::Base(Layer::Nat, Hook::Postrouting), rules: postrouting },
    ];
    Ruleset { sets, chains }
}

/// For iptables, whose `cgroup` match works at postrouting but which has no sets: one rule an address.
#[must_use]
pub fn by_socket(plan: &HostPlan) -> Ruleset {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        for (address, uid) in pods(plan, family) {
            rules.push(Rule {
                family: Some(family),
                matches: vec![Match::Proto(Proto::Tcp), Match::Dst(address), by_kubelet(plan)],
                target: Target::Snat(source(plan, family)),
                why: Cow::Owned(uid),
            });
        }
    }
    rules.extend(trials(plan));
    let chain = Chain { name: ChainName::Base(Layer::Nat, Hook::Postrouting), rules };
    Ruleset { sets: vec![kubelet(plan)], chains: vec![chain] }
}

/// The very connections that the agent makes to try this: whoever else had their addresses and ports would meet nobody but
/// the agent's own listener.
fn trials(plan: &HostPlan) -> impl Iterator<Item = Rule> {
    let of_one_family = |flow: &&Flow| family_of(flow.local.0) == family_of(flow.remote.0);
    plan.trials.iter().filter(of_one_family).map(|Flow { local: to, remote: from }| Rule {
        family: Some(family_of(to.0)),
        matches: vec![
            Match::Proto(Proto::Tcp),
            Match::Src(from.0),
            Match::Dst(to.0),
            Match::SrcPort(from.1),
            Match::DstPort(Test::Is(to.1)),
        ],
        target: Target::Snat(source(plan, family_of(to.0))),
        why: Cow::Borrowed("the agent's own connection, which tries this way for probes"),
    })
}

/// What leads from the sets of one plan to those of another: elements that go, and elements that come. `None` where a set
/// would have to be made anew, for more elements or for fewer.
#[must_use]
pub fn changes(from: &HostPlan, to: &HostPlan) -> Option<(Vec<Set>, Vec<Set>)> {
    let room = |plan, family| SetName::Pods(family).room(pods(plan, family).len());
    if Family::BOTH.into_iter().any(|family| room(from, family) != room(to, family)) {
        return None;
    }
    let only_in = |these: &HostPlan, those: &HostPlan| {
        let sets = Family::BOTH.into_iter().map(|family| {
            let others = pods(those, family);
            let mut addresses = pods(these, family);
            addresses.retain(|address, uid| others.get(address) != Some(uid));
            Set { name: SetName::Pods(family), elements: Elements::Addresses(family, addresses) }
        });
        sets.collect()
    };
    Some((only_in(from, to), only_in(to, from)))
}

fn kubelet(plan: &HostPlan) -> Set {
    Set { name: SetName::Kubelet, elements: Elements::Cgroups(BTreeSet::from([plan.kubelet.clone()])) }
}

fn by_kubelet(plan: &HostPlan) -> Match {
    Match::SocketCgroupIn(plan.kubelet.level, SetName::Kubelet)
}

fn source(plan: &HostPlan, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(plan.source_v4),
        Family::V6 => IpAddr::V6(plan.source_v6),
    }
}

/// Addresses of one family with the uid of their pod.
fn pods(plan: &HostPlan, family: Family) -> BTreeMap<IpAddr, String> {
    let all = plan.pods.iter().flat_map(|(uid, ips)| ips.iter().map(move |ip| (*ip, uid.to_string())));
    all.filter(|(ip, _)| family_of(*ip) == family).collect()
}
