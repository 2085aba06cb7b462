//! What the drift watch hears.

use crate::child;
use crate::fixture::{Ns, Way, World, kernel, plan};
use sluice_agent::kernel::Kernel;
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_agent::kernel::linux::watch::{Hint, Watch};
use sluice_shared::lower::Step;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

pub const TESTS: &[(&str, fn())] = &[
    ("every_way_of_drifting_is_heard_at_once", heard),
    ("only_followed_namespaces_are_heard", only_followed),
    ("the_hosts_rules_are_heard", host),
    ("a_host_that_is_not_the_agents_own_namespace_is_heard", other_host),
    ("lost_notifications_mean_everything", lost),
    ("without_the_capability_the_watch_says_that_it_is_deaf", deaf),
];

/// Drift must be seen within a second; it takes a quarter of a millisecond. Five allow for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

async fn next(watch: &mut Watch, within: Duration) -> Option<Hint> {
    tokio::time::timeout(within, watch.hints.recv()).await.ok().flatten()
}

/// Takes what is still on its way.
async fn settle(watch: &mut Watch) {
    while next(watch, Duration::from_millis(200)).await.is_some() {}
}

fn heard() {
    on_runtime(async {
        for way in Way::ALL {
            let world = World::new();
            let mut watch = Watch::start(&world.kernel).expect("start");
            assert!(watch.hearing.hears, "{:?}", watch.hearing);
            world.enroll(way, &plan());
            watch.handle.follow(&world.netns).expect("follow");
            settle(&mut watch).await;
            let mut drifts = vec!["ip -4 rule del pref 32764", "ip -6 rule del pref 32764"];
            drifts.extend(["ip -4 route flush table 100", "ip -6 route flush table 100"]);
            match way {
                Way::Nftables => drifts.extend(["nft delete table inet sluice", "nft add table ip others"]),
                Way::Iptables(variant) if variant.to_string().contains("nft") => {
                    drifts.push("iptables-nft -t nat -F SLUICE_OUTPUT");
                }
                // ip_tables tells nobody.
                Way::Iptables(_) => {}
            }
            drifts.push("ip link set lo down");
            world.step(way, Step::Repair(&plan()));
            for drift in drifts {
                settle(&mut watch).await;
                // One that took a route away with another needs it back to be taken away.
                if drift.ends_with("down") {
                    world.step(way, Step::Repair(&plan()));
                    settle(&mut watch).await;
                }
                let (program, arguments) = drift.split_once(' ').expect("a command");
                world.pod.command(program, &arguments.split(' ').collect::<Vec<_>>(), "");
                let begun = Instant::now();
                let hint = next(&mut watch, AT_ONCE).await;
                assert_eq!(hint, Some(Hint::Pod(world.netns.id())), "{way:?}: {drift}");
                assert!(begun.elapsed() < AT_ONCE);
            }
        }
    });
}

fn only_followed() {
    on_runtime(async {
        let (one, other) = (World::new(), World::new());
        let mut watch = Watch::start(&one.kernel).expect("start");
        for world in [&one, &other] {
            watch.handle.follow(&world.netns).expect("follow");
        }
        // Twice is once.
        watch.handle.follow(&one.netns).expect("follow again");
        watch.handle.unfollow(other.netns.id());
        other.pod.nft("add table inet x");
        // A route in a table that is not ours.
        one.pod.ip("route add 192.0.2.0/24 dev lo");
        assert_eq!(next(&mut watch, Duration::from_millis(500)).await, None);
        one.pod.nft("add table inet x");
        assert_eq!(next(&mut watch, AT_ONCE).await, Some(Hint::Pod(one.netns.id())));
        watch.handle.follow(&other.netns).expect("follow it again");
        other.pod.nft("delete table inet x");
        assert_eq!(next(&mut watch, AT_ONCE).await, Some(Hint::Pod(other.netns.id())));
    });
}

fn host() {
    // The agent with hostNetwork: its own namespace is the host's. All tests share theirs, so this one takes another.
    let host = Ns::new();
    let heard = host.run(|| {
        on_runtime(async {
            let kernel = LinuxKernel::new(Path::new("/proc/thread-self/ns/net")).expect("own namespace");
            let mut watch = Watch::start(&kernel).expect("start");
            host.nft("add table inet sluice");
            next(&mut watch, AT_ONCE).await
        })
    });
    assert_eq!(heard, Some(Hint::Host));
}

fn other_host() {
    on_runtime(async {
        let host = Ns::new();
        let fd = host.fd();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let kernel = LinuxKernel::new(Path::new(&path)).expect("open the host");
        assert!(kernel.adopt(host.fd()).is_err(), "the host's namespace was adopted as a pod's");
        let mut watch = Watch::start(&kernel).expect("start");
        host.nft("add table inet sluice");
        assert_eq!(next(&mut watch, AT_ONCE).await, Some(Hint::Host));
        // Its routing is none of our business.
        host.ip("rule add fwmark 0x1 lookup 100 pref 100");
        assert_eq!(next(&mut watch, Duration::from_millis(500)).await, None);
    });
}

fn lost() {
    on_runtime(async {
        let world = World::new();
        let mut watch = Watch::start(&world.kernel).expect("start");
        watch.handle.follow(&world.netns).expect("follow");
        // Nobody reads while this thread is busy: the socket's 8 MiB overflow. One route that comes and goes is enough
        // for that; thousands that stay would take the kernel half a minute to clean up.
        let turn = "route add 192.0.2.1 dev lo table 7\nroute del 192.0.2.1 dev lo table 7\n";
        world.pod.command("ip", &["-batch", "-"], &turn.repeat(30_000));
        let mut hints = Vec::new();
        while let Some(hint) = next(&mut watch, Duration::from_millis(500)).await {
            hints.push(hint);
        }
        assert!(hints.contains(&Hint::Everything), "{hints:?}");
        // It goes on hearing.
        world.pod.nft("add table inet y");
        assert_eq!(next(&mut watch, AT_ONCE).await, Some(Hint::Pod(world.netns.id())));
    });
}

fn deaf() {
    let said = child::hears_without("net_broadcast");
    assert!(said.contains("CAP_NET_BROADCAST") && !said.contains("hears: true"), "{said}");
    // The same, with the capability.
    let hearing = on_runtime(async { Watch::start(&kernel()).expect("start").hearing });
    assert!(hearing.hears, "{hearing:?}");
}
