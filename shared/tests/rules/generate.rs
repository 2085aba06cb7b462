//! Plans and packets from small worlds, so that they meet often.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::cookie::Cookie;
use sluice_shared::ids::{Family, Ifname};
use sluice_shared::plan::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

const PORTS: [u16; 10] = [53, 80, 81, 443, 15001, 15006, 15008, 15053, 40000, 40001];
const MARKS: [u32; 7] = [0, 0x539, 0x1539, 0xabc0_0539, 0x53a, 0x111, 0xffff_ffff];

pub fn addresses(family: Family) -> Vec<IpAddr> {
    let texts = match family {
        Family::V4 => ["10.0.0.5", "10.0.0.9", "10.0.0.1", "169.254.7.127", "192.0.2.7"],
        Family::V6 => {
            ["fd00::5", "fd00::9", "fd00::1", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "2001:db8::7"]
        }
    };
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A cgroup tree, as paths; a cgroup's level is the number of its parts, its id its place in this list.
const CGROUPS: [&str; 6] = ["kube", "kube/zt", "kube/zt/c1", "kube/zt/c2", "kube/app", "system"];

pub fn cgroup(path: &str) -> CgroupRef {
    let place = CGROUPS.iter().position(|known| *known == path).unwrap() as u64;
    CgroupRef { level: path.split('/').count() as u32, id: 0x1_0000_0000 + place, path: path.to_owned() }
}

/// The cgroup and its ancestors.
pub fn lineage(path: &str) -> BTreeSet<CgroupRef> {
    let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
    ancestors.chain([path]).map(cgroup).collect()
}

fn family() -> impl Strategy<Value = Family> {
    select(vec![Family::V4, Family::V6])
}

fn tuple() -> impl Strategy<Value = ((IpAddr, u16), (IpAddr, u16))> {
    family().prop_flat_map(|family| {
        let end = (select(addresses(family)), select(PORTS.to_vec()));
        (end.clone(), end)
    })
}

fn flows() -> impl Strategy<Value = BTreeSet<Flow>> {
    btree_set(tuple().prop_map(|(local, remote)| Flow { local, remote }), 0..12)
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        3 => Just(Stage::Redirect(Older::None)),
        1 => Just(Stage::Redirect(Older::AnyMidStream)),
        3 => flows().prop_map(|flows| Stage::Redirect(Older::Kept(flows))),
        1 => Just(Stage::Drain),
    ]
}

/// Few enough that packets have those of plans.
pub fn cookies() -> Vec<Cookie> {
    (1..=3).map(|secret| Cookie::new([0, 1, 2, 3, 4, 5, 6, secret])).collect()
}

fn door() -> impl Strategy<Value = ProbeDoor> {
    let all: Vec<IpAddr> = Family::BOTH.into_iter().flat_map(addresses).collect();
    let ports = (1..=20).chain(PORTS).collect::<Vec<u16>>();
    let cookie =
        (subsequence(cookies(), 0..=3), subsequence(all.clone(), 0..=10), subsequence(ports.clone(), 0..=30))
            .prop_map(|(cookies, addresses, ports)| ProbeDoor::Cookie {
                cookies: cookies.into_iter().collect(),
                addresses: addresses.into_iter().collect(),
                ports: ports.into_iter().collect(),
            });
    let source = (subsequence(all, 0..=10), subsequence(ports, 0..=30)).prop_map(|(addresses, ports)| {
        ProbeDoor::Source { addresses: addresses.into_iter().collect(), ports: ports.into_iter().collect() }
    });
    let one = prop_oneof![
        1 => Just(ProbeDoor::Closed),
        2 => Just(ProbeDoor::Snat { v4: PROBE_SOURCE_V4, v6: PROBE_SOURCE_V6 }),
        2 => source,
        2 => cookie,
        2 => trial(),
    ]
    .boxed();
    prop_oneof![3 => one.clone(), 2 => vec(one, 0..=4).prop_map(ProbeDoor::several)]
}

fn trial() -> impl Strategy<Value = ProbeDoor> {
    let cookie = prop::option::weighted(0.3, select(cookies()));
    (tuple(), any::<bool>(), cookie).prop_map(|((from, to), by_port, cookie)| {
        let from_port = by_port.then_some(from.1);
        ProbeDoor::Trial(TrialDoor { from: from.0, from_port, to, cookie })
    })
}

/// Without the doors that iptables cannot make: those that compare a cookie.
pub fn without_cookies(plan: &RedirectPlan) -> RedirectPlan {
    let compares = |door: &ProbeDoor| match door {
        ProbeDoor::Cookie { .. } => true,
        ProbeDoor::Trial(trial) => trial.cookie.is_some(),
        _ => false,
    };
    let (addresses, ports) = (plan.probe.addresses(), plan.probe.ports());
    let others = plan.probe.doors().filter(|door| !compares(door)).map(|door| match door {
        // What the one that is gone says of these counts for the others.
        ProbeDoor::Source { .. } => ProbeDoor::Source { addresses: addresses.clone(), ports: ports.clone() },
        other => other.clone(),
    });
    RedirectPlan { probe: ProbeDoor::several(others), ..plan.clone() }
}

fn guard() -> impl Strategy<Value = MarkGuard> {
    let some = subsequence(CGROUPS.to_vec(), 0..=4);
    prop_oneof![
        1 => Just(MarkGuard::Off),
        3 => some.prop_map(|paths| MarkGuard::Cgroups(paths.into_iter().map(cgroup).collect())),
    ]
}

fn interfaces() -> Vec<Ifname> {
    ["eth0", "k6t-eth0", "net1"].into_iter().map(|name| Ifname::new(name).unwrap()).collect()
}

pub fn plan() -> impl Strategy<Value = RedirectPlan> {
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.8), any::<bool>());
    let hold = select(vec![Hold::Drop, Hold::Reject]);
    let virtual_interfaces = subsequence(interfaces()[1..].to_vec(), 0..=2);
    (flags, stage(), virtual_interfaces, door(), guard(), hold).prop_map(
        |((ipv6, capture_inbound, capture_dns), stage, virtual_interfaces, probe, guard, hold)| {
            RedirectPlan { ipv6, stage, capture_inbound, capture_dns, virtual_interfaces, probe, guard, hold }
        },
    )
}

fn listeners() -> impl Strategy<Value = Listeners> {
    let who = || {
        prop_oneof![
            4 => Just(Receiver::Ztunnel),
            1 => Just(Receiver::ZtunnelTimeWait),
            1 => Just(Receiver::Nobody),
            1 => Just(Receiver::Application),
        ]
    };
    (who(), who(), who(), who()).prop_map(|(outbound, inbound, hbone, dns)| Listeners {
        outbound,
        inbound,
        hbone,
        dns,
    })
}

pub fn packet() -> impl Strategy<Value = Packet> {
    let path = prop_oneof![
        2 => Just(Path::Out),
        1 => Just(Path::OverLo),
        2 => select(interfaces()).prop_map(Path::In),
    ];
    let kind = select(vec![Kind::OpeningSyn, Kind::OpeningSyn, Kind::MidStream, Kind::Udp]);
    let maker = select(CGROUPS.to_vec());
    let cookie = prop::option::weighted(0.5, select(cookies()));
    (path, kind, tuple(), cookie, select(MARKS.to_vec()), maker, listeners()).prop_map(
        |(path, kind, (source, destination), cookie, mark, maker, listeners)| {
            let outside = matches!(path, Path::In(_));
            Packet {
                path,
                kind,
                source,
                destination,
                cookie: cookie.filter(|_| kind != Kind::Udp),
                mark: if outside { 0 } else { mark },
                maker: if outside { BTreeSet::new() } else { lineage(maker) },
                listeners,
            }
        },
    )
}

/// A plan and packets for it. Where the plan keeps connections, it keeps some of the packets' own, in one direction or
/// the other.
pub fn world() -> impl Strategy<Value = (RedirectPlan, Vec<Packet>)> {
    (plan(), vec((packet(), 0..3u8), 1..24)).prop_map(|(mut plan, packets)| {
        if let Stage::Redirect(Older::Kept(flows)) = &mut plan.stage {
            for (packet, keep) in &packets {
                let flow = Flow { local: packet.source, remote: packet.destination };
                match keep {
                    1 => flows.extend([flow]),
                    2 => flows.extend([Flow { local: flow.remote, remote: flow.local }]),
                    _ => {}
                }
            }
        }
        (plan, packets.into_iter().map(|(packet, _)| packet).collect())
    })
}
