//! One table of packets, every backend, and what the plan says: each packet must go where the model's verdict sends it.

use crate::child;
use crate::fixture::{FAR4, FAR6, OUTSIDE4, OUTSIDE6, POD4, POD6, Way, World, eventually, plan};
use crate::listeners::{Dial, Listener, ZTUNNEL_MARK, Ztunnel, answer_udp, ask_udp};
use sluice_agent::kernel::HostProc;
use sluice_agent::kernel::linux::cgroup;
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::ids::Ifname;
use sluice_shared::plan::{
    Hold, Kind, Listeners, MarkGuard, Older, Packet, Path, ProbeDoor, Receiver, RedirectPlan, Stage, Verdict,
    verdict,
};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub const TESTS: &[(&str, fn())] = &[
    ("nftables_sends_every_packet_where_the_plan_says", || table(Way::ALL[0])),
    ("iptables_legacy_sends_every_packet_where_the_plan_says", || table(Way::ALL[1])),
    ("iptables_nft_sends_every_packet_where_the_plan_says", || table(Way::ALL[2])),
    ("with_nobody_listening_syns_are_held_or_refused", nobody_listens),
    ("a_forged_mark_does_not_pass_the_guard", guard),
];

/// Who listens in the pod besides ztunnel, and outside.
const APP_PORTS: [u16; 2] = [8080, 9090];
const OUTSIDE_PORTS: [u16; 5] = [53, 80, 443, 15001, 15008];

/// One packet that is sent, as the model sees it and as a socket does.
struct Case {
    path: Path,
    kind: Kind,
    source: IpAddr,
    to: SocketAddr,
    mark: u32,
    device: Option<&'static str>,
}

fn table(way: Way) {
    let world = World::new();
    let _ztunnel = Ztunnel::start(&world.pod);
    let _listeners = everybody_else(&world);
    let mut wrong = Vec::new();
    for (name, plan) in plans() {
        world.enroll(way, &plan);
        for case in cases() {
            // A socket that is bound to eth0 waits for nothing that comes over lo: such cases take their time, and
            // the plans differ little in them.
            if case.device.is_some() && !["everything", "older connections"].contains(&name) {
                continue;
            }
            let expected = verdict(&plan, &case.packet(Receiver::Ztunnel));
            let expected = case.expected(expected);
            let got = case.send(&world, &expected);
            if expected != got {
                wrong.push(format!("{name}: {case}: expected {expected:?}, got {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{way:?}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn nobody_listens() {
    for way in Way::ALL {
        let world = World::new();
        let _listeners = everybody_else(&world);
        for hold in [Hold::Drop, Hold::Reject] {
            let plan = RedirectPlan { hold, ..plan() };
            world.enroll(way, &plan);
            for (path, source, to) in [
                (Path::Out, POD4, (FAR4, 443)),
                (Path::Out, POD6, (FAR6, 443)),
                (incoming(), OUTSIDE4, (POD4, 8080)),
                (incoming(), OUTSIDE6, (POD6, 8080)),
                (incoming(), OUTSIDE4, (POD4, 15008)),
            ] {
                let (source, to) = (address(source), SocketAddr::from((address(to.0), to.1)));
                let case = Case { path, kind: Kind::OpeningSyn, source, to, mark: 0, device: None };
                let expected = case.expected(verdict(&plan, &case.packet(Receiver::Nobody)));
                assert_eq!(case.send(&world, &expected), expected, "{way:?}, {hold:?}: {case}");
            }
        }
    }
}

/// Sockets made in ztunnel's cgroup pass with the mark; the same mark from elsewhere does not, nor does no mark.
fn guard() {
    let tree = TestCgroups::new("guard");
    for way in Way::ALL {
        let world = World::new();
        let _ztunnel = Ztunnel::start(&world.pod);
        let _listeners = everybody_else(&world);
        let ztunnel =
            cgroup::at_path(&HostProc::default(), &tree.path("ztunnel")).expect("the cgroup is there");
        let guarded = MarkGuard::Cgroups(BTreeSet::from([ztunnel]));
        world.enroll(way, &RedirectPlan { guard: guarded, ..plan() });
        let to = SocketAddr::from((address(FAR4), 443));
        for (cgroup, mark, expected) in [
            ("ztunnel", ZTUNNEL_MARK, format!("outside {to}")),
            ("ztunnel/container", ZTUNNEL_MARK, format!("outside {to}")),
            ("ztunnel", 0, format!("outbound {to}")),
            ("forger", ZTUNNEL_MARK, format!("outbound {to}")),
        ] {
            let got = world.pod.run(|| child::dial(&tree.procs(cgroup), to, mark));
            assert_eq!(got, expected, "{way:?}: mark {mark:#x} from {cgroup}");
        }
        // An upgraded ztunnel passes as soon as its cgroup is named.
        let both = ["ztunnel", "forger"]
            .map(|name| cgroup::at_path(&HostProc::default(), &tree.path(name)).expect("there"));
        let plan = RedirectPlan { guard: MarkGuard::Cgroups(BTreeSet::from(both)), ..plan() };
        world.step(way, sluice_shared::lower::Step::Replace(&plan));
        let got = world.pod.run(|| child::dial(&tree.procs("forger"), to, ZTUNNEL_MARK));
        assert_eq!(got, format!("outside {to}"), "{way:?}");
    }
}

fn plans() -> Vec<(&'static str, RedirectPlan)> {
    let eth0 = Ifname::new("eth0").expect("a name");
    let addresses = [OUTSIDE4, OUTSIDE6].map(address).into();
    vec![
        ("everything", plan()),
        ("no DNS", RedirectPlan { capture_dns: false, ..plan() }),
        ("no inbound", RedirectPlan { capture_inbound: false, ..plan() }),
        ("no IPv6", RedirectPlan { ipv6: false, ..plan() }),
        ("older connections", RedirectPlan { stage: Stage::Redirect(Older::AnyMidStream), ..plan() }),
        ("leaving", RedirectPlan { stage: Stage::Drain, ..plan() }),
        ("probes by source nat", {
            let probe = ProbeDoor::Snat { v4: PROBE_SOURCE_V4, v6: PROBE_SOURCE_V6 };
            RedirectPlan { probe, ..plan() }
        }),
        ("probes by the node's address", {
            let probe = ProbeDoor::Source { addresses, ports: BTreeSet::from([8080]) };
            RedirectPlan { probe, ..plan() }
        }),
        ("a virtual interface", RedirectPlan { virtual_interfaces: vec![eth0], ..plan() }),
        ("nobody may use the mark", RedirectPlan { guard: MarkGuard::Cgroups(BTreeSet::new()), ..plan() }),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let families = [
        (POD4, OUTSIDE4, FAR4, "127.0.0.1", PROBE_SOURCE_V4.to_string()),
        (POD6, OUTSIDE6, FAR6, "::1", PROBE_SOURCE_V6.to_string()),
    ];
    for (pod, outside, far, loopback, probe) in families {
        let mut add = |path: Path, kind, source: &str, to: (&str, u16), mark, device| {
            let (source, to) = (address(source), SocketAddr::from((address(to.0), to.1)));
            cases.push(Case { path, kind, source, to, mark, device });
        };
        let mut tcp = |path: Path, source: &str, to, mark, device| {
            add(path, Kind::OpeningSyn, source, to, mark, device);
        };
        for (to, port) in [(outside, 80), (far, 443), (far, 53), (far, 15001), (far, 15008)] {
            for mark in [0, ZTUNNEL_MARK] {
                tcp(Path::Out, pod, (to, port), mark, None);
            }
        }
        // The marks of proxied connections are no way out.
        tcp(Path::Out, pod, (far, 443), 0x111, Some("eth0"));
        tcp(Path::Out, pod, (outside, 80), 0x111, Some("eth0"));
        // The low twelve bits count.
        tcp(Path::Out, pod, (far, 443), 0x4000_0539, None);
        for to in [loopback, pod] {
            tcp(Path::OverLo, to, (to, 8080), 0, None);
        }
        for from in [outside, far, &probe] {
            for port in [8080, 9090, 15001, 15008] {
                tcp(incoming(), from, (pod, port), 0, None);
            }
        }
        for mark in [0, ZTUNNEL_MARK] {
            add(Path::Out, Kind::Udp, pod, (far, 53), mark, None);
        }
    }
    cases
}

/// The application in the pod, and whatever is outside; the probe's source is an address outside too.
fn everybody_else(world: &World) -> Vec<Listener> {
    world.outside.ip(&format!("-4 addr add {PROBE_SOURCE_V4} dev lo"));
    world.outside.ip(&format!("-6 addr add {PROBE_SOURCE_V6} dev lo nodad"));
    for far in [FAR4, FAR6] {
        answer_udp(&world.outside, "outside", (address(far), 53).into());
    }
    for loopback in ["127.0.0.1", "::1"] {
        answer_udp(&world.pod, "dns", (address(loopback), 15053).into());
    }
    let apps = APP_PORTS.iter().map(|port| Listener::everywhere(&world.pod, "app", *port));
    let outside = OUTSIDE_PORTS.iter().map(|port| Listener::everywhere(&world.outside, "outside", *port));
    apps.chain(outside).collect()
}

impl Case {
    fn packet(&self, ztunnel: Receiver) -> Packet {
        Packet {
            path: self.path.clone(),
            kind: self.kind,
            source: (self.source, 40_000),
            destination: (self.to.ip(), self.to.port()),
            cookie: None,
            mark: self.mark,
            maker: BTreeSet::new(),
            listeners: Listeners { outbound: ztunnel, inbound: ztunnel, hbone: ztunnel, dns: ztunnel },
        }
    }

    /// Who answers when the packet goes there, and what it says.
    fn expected(&self, verdict: Verdict) -> String {
        let direct = match (&self.path, self.to.port()) {
            (Path::Out, _) => "outside",
            (_, 15008) => "hbone",
            (_, 15001) => "outbound",
            _ => "app",
        };
        let tag = match verdict {
            Verdict::Direct => direct,
            Verdict::ToOutbound => "outbound",
            Verdict::ToInbound => "inbound",
            Verdict::ToDns => "dns",
            Verdict::Held => return "nobody".into(),
            Verdict::Rejected => return "refused".into(),
        };
        match (self.kind, self.device) {
            (Kind::Udp, _) => tag.into(),
            // It is captured, but the answer comes over lo, which the socket does not listen to.
            (_, Some(_)) if tag == "outbound" => "nobody".into(),
            _ => format!("{tag} {}", self.to),
        }
    }

    fn send(&self, world: &World, expected: &str) -> String {
        let from = if matches!(self.path, Path::In(_)) { &world.outside } else { &world.pod };
        if self.kind == Kind::Udp {
            let answer = ask_udp(from, self.mark, self.to).unwrap_or_else(|| "nobody".into());
            // Who forges ztunnel's mark is in its conntrack zone: the query is captured, and the answer of no use.
            let forged = self.mark == ZTUNNEL_MARK && expected == "dns";
            return if forged { answer.split(',').next().unwrap_or_default().into() } else { answer };
        }
        let dial = Dial {
            mark: self.mark,
            device: self.device,
            source: matches!(self.path, Path::In(_)).then_some((self.source, 0).into()),
            // Held or not is seen in half a second; what must arrive has all the time that a loaded machine takes.
            timeout: Some(if expected == "nobody" {
                Duration::from_millis(500)
            } else {
                Duration::from_secs(20)
            }),
        };
        dial.to(from, self.to).summary()
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, kind, source, to, mark, device } = self;
        write!(f, "{path:?} {kind:?} {source} -> {to}, mark {mark:#x}, device {device:?}")
    }
}

/// Cgroups of one test's own, gone at the end.
pub struct TestCgroups(PathBuf);

impl TestCgroups {
    pub fn new(test: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let line =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("this test needs cgroup v2");
        let root = PathBuf::from(line.split(' ').nth(4).expect("a mount point"));
        let name = format!(
            "sluice-kernel-tests-{test}-{}",
            fs::read_link("/proc/self/ns/net").expect("netns").display()
        );
        let tree = Self(root.join(name.replace([':', '[', ']'], "")));
        for cgroup in ["ztunnel/container", "forger"] {
            fs::create_dir_all(tree.0.join(cgroup)).expect("make a cgroup");
        }
        tree
    }

    pub fn path(&self, cgroup: &str) -> String {
        format!("{}/{cgroup}", self.0.file_name().expect("a name").to_string_lossy())
    }

    pub fn directory(&self, cgroup: &str) -> PathBuf {
        self.0.join(cgroup)
    }

    pub fn procs(&self, cgroup: &str) -> PathBuf {
        self.directory(cgroup).join("cgroup.procs")
    }
}

impl Drop for TestCgroups {
    fn drop(&mut self) {
        for cgroup in ["ztunnel/container", "ztunnel", "forger", ""] {
            // A process that has ended leaves its cgroup a moment later.
            eventually(|| fs::remove_dir(self.0.join(cgroup)).ok());
        }
    }
}

fn incoming() -> Path {
    Path::In(Ifname::new("eth0").expect("a name"))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
