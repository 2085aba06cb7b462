//! Pods with connections: none is a casualty, and none is a way around.

use crate::fixture::{FAR4, FAR6, OUTSIDE4, OUTSIDE6, POD4, POD6, Way, World, plan};
use crate::listeners::{Dial, Listener, Reached, Ztunnel, is_alive};
use sluice_agent::kernel::Kernel;
use sluice_shared::contract::MARK_ZTUNNEL;
use sluice_shared::lower::Step;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{Flow, Hold, Older, RedirectPlan, Stage};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

pub const TESTS: &[(&str, fn())] = &[
    ("connections_from_before_enrolment_live_on", older_live_on),
    ("proxied_connections_survive_a_drain", drain),
    ("a_stale_entry_does_not_let_a_reused_tuple_bypass", reused_tuple),
    ("a_held_connection_succeeds_when_the_listener_comes", held_then_served),
    ("replacing_under_load_fails_and_misses_nothing", replace_under_load),
    ("foreign_translation_survives_the_flush", foreign_nat),
    ("a_repair_forgets_what_slipped_past", repair_forgets),
];

const TCP_ESTABLISHED: u8 = 1;
/// In and out, both families.
pub const ROUTES: [(bool, &str, &str, u16); 4] = [
    (true, POD4, FAR4, 443),
    (true, POD6, FAR6, 443),
    (false, OUTSIDE4, POD4, 8080),
    (false, OUTSIDE6, POD6, 8080),
];

pub fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::from((address.parse::<IpAddr>().expect("an address"), port))
}

pub fn everybody(world: &World) -> Vec<Listener> {
    vec![Listener::everywhere(&world.pod, "app", 8080), Listener::everywhere(&world.outside, "outside", 443)]
}

/// One connection each way and family, with who answered.
pub fn connect_all(world: &World) -> Vec<(String, TcpStream)> {
    let dialled = ROUTES.iter().map(|(out, _, address, port)| {
        let from = if *out { &world.pod } else { &world.outside };
        match Dial::default().to(from, to(address, *port)) {
            Reached::Line { line, stream } => (line.split(' ').next().expect("a tag").to_owned(), stream),
            other => panic!("{address}:{port}: {}", other.summary()),
        }
    });
    dialled.collect()
}

pub fn tags(connections: &[(String, TcpStream)]) -> Vec<&str> {
    connections.iter().map(|(tag, _)| tag.as_str()).collect()
}

pub fn assert_alive(connections: &mut [(String, TcpStream)], when: &str) {
    for (index, (tag, stream)) in connections.iter_mut().enumerate() {
        assert!(is_alive(stream), "{when}: connection {index} ({tag}) is dead");
    }
}

fn older_live_on() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        let mut older = connect_all(&world);
        assert_eq!(tags(&older), ["outside", "outside", "app", "app"]);
        world.enroll(way, &RedirectPlan { stage: Stage::Redirect(Older::AnyMidStream), ..plan() });
        assert_alive(&mut older, &format!("{way:?}, at the commit"));
        // Then only those that were there.
        let sockets = world.kernel.sockets(&world.netns).expect("sockets");
        let flows: BTreeSet<Flow> = sockets
            .iter()
            .filter(|socket| socket.state == TCP_ESTABLISHED && !MARK_ZTUNNEL.matches(socket.mark))
            .map(|socket| socket.flow)
            .collect();
        assert_eq!(flows.len(), 4, "{flows:?}");
        world.step(
            way,
            Step::Replace(&RedirectPlan { stage: Stage::Redirect(Older::Kept(flows.clone())), ..plan() }),
        );
        assert_alive(&mut older, &format!("{way:?}, narrowed"));
        assert_eq!(world.kernel.kept_flows(&world.netns).expect("read back"), flows, "{way:?}");
        let mut newer = connect_all(&world);
        assert_eq!(tags(&newer), ["outbound", "outbound", "inbound", "inbound"], "{way:?}");
        assert_alive(&mut newer, &format!("{way:?}, captured"));
        assert_alive(&mut older, &format!("{way:?}, beside the captured ones"));
    }
}

fn drain() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        world.enroll(way, &plan());
        let mut proxied = connect_all(&world);
        assert_eq!(tags(&proxied), ["outbound", "outbound", "inbound", "inbound"]);
        world.step(way, Step::Replace(&RedirectPlan { stage: Stage::Drain, ..plan() }));
        assert_alive(&mut proxied, &format!("{way:?}, draining"));
        let direct = connect_all(&world);
        assert_eq!(tags(&direct), ["outside", "outside", "app", "app"], "{way:?}");
    }
}

fn reused_tuple() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        for (source, far) in [(POD4, FAR4), (POD6, FAR6)] {
            // A direct connection that conntrack knows, and whose end it does not see.
            world.enroll(way, &RedirectPlan { stage: Stage::Drain, ..plan() });
            let dial = Dial { source: Some(to(source, 40_001)), ..Dial::default() };
            let Reached::Line { line, stream } = dial.to(&world.pod, to(far, 443)) else { panic!("{far}") };
            assert!(line.starts_with("outside"), "{way:?}: {line}");
            remove_rules_by_hand(&world, way);
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)
                .expect("linger");
            drop(stream);
            world.enroll(way, &plan());
            let again = dial.to(&world.pod, to(far, 443)).summary();
            assert_eq!(again, format!("outbound {}", to(far, 443)), "{way:?}");
        }
    }
}

/// Takes the rules away behind the agent's back, so that conntrack keeps its entries and sees nothing more.
fn remove_rules_by_hand(world: &World, way: Way) {
    match way {
        Way::Nftables => drop(world.pod.nft("delete table inet sluice")),
        Way::Iptables(_) => {
            let plan = world.kernel.run(&world.netns, &[KernelOp::ClearIptables]);
            plan.expect("clear");
        }
    }
}

fn held_then_served() {
    for way in Way::ALL {
        let world = World::new();
        let _listeners = everybody(&world);
        world.enroll(way, &plan());
        thread::scope(|scope| {
            let dials: Vec<_> = ROUTES
                .iter()
                .map(|(out, _, address, port)| {
                    let (from, address) =
                        (if *out { &world.pod } else { &world.outside }, to(address, *port));
                    let dial = Dial { timeout: Some(Duration::from_secs(20)), ..Dial::default() };
                    scope.spawn(move || dial.to(from, address).summary())
                })
                .collect();
            thread::sleep(Duration::from_millis(500));
            assert!(dials.iter().all(|dial| !dial.is_finished()), "{way:?}: not held");
            let _ztunnel = Ztunnel::start(&world.pod);
            for dial in dials {
                let reached = dial.join().expect("dial");
                assert!(reached.contains("bound "), "{way:?}: {reached}");
            }
        });
    }
}

fn replace_under_load() {
    for (way, replacements) in [(Way::ALL[0], 300), (Way::ALL[1], 20), (Way::ALL[2], 20)] {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        let plans = [plan(), RedirectPlan { hold: Hold::Reject, capture_dns: false, ..plan() }];
        world.enroll(way, &plans[0]);
        let mut live = connect_all(&world);
        let (done, reached) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for (out, _, address, port) in ROUTES {
                let (from, address) = (if out { &world.pod } else { &world.outside }, to(address, port));
                let (done, reached) = (&done, &reached);
                scope.spawn(move || {
                    // One thread stays there for all of its connections.
                    from.run(|| {
                        let mut mine = Vec::new();
                        while !done.load(Ordering::SeqCst) {
                            mine.push(Dial::default().here(address).summary());
                        }
                        reached.lock().expect("lock").extend(mine);
                    });
                });
            }
            for turn in 0..replacements {
                world.step(way, Step::Replace(&plans[turn % 2]));
            }
            done.store(true, Ordering::SeqCst);
        });
        let reached = reached.into_inner().expect("lock");
        let missed: Vec<_> = reached.iter().filter(|summary| !summary.contains("bound ")).collect();
        assert!(missed.is_empty(), "{way:?}: {} of {} missed: {missed:?}", missed.len(), reached.len());
        assert!(reached.len() >= 40, "{way:?}: only {} connections: no load", reached.len());
        assert_alive(&mut live, &format!("{way:?}, after {replacements} replacements"));
    }
}

fn foreign_nat() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        world.pod.nft(
            "table ip theirs { chain c { type nat hook prerouting priority -90; tcp dport 8081 redirect to :8080; }; }",
        );
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert_eq!(seen.foreign_nat, ["ip theirs"]);
        let Reached::Line { line, stream } = Dial::default().to(&world.outside, to(POD4, 8081)) else {
            panic!("their redirect does not work")
        };
        assert!(line.starts_with("app "), "{line}");
        let mut theirs = [("app".to_owned(), stream)];
        // From now on only conntrack knows how to translate it. A chain without any rule would not keep conntrack on.
        world.pod.nft("flush chain ip theirs c; add rule ip theirs c tcp dport 9999 redirect to :8080");
        world.enroll(way, &RedirectPlan { stage: Stage::Redirect(Older::AnyMidStream), ..plan() });
        assert_alive(&mut theirs, &format!("{way:?}, enrolled"));
        let seen = world.kernel.observe(&world.netns).expect("observe");
        assert_eq!(seen.foreign_nat, ["ip theirs"], "{way:?}: ours is not foreign");
        world.step(way, Step::Remove);
        assert_alive(&mut theirs, &format!("{way:?}, removed"));
    }
}

fn repair_forgets() {
    for way in Way::ALL {
        let world = World::new();
        let (_listeners, _ztunnel) = (everybody(&world), Ztunnel::start(&world.pod));
        world.enroll(way, &plan());
        let mut proxied = connect_all(&world);
        // For a moment nothing is redirected, but conntrack works: entries arise that would stay.
        world.step(way, Step::Replace(&RedirectPlan { stage: Stage::Drain, ..plan() }));
        let _direct = connect_all(&world);
        world.step(way, Step::Repair(&plan()));
        let left = world.pod.command("conntrack", &["-L", "-p", "tcp"], "");
        let direct = left.lines().filter(|line| line.contains("ESTABLISHED") && line.contains("dport=443"));
        for line in direct {
            assert!(line.contains("sport=15001"), "{way:?}: still known: {line}");
        }
        assert_alive(&mut proxied, &format!("{way:?}, repaired"));
    }
}
