//! Rules come, are replaced, and go.

use crate::fixture::{FAR4, FAR6, Way, World, plan};
use sluice_agent::kernel::Kernel;
use sluice_shared::ids::Family;
use sluice_shared::lower::Step;
use sluice_shared::op::{KernelOp, Presence};
use sluice_shared::plan::{Hold, RedirectPlan};

pub const TESTS: &[(&str, fn())] = &[
    ("removal_leaves_the_namespace_as_it_was", leaves_nothing),
    ("every_step_may_be_repeated", idempotent),
    ("half_closed_connections_are_remembered_in_the_mesh_only", half_closed),
    ("equal_plans_have_equal_fingerprints_in_every_namespace", fingerprints),
    ("a_namespace_without_ipv6_is_enrolled_all_the_same", without_ipv6),
    ("routing_is_found_missing_and_put_back", routing),
    ("without_ipv6_in_the_plan_nothing_counts_as_missing", ipv4_only),
    ("somebody_elses_default_route_in_our_table_is_replaced", usurped_route),
    ("a_rule_that_takes_our_mark_elsewhere_is_removed", usurped_rule),
    ("loopback_is_brought_up_before_the_route", loopback_down),
    ("iptables_remains_of_another_variant_are_cleared", other_variant),
];

fn leaves_nothing() {
    for way in Way::ALL {
        let world = World::new();
        // Somebody else's rules and routing stay as they are.
        world.pod.nft("table inet others { chain c { type filter hook input priority 5; accept; }; }");
        world.pod.ip("rule add fwmark 0x1 lookup 100 pref 100");
        let before = world.pod.snapshot();
        let plan = plan();
        world.enroll(way, &plan);
        assert_ne!(world.pod.snapshot(), before, "{way:?}");
        world.step(way, Step::Remove);
        assert_eq!(world.pod.snapshot(), before, "{way:?}");
        assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, None, "{way:?}");
    }
}

fn idempotent() {
    for way in Way::ALL {
        let world = World::new();
        let plan = plan();
        world.step(way, Step::Remove);
        world.enroll(way, &plan);
        let once = world.pod.snapshot();
        let seen = world.kernel.observe(&world.netns).expect("observe");
        world.enroll(way, &plan);
        world.step(way, Step::Replace(&plan));
        world.step(way, Step::Repair(&plan));
        let again = world.kernel.observe(&world.netns).expect("observe");
        assert_eq!(again.rules, seen.rules, "{way:?}");
        assert_eq!(world.pod.snapshot(), once, "{way:?}");
        world.step(way, Step::Remove);
        world.step(way, Step::Remove);
    }
}

fn half_closed() {
    for way in Way::ALL {
        let world = World::new();
        let seconds = || {
            ["fin_wait", "close_wait", "established"].map(|state| {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{state}");
                let text = world.pod.run(|| std::fs::read_to_string(path).expect("a timeout"));
                text.trim().parse::<u32>().expect("seconds")
            })
        };
        let before = seconds();
        let day = 24 * 60 * 60;
        assert!(before[0] < day && before[1] < day);
        world.enroll(way, &plan());
        assert_eq!(seconds(), [day, day, before[2]], "{way:?}: for a day");
        world.step(way, Step::Remove);
        assert_eq!(seconds(), before, "{way:?}");
    }
}

fn fingerprints() {
    for way in Way::ALL {
        let (one, other) = (World::new(), World::new());
        let plan = plan();
        // Another history: other handles, other counters.
        other.enroll(way, &RedirectPlan { hold: Hold::Reject, ..plan.clone() });
        let rejecting = other.kernel.observe(&other.netns).expect("observe").rules;
        one.enroll(way, &plan);
        other.step(way, Step::Replace(&plan));
        let (one, other) = (
            one.kernel.observe(&one.netns).expect("observe").rules,
            other.kernel.observe(&other.netns).expect("observe").rules,
        );
        assert!(one.is_some());
        assert_eq!(one, other, "{way:?}");
        assert_ne!(rejecting, other, "{way:?}");
    }
}

fn without_ipv6() {
    for way in Way::ALL {
        let world = World::new();
        for what in ["all", "default", "lo"] {
            let path = format!("/proc/sys/net/ipv6/conf/{what}/disable_ipv6");
            world.pod.run(|| std::fs::write(path, "1").expect("disable IPv6"));
        }
        let plan = plan();
        world.enroll(way, &plan);
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(seen.policy_rule && seen.local_route, "{way:?}: {seen:?}");
        // IPv6 comes back: now the route is missing, and can be put there.
        world.pod.run(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").expect("enable"));
        assert!(!world.kernel.observe(&world.netns).expect("observe").local_route, "{way:?}");
        world.step(way, Step::Repair(&plan));
        assert!(world.kernel.observe(&world.netns).expect("observe").local_route, "{way:?}");
        world.step(way, Step::Remove);
    }
}

fn routing() {
    let world = World::new();
    let plan = plan();
    world.enroll(Way::Nftables, &plan);
    for (damage, rule, route) in [
        ("-4 rule del pref 32764", false, true),
        ("-6 rule del pref 32764", false, true),
        ("-4 route flush table 100", true, false),
        ("-6 route flush table 100", true, false),
    ] {
        world.pod.ip(damage);
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert_eq!((seen.policy_rule, seen.local_route), (rule, route), "{damage}");
        world.step(Way::Nftables, Step::Repair(&plan));
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(seen.policy_rule && seen.local_route, "{damage}");
    }
    // A rule that is narrower than ours is not ours.
    world.pod.ip("-4 rule del pref 32764");
    world.pod.ip("-4 rule add iif lo fwmark 0x111/0xfff lookup 100 pref 32764");
    assert!(!world.kernel.observe(&world.netns).expect("observe").policy_rule);
    let op = [KernelOp::PolicyRule(Family::V4, Presence::Present)];
    world.kernel.run(&world.netns, &op).expect("add ours beside it");
    assert!(world.kernel.observe(&world.netns).expect("observe").policy_rule);
}

fn ipv4_only() {
    for way in Way::ALL {
        let world = World::new();
        let before = world.pod.snapshot();
        let plan = RedirectPlan { ipv6: false, ..plan() };
        world.enroll(way, &plan);
        assert_returns(&world, &format!("{way:?}"));
        world.step(way, Step::Remove);
        assert_eq!(world.pod.snapshot(), before, "{way:?}");
    }
}

fn assert_returns(world: &World, when: &str) {
    let seen = world.kernel.observe(&world.netns).expect("observe");
    assert!(seen.policy_rule && seen.local_route, "{when}: {seen:?}");
    for (family, far) in [("-4", FAR4), ("-6", FAR6)] {
        let route = world.pod.ip(&format!("{family} route get {far} mark 0x111"));
        assert!(route.contains("local") && route.contains("dev lo"), "{when}: {route}");
    }
}

fn usurped_route() {
    let world = World::new();
    let plan = plan();
    world.enroll(Way::Nftables, &plan);
    for usurper in [
        "-4 route replace local default dev eth0 table 100",
        "-4 route replace default via 10.7.0.1 table 100",
        "-4 route add default tos 0x10 via 10.7.0.1 table 100",
        "-6 route replace local default dev eth0 table 100",
        "-6 route replace default via fd07::1 dev eth0 table 100",
        "-6 route add default via fd07::1 dev eth0 metric 5 table 100",
        "-6 route add unreachable default metric 5 table 100",
    ] {
        world.pod.ip(usurper);
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(seen.policy_rule && !seen.local_route, "{usurper}: {seen:?}");
        world.step(Way::Nftables, Step::Repair(&plan));
        assert_returns(&world, usurper);
        let tables = ["-4", "-6"].map(|family| world.pod.ip(&format!("{family} route show table 100")));
        assert_eq!(tables.map(|table| table.lines().count()), [1, 1], "{usurper}");
    }
    // What is not chosen before ours, and what is about other networks, is left alone.
    let harmless = [
        "-4 route add default via 10.7.0.1 metric 9 table 100",
        "-6 route add default via fd07::1 dev eth0 metric 2000 table 100",
        "-4 route add 192.0.2.0/24 dev eth0 table 100",
    ];
    for other in harmless {
        world.pod.ip(other);
    }
    assert_returns(&world, "beside others");
    let before = world.pod.snapshot();
    world.step(Way::Nftables, Step::Repair(&plan));
    assert_eq!(world.pod.snapshot(), before);
}

fn usurped_rule() {
    let world = World::new();
    let plan = plan();
    // A rule about other marks, or about one bit of many, has its own purpose.
    world.pod.ip("-4 rule add fwmark 0x1/0x1 lookup main pref 90");
    world.pod.ip("-4 rule add fwmark 0x222 lookup main pref 91");
    world.enroll(Way::Nftables, &plan);
    let before = world.pod.snapshot();
    for usurper in [
        "-4 rule add fwmark 0x111/0xfff lookup main pref 100",
        "-6 rule add fwmark 0x111/0xfff lookup main pref 100",
        "-4 rule add fwmark 0x111 blackhole pref 100",
    ] {
        world.pod.ip(usurper);
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(!seen.policy_rule && seen.local_route, "{usurper}: {seen:?}");
        world.step(Way::Nftables, Step::Repair(&plan));
        assert!(world.kernel.observe(&world.netns).expect("observe").policy_rule, "{usurper}");
        assert_eq!(world.pod.snapshot(), before, "{usurper}");
    }
}

fn loopback_down() {
    for way in Way::ALL {
        let world = World::new();
        let plan = plan();
        world.pod.ip("link set lo down");
        world.enroll(way, &plan);
        assert_returns(&world, "enrolled with lo down");
        world.pod.ip("link set lo down");
        assert!(!world.kernel.observe(&world.netns).expect("observe").local_route, "{way:?}");
        world.step(way, Step::Repair(&plan));
        assert_returns(&world, "repaired with lo down");
    }
}

fn other_variant() {
    let [_, legacy, nft] = Way::ALL;
    for (first, second) in [(legacy, nft), (nft, legacy)] {
        let world = World::new();
        let plan = plan();
        world.enroll(first, &plan);
        world.enroll(second, &plan);
        let alone = World::new();
        alone.enroll(second, &plan);
        let (seen, expected) = (
            world.kernel.observe(&world.netns).expect("observe").rules,
            alone.kernel.observe(&alone.netns).expect("observe").rules,
        );
        assert_eq!(seen, expected, "{first:?} then {second:?}");
    }
}
