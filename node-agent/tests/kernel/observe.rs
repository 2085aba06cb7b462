//! What an observation shows of what somebody did.

use crate::fixture::{FAR4, POD4, Way, World, plan};
use crate::listeners::{Dial, Listener, Reached, ZTUNNEL_MARK, Ztunnel};
use sluice_agent::kernel::{Kernel, TcpSocket};
use sluice_shared::ids::{Family, Mark};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::plan::{Hold, RedirectPlan};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

pub const TESTS: &[(&str, fn())] = &[
    ("every_change_of_nftables_rules_shows", nftables_changes),
    ("every_change_of_iptables_rules_shows", iptables_changes),
    ("traffic_is_no_change", traffic),
    ("only_ztunnels_listeners_count", listening),
    ("sockets_are_shown_with_both_ends_mark_and_cgroup", sockets),
    ("the_hosts_table_is_seen", host_table),
    ("the_hosts_source_for_a_pod_is_found", host_source),
    ("what_others_write_meanwhile_is_not_taken_for_ours", nobody_in_between),
    ("reading_does_not_make_legacy_tables", reading_makes_nothing),
];

fn nftables_changes() {
    let world = World::new();
    world.enroll(Way::Nftables, &plan());
    let expected = world.kernel.observe(&world.netns).expect("observe");
    let nat = "out_nat";
    for change in [
        format!("insert rule inet sluice {nat} accept"),
        format!("add rule inet sluice {nat} accept"),
        format!("flush chain inet sluice {nat}"),
        "add element inet sluice ztunnel_ports { 80 }".into(),
        "delete element inet sluice ztunnel_ports { 15008 }".into(),
        "add chain inet sluice mine".into(),
        "add set inet sluice mine { type inet_service; }".into(),
        "add table inet sluice { flags dormant; }".into(),
        format!("chain inet sluice {nat} {{ policy drop; }}"),
    ] {
        world.pod.nft(&change);
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(seen.rules.is_some() && seen.rules != expected.rules, "not seen: {change}");
        assert_ne!(seen.generation, expected.generation, "{change}");
        world.step(Way::Nftables, Step::Repair(&plan()));
        assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, expected.rules, "{change}");
    }
    world.pod.nft("delete table inet sluice");
    assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, None);
    // What others do with tables of their own does not concern ours.
    world.step(Way::Nftables, Step::Repair(&plan()));
    world.pod.nft("table inet others { chain c { type filter hook input priority 5; }; }");
    assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, expected.rules);
}

fn iptables_changes() {
    for way in [Way::ALL[1], Way::ALL[2]] {
        let Way::Iptables(variant) = way else { continue };
        let world = World::new();
        world.enroll(way, &plan());
        let expected = world.kernel.observe(&world.netns).expect("observe");
        for family in Family::BOTH {
            for change in [
                "-t nat -I SLUICE_OUTPUT -j RETURN",
                "-t nat -F SLUICE_OUTPUT",
                "-t nat -I OUTPUT -j ACCEPT",
                "-t mangle -D OUTPUT -j SLUICE_OUTPUT",
            ] {
                let arguments: Vec<_> = change.split(' ').collect();
                world.pod.command(variant.program(family), &arguments, "");
                let seen = world.kernel.observe(&world.netns).expect("observe");
                assert!(seen.rules.is_some() && seen.rules != expected.rules, "{way:?}: not seen: {change}");
                assert_ne!(seen.generation, expected.generation, "{way:?}: {change}");
                if change.ends_with("ACCEPT") {
                    world.pod.command(
                        variant.program(family),
                        &["-t", "nat", "-D", "OUTPUT", "-j", "ACCEPT"],
                        "",
                    );
                }
                world.step(way, Step::Repair(&plan()));
                let repaired = world.kernel.observe(&world.netns).expect("observe").rules;
                assert_eq!(repaired, expected.rules, "{way:?}: {change}");
            }
        }
    }
}

fn traffic() {
    for way in Way::ALL {
        let world = World::new();
        let _ztunnel = Ztunnel::start(&world.pod);
        world.enroll(way, &plan());
        let before = world.kernel.observe(&world.netns).expect("observe");
        let far = SocketAddr::from((FAR4.parse::<IpAddr>().expect("an address"), 443));
        assert_eq!(Dial::default().to(&world.pod, far).summary(), format!("outbound {far}"));
        assert_eq!(world.kernel.observe(&world.netns).expect("observe"), before, "{way:?}");
    }
}

fn listening() {
    let world = World::new();
    assert!(world.kernel.observe(&world.netns).expect("observe").listening.is_empty());
    // Somebody else's listeners on these ports are not ztunnel's.
    let squatter = Listener::everywhere(&world.pod, "squatter", 15001);
    assert!(world.kernel.observe(&world.netns).expect("observe").listening.is_empty());
    drop(squatter);
    let ztunnel = Ztunnel::start(&world.pod);
    let seen = world.kernel.observe(&world.netns).expect("observe");
    assert_eq!(seen.listening, BTreeSet::from([15001, 15006, 15008, 15053]));
    drop(ztunnel);
    assert!(world.kernel.observe(&world.netns).expect("observe").listening.is_empty());
}

fn sockets() {
    let world = World::new();
    let _app = Listener::everywhere(&world.pod, "app", 8080);
    let _outside = Listener::everywhere(&world.outside, "outside", 443);
    let [pod, far] = [POD4, FAR4].map(|address| address.parse::<IpAddr>().expect("an address"));
    let marked = Dial { mark: ZTUNNEL_MARK, ..Dial::default() };
    let Reached::Line { stream, .. } = marked.to(&world.pod, (far, 443).into()) else {
        panic!("not reached")
    };
    let local = stream.local_addr().expect("an address").port();
    // The accepting side is a dual-stack socket with mapped addresses.
    let Reached::Line { stream: _incoming, .. } = Dial::default().to(&world.outside, (pod, 8080).into())
    else {
        panic!("not reached")
    };
    let found = world.kernel.sockets(&world.netns).expect("sockets");
    let find = |which: &dyn Fn(&TcpSocket) -> bool| {
        found.iter().find(|socket| which(socket)).unwrap_or_else(|| panic!("missing in {found:?}"))
    };
    let dialled = find(&|socket| socket.flow.remote == (far, 443));
    assert_eq!((dialled.flow.local, dialled.state), ((pod, local), 1));
    assert!(Mark { value: ZTUNNEL_MARK, mask: u32::MAX }.matches(dialled.mark));
    assert!(dialled.cgroup.is_some());
    let accepted = find(&|socket| socket.flow.local == (pod, 8080));
    assert_eq!((accepted.state, accepted.mark), (1, 0));
    let listener = find(&|socket| socket.flow.local.1 == 8080 && socket.state == 10);
    assert!(listener.flow.local.0.is_unspecified());
}

/// Somebody in the pod replaces our rules over and over: theirs are never taken for what was committed.
fn nobody_in_between() {
    let world = World::new();
    let plan = plan();
    world.enroll(Way::Nftables, &plan);
    let ours = world.kernel.observe(&world.netns).expect("observe").rules;
    let theirs = RedirectPlan { hold: Hold::Reject, ..plan.clone() };
    let ops = lower(Backend::Nftables, Step::Replace(&plan));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                world.step(Way::Nftables, Step::Replace(&theirs));
            }
        });
        let outcomes: Vec<_> = (0..50).map(|_| world.kernel.apply(&world.netns, &ops)).collect();
        stop.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            match outcome {
                Ok(seen) => assert_eq!(seen.rules, ours),
                Err(error) => assert!(error.to_string().contains("somebody else changed"), "{error}"),
            }
        }
    });
    for way in Way::ALL {
        let (world, alone) = (World::new(), World::new());
        alone.enroll(way, &plan);
        if let Way::Iptables(variant) = way {
            world.kernel.use_iptables(variant);
        }
        for step in [Step::Enroll { plan: &plan, live: true }, Step::Replace(&plan), Step::Repair(&plan)] {
            let seen = world.kernel.apply(&world.netns, &lower(way.backend(), step)).expect("apply");
            assert_eq!(seen.rules, alone.kernel.observe(&alone.netns).expect("observe").rules, "{way:?}");
            assert!(seen.policy_rule && seen.local_route, "{way:?}: {seen:?}");
        }
        let gone = world.kernel.apply(&world.netns, &lower(way.backend(), Step::Remove)).expect("remove");
        assert_eq!(gone.rules, None, "{way:?}");
    }
}

fn host_table() {
    // This kernel's host is the tests' own outer namespace, which all tests share: look, but write elsewhere.
    let host = crate::fixture::Ns::new();
    host.run(|| {
        let path = std::path::Path::new("/proc/thread-self/ns/net");
        let kernel = sluice_agent::kernel::linux::LinuxKernel::new(path).expect("own namespace");
        assert_eq!(kernel.observe_host().expect("observe"), None);
        let ops = lower(Backend::Nftables, Step::Replace(&plan()));
        kernel.run_host(&ops).expect("host rules");
        assert!(kernel.observe_host().expect("observe").is_some());
    });
}

fn host_source() {
    let world = World::new();
    world.outside.run(|| {
        let path = std::path::Path::new("/proc/thread-self/ns/net");
        let host = sluice_agent::kernel::linux::LinuxKernel::new(path).expect("own namespace");
        for (pod, source) in [(POD4, "10.7.0.1"), (crate::fixture::POD6, "fd07::1")] {
            let found = host.host_source_for(pod.parse().expect("an address")).expect("a route");
            assert_eq!(found, source.parse::<IpAddr>().expect("an address"));
        }
        let error = host.host_source_for("203.0.113.1".parse().expect("an address")).expect_err("no route");
        assert!(error.to_string().contains("203.0.113.1"), "{error}");
    });
}

fn reading_makes_nothing() {
    let world = World::new();
    world.kernel.observe(&world.netns).expect("observe");
    world.kernel.run(&world.netns, &[sluice_shared::op::KernelOp::ClearIptables]).expect("nothing to clear");
    for file in ["ip_tables_names", "ip6_tables_names"] {
        let names = world.pod.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        assert_eq!(names.unwrap_or_default(), "");
    }
    assert_eq!(world.pod.command("nft", &["list", "ruleset"], ""), "");
}
