//! From istio-cni's rules to ours, in pods whose connections run.

use crate::fixture::{Ns, POD4, POD6, Way, World, eventually, plan};
use crate::istio::{Programs, capture, exempt_probes};
use crate::listeners::{Dial, Ztunnel, ask_udp};
use crate::live::{ROUTES, assert_alive, connect_all, everybody, tags, to};
use sluice_agent::kernel::Kernel;
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_shared::istio::{Place, Remains, recognise};
use sluice_shared::lower::{Step, lower};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

pub const TESTS: &[(&str, fn())] = &[
    ("proxied_connections_live_on_and_nothing_of_theirs_is_left", handed_over),
    ("no_connection_is_missed_or_fails_under_load", under_load),
    ("an_interrupted_handover_is_finished", finished_later),
    ("the_operators_own_stay", operators_own),
    ("a_sidecars_chains_are_left_alone", sidecar),
    ("a_listing_that_is_out_of_date_changes_nothing", out_of_date),
    ("the_hosts_rules_and_sets_go", host),
];

fn remains(world: &World) -> Remains {
    recognise(&world.kernel.istio(&world.netns).expect("list"), Place::Pod)
}

/// As the agent does it: once, and again for what the backend could not take in the same transaction.
fn take_over(world: &World, way: Way) {
    let found = remains(world);
    assert!(!found.is_empty(), "{found:?}");
    assert!(found.left.is_empty(), "{found:?}");
    world.step(way, Step::TakeOver { plan: &plan(), remains: &found });
    let left = remains(world);
    if !left.is_empty() {
        world.step(way, Step::Dismantle(&left));
    }
}

/// What shows that istio-cni was there.
fn traces(ns: &Ns) -> Vec<String> {
    let mut text = ns.command("nft", &["--stateless", "list", "ruleset"], "");
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        text += &ns.command(program, &[], "");
    }
    text.lines().filter(|line| line.to_lowercase().contains("istio")).map(str::to_owned).collect()
}

fn cases() -> impl Iterator<Item = (Programs, Way)> {
    Programs::ALL.into_iter().flat_map(|by| Way::ALL.map(|way| (by, way)))
}

fn handed_over() {
    for (by, way) in cases() {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        capture(&world.pod, by);
        let mut proxied = connect_all(&world);
        assert_eq!(tags(&proxied), ["outbound", "outbound", "inbound", "inbound"], "{by:?}");
        let rules = [world.pod.ip("-4 rule"), world.pod.ip("-6 rule")];
        let routes = [world.pod.ip("-4 route show table 100"), world.pod.ip("-6 route show table 100")];
        take_over(&world, way);
        assert_alive(&mut proxied, &format!("{by:?} to {way:?}"));
        assert_eq!(
            tags(&connect_all(&world)),
            ["outbound", "outbound", "inbound", "inbound"],
            "{by:?} {way:?}"
        );
        assert_eq!(traces(&world.pod), [""; 0], "{by:?} to {way:?}");
        if by != Programs::Legacy && way == Way::Nftables {
            let tables = world.pod.command("nft", &["list", "tables"], "");
            assert_eq!(tables.trim(), "table inet sluice", "{by:?}: theirs are gone as a whole");
        }
        // The same ones, once.
        assert_eq!([world.pod.ip("-4 rule"), world.pod.ip("-6 rule")], rules, "{by:?} to {way:?}");
        assert_eq!(
            [world.pod.ip("-4 route show table 100"), world.pod.ip("-6 route show table 100")],
            routes,
            "{by:?} to {way:?}"
        );
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert!(seen.policy_rule && seen.local_route && seen.rules.is_some(), "{by:?} to {way:?}: {seen:?}");
        let again = remains(&world);
        assert!(again.is_empty() && again.left.is_empty(), "{by:?} to {way:?}: {again:?}");
    }
}

fn under_load() {
    for by in Programs::ALL {
        // Enough rounds that the moment of a commit meets many connections on their way.
        for round in 0..6 {
            let world = World::new();
            let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
            capture(&world.pod, by);
            let mut live = connect_all(&world);
            // ztunnel forwards nothing here: whatever opens a connection to the outside got past it.
            world.outside.nft(
                "table inet seen { chain c { type filter hook prerouting priority -300;\n\
                 tcp dport 443 tcp flags & (syn | ack) == syn counter\n }; }",
            );
            let (done, reached) = (AtomicBool::new(false), Mutex::new(Vec::new()));
            let begun = AtomicUsize::new(0);
            thread::scope(|scope| {
                for (out, _, address, port) in ROUTES {
                    let (from, address) = (if out { &world.pod } else { &world.outside }, to(address, port));
                    let (done, reached, begun) = (&done, &reached, &begun);
                    scope.spawn(move || {
                        from.run(|| {
                            let mut mine = Vec::new();
                            while !done.load(Ordering::SeqCst) {
                                mine.push(Dial::default().here(address).summary());
                                begun.fetch_add(1, Ordering::SeqCst);
                            }
                            // And some that certainly begin afterwards.
                            mine.extend((0..3).map(|_| Dial::default().here(address).summary()));
                            reached.lock().expect("lock").extend(mine);
                        });
                    });
                }
                // However this ends, the others end too.
                let _end = Ending(&done);
                eventually(|| (begun.load(Ordering::SeqCst) >= 40).then_some(()));
                take_over(&world, Way::Nftables);
            });
            let reached = reached.into_inner().expect("lock");
            let missed: Vec<_> = reached.iter().filter(|summary| !summary.contains("bound ")).collect();
            assert!(
                missed.is_empty(),
                "{by:?}, round {round}: {} of {}: {missed:?}",
                missed.len(),
                reached.len()
            );
            assert!(reached.len() >= 50, "{by:?}: only {} connections: no load", reached.len());
            assert_alive(&mut live, &format!("{by:?}, round {round}"));
            assert_eq!(traces(&world.pod), [""; 0], "{by:?}");
            let seen = world.outside.command("nft", &["list", "table", "inet", "seen"], "");
            assert!(seen.contains("counter packets 0 "), "{by:?}, round {round}: uncaptured: {seen}");
        }
    }
}

/// Ends what runs beside it.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The agent is killed when ours has come, and theirs, in ip_tables, has not gone or only in part.
fn finished_later() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        capture(&world.pod, Programs::Legacy);
        let mut proxied = connect_all(&world);
        world.step(way, Step::Enroll { plan: &plan(), live: false });
        assert_eq!(tags(&connect_all(&world)), ["outbound", "outbound", "inbound", "inbound"], "{way:?}");
        let whole = remains(&world);
        let first = lower(way.backend(), Step::Dismantle(&whole)).into_iter().take(1).collect::<Vec<_>>();
        world.kernel.run(&world.netns, &first).expect("the first of their tables");
        let rest = remains(&world);
        assert!(!rest.is_empty() && rest != whole, "{way:?}: {rest:?}");
        assert_alive(&mut proxied, &format!("{way:?}, both in force"));
        world.step(way, Step::Dismantle(&rest));
        assert_eq!(traces(&world.pod), [""; 0], "{way:?}");
        assert_alive(&mut proxied, &format!("{way:?}, only ours"));
        assert_eq!(tags(&connect_all(&world)), ["outbound", "outbound", "inbound", "inbound"], "{way:?}");
    }
}

/// Rules of others in the same tables, before and behind theirs, and with counters.
fn operators_own() {
    for by in [Programs::Legacy, Programs::Nft] {
        let kind = if by == Programs::Legacy { "legacy" } else { "nft" };
        let save = |world: &World, program: &str| {
            let text = world.pod.command(&format!("{program}-{kind}-save"), &["-c"], "");
            let own =
                |line: &&str| !line.starts_with('#') && !line.contains("ISTIO_") && !line.starts_with(':');
            text.lines().filter(own).map(str::to_owned).collect::<Vec<_>>()
        };
        let world = World::new();
        for program in ["iptables", "ip6tables"] {
            let script = "*nat\n:OWN - [0:0]\n-A PREROUTING -p tcp --dport 8085 -j OWN\n-A OWN -p tcp -j REDIRECT \
                          --to-ports 8080\nCOMMIT\n*mangle\n:ISTIO_OWN - [0:0]\n-A OUTPUT -p udp -j ISTIO_OWN\n-A \
                          ISTIO_OWN -j RETURN\nCOMMIT\n";
            world.pod.command(&format!("{program}-{kind}-restore"), &["--noflush"], script);
        }
        capture(&world.pod, by);
        for program in ["iptables", "ip6tables"] {
            let script = "*nat\n-A OUTPUT -d 192.0.2.1 -p tcp -j ACCEPT\nCOMMIT\n"
                .replace("192.0.2.1", if program == "iptables" { "192.0.2.1" } else { "2001:db8::77" });
            let script = script + "*raw\n-A PREROUTING -p udp --dport 7 -j DROP\nCOMMIT\n";
            world.pod.command(&format!("{program}-{kind}-restore"), &["--noflush"], &script);
        }
        let before = ["iptables", "ip6tables"].map(|program| save(&world, program));
        assert!(before[0].len() >= 10, "{before:?}");
        take_over(&world, Way::Nftables);
        let after = ["iptables", "ip6tables"].map(|program| save(&world, program));
        assert_eq!(after, before, "{by:?}");
        let left: Vec<String> =
            traces(&world.pod).into_iter().filter(|line| !line.contains("ISTIO_OWN")).collect();
        assert_eq!(left, [""; 0], "{by:?}");
        // What is left works.
        let _app = everybody(&world);
        let reached = Dial::default().to(&world.outside, to(POD4, 15008)).summary();
        assert_eq!(reached, "nobody", "held: ours is in force");
        assert_eq!(ask_udp(&world.pod, 0x539, to(POD4, 7)), None);
    }
}

/// A sidecar's rules have chains of the same names.
fn sidecar() {
    for by in [Programs::Legacy, Programs::Nft] {
        let kind = if by == Programs::Legacy { "legacy" } else { "nft" };
        let world = World::new();
        let script = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_REDIRECT - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - \
                      [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -j ISTIO_OUTPUT\n-A ISTIO_INBOUND -p tcp \
                      --dport 15008 -j RETURN\n-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n-A ISTIO_REDIRECT -p tcp \
                      -j REDIRECT --to-ports 15001\n-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n-A \
                      ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
        world.pod.command(&format!("iptables-{kind}-restore"), &["--noflush"], script);
        let before = traces(&world.pod);
        let found = remains(&world);
        assert!(found.is_empty(), "{by:?}: {found:?}");
        assert_eq!(found.left.len(), 1, "it is named: {found:?}");
        world.step(Way::Nftables, Step::Dismantle(&found));
        assert_eq!(traces(&world.pod), before, "{by:?}");
    }
}

/// Between the look and the commit somebody writes a rule into one of their chains.
fn out_of_date() {
    let world = World::new();
    capture(&world.pod, Programs::Nft);
    let stale = remains(&world);
    world.pod.command("iptables-nft", &["-t", "nat", "-A", "ISTIO_OUTPUT", "-p", "tcp", "-j", "RETURN"], "");
    let before = traces(&world.pod);
    let ops = lower(Way::Nftables.backend(), Step::TakeOver { plan: &plan(), remains: &stale });
    let error = world.kernel.apply(&world.netns, &ops).expect_err("refused");
    assert!(error.is_overtaken(), "{error}");
    assert_eq!(traces(&world.pod), before);
    assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, None, "nor has ours come");
    // What is not wholly theirs any more is left, and said.
    let now = remains(&world);
    assert!(now.left.iter().any(|left| left.contains("ISTIO_OUTPUT in ip nat")), "{now:?}");
    assert!(
        !now.chains.iter().any(|(table, chain)| table.to_string() == "ip nat" && chain == "ISTIO_OUTPUT")
    );
}

fn host() {
    for by in Programs::ALL {
        let host = Ns::new();
        host.command("ipset", &["create", "operators", "hash:ip"], "");
        host.command("iptables-nft", &["-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "RETURN"], "");
        exempt_probes(&host, by, &[POD4, POD6]);
        let (found, left) = host.run(|| {
            let kernel = LinuxKernel::new(Path::new("/proc/thread-self/ns/net")).expect("own namespace");
            let look = || recognise(&kernel.istio_on_host().expect("list"), Place::Host);
            let found = look();
            kernel.run_host(&lower(Way::Nftables.backend(), Step::Dismantle(&found))).expect("dismantle");
            (found, look())
        });
        let sets: BTreeSet<String> = match by {
            Programs::Native => BTreeSet::new(),
            _ => ["istio-inpod-probes-v4", "istio-inpod-probes-v6"].map(String::from).into(),
        };
        assert_eq!(found.ipsets, sets, "{by:?}");
        assert!(!found.is_empty() && found.left.is_empty(), "{by:?}: {found:?}");
        assert!(left.is_empty() && left.left.is_empty(), "{by:?}: {left:?}");
        assert_eq!(traces(&host), [""; 0], "{by:?}");
        assert_eq!(host.command("ipset", &["list", "-n"], "").trim(), "operators", "{by:?}");
        let rules = host.command("iptables-nft", &["-t", "nat", "-S", "POSTROUTING"], "");
        assert!(rules.contains("-p tcp -j RETURN"), "{by:?}: {rules}");
    }
}
