//! The probe strategy `cookie` on real packets: who gets past the redirect, and who does not.
//!
//! The outside plays the host: its kubelet and its other processes are processes of their own in cgroups of their own.

use crate::child;
use crate::fixture::{Ns, OUTSIDE4, OUTSIDE6, POD4, POD6, Way, World, eventually, kernel, plan};
use crate::listeners::{Dial, Listener, Ztunnel};
use crate::packets::TestCgroups;
use sluice_agent::kernel::linux::{LinuxKernel, cgroup};
use sluice_agent::kernel::{Attached, HostProc, Kernel};
use sluice_shared::cookie::Cookie;
use sluice_shared::lower::Step;
use sluice_shared::plan::{CgroupRef, ProbeDoor, RedirectPlan};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

pub const TESTS: &[(&str, fn())] = &[
    ("the_kubelets_probes_pass_and_nobody_else_does", who_passes),
    ("what_was_masqueraded_and_other_pods_do_not_pass", forwarded),
    ("a_replayed_or_guessed_cookie_does_not_pass", replayed),
    ("one_cookie_follows_another_under_probes", rotation),
    ("cookies_outlive_the_agent_and_leave_with_the_strategy", succession),
    ("a_kubelet_in_a_new_cgroup_goes_on", restarted_kubelet),
    ("with_the_charts_capabilities_it_works_and_without_them_it_says_why", capabilities),
];

const PROBED: u16 = 8080;
const UNDECLARED: u16 = 9090;
/// The pod's two addresses.
const PODS: [&str; 2] = [POD4, POD6];

/// A captured pod, ztunnel and an application in it, and a host with a kubelet.
struct Node {
    world: World,
    tree: TestCgroups,
    _ztunnel: Ztunnel,
    _app: [Listener; 2],
}

impl Node {
    fn new(test: &str) -> Self {
        let world = World::new();
        let tree = TestCgroups::new(&format!("cookie-{test}"));
        let ztunnel = Ztunnel::start(&world.pod);
        let app = [PROBED, UNDECLARED].map(|port| Listener::everywhere(&world.pod, "app", port));
        Self { world, tree, _ztunnel: ztunnel, _app: app }
    }

    /// The cgroup that plays the kubelet's.
    fn kubelet(&self) -> CgroupRef {
        cgroup::at_path(&HostProc::default(), &self.tree.path("ztunnel")).expect("the cgroup is there")
    }

    /// Captures the pod, with a door for these cookies.
    fn capture(&self, cookies: &[Cookie]) {
        self.world.enroll(Way::Nftables, &with_door(cookies));
    }

    fn give(&self, cookie: Option<Cookie>) {
        give(&self.world.kernel, cookie);
    }

    /// Whom a process of the host in this cgroup reaches.
    fn dial(&self, cgroup: &str, ip: &str, port: u16) -> String {
        let to = SocketAddr::new(address(ip), port);
        let said = self.world.outside.run(|| child::dial(&self.tree.procs(cgroup), to, 0));
        said.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Whom the kubelet's probes reach, in both families.
    fn probe(&self) -> [String; 2] {
        PODS.map(|ip| self.dial("ztunnel", ip, PROBED))
    }
}

fn with_door(cookies: &[Cookie]) -> RedirectPlan {
    let probe = ProbeDoor::Cookie {
        cookies: cookies.iter().copied().collect(),
        addresses: [OUTSIDE4, OUTSIDE6].map(address).into(),
        ports: [PROBED].into(),
    };
    RedirectPlan { probe, ..plan() }
}

fn give(kernel: &LinuxKernel, cookie: Option<Cookie>) {
    for ip in PODS {
        kernel.give_cookie(address(ip), cookie).expect("the map takes it");
    }
}

fn who_passes() {
    let node = Node::new("who");
    let kernel = &node.world.kernel;
    let [own, others] = [(); 2].map(|()| kernel.new_cookie().expect("random bytes"));
    assert_ne!(own, others);
    node.capture(&[own]);
    assert_eq!(node.probe(), ["inbound", "inbound"], "nothing is attached yet");
    assert_eq!(kernel.attach_cookies(&node.kubelet()).expect("attach"), Attached::Anew);
    assert_eq!(kernel.attach_cookies(&node.kubelet()).expect("attach"), Attached::AsItWas);
    assert_eq!(node.probe(), ["inbound", "inbound"], "the pod has no cookie yet");
    node.give(Some(own));
    assert_eq!(node.probe(), ["app", "app"]);
    for ip in PODS {
        assert_eq!(node.dial("ztunnel/container", ip, PROBED), "app", "below the kubelet's cgroup");
        assert_eq!(node.dial("ztunnel", ip, UNDECLARED), "inbound", "a port that is not declared");
        assert_eq!(node.dial("forger", ip, PROBED), "inbound", "another process of the host, also root's");
    }
    node.give(Some(others));
    assert_eq!(node.probe(), ["inbound", "inbound"], "another pod's cookie");
    node.give(None);
    assert_eq!(node.probe(), ["inbound", "inbound"], "taken away");
    assert!(kernel.detach_cookies(&node.kubelet()).expect("detach"));
    assert!(!kernel.detach_cookies(&node.kubelet()).expect("nothing is left to detach"));
}

/// A client behind the host, whose connections the host forwards: by a node port, translated and masqueraded to the host's
/// own address, and as another pod's, as they are.
fn forwarded() {
    const CLIENT4: &str = "10.8.0.2";
    const NODE4: &str = "10.8.0.1";
    let node = Node::new("forwarded");
    let (kernel, outside) = (&node.world.kernel, &node.world.outside);
    let cookie = kernel.new_cookie().expect("random bytes");
    node.capture(&[cookie]);
    kernel.attach_cookies(&node.kubelet()).expect("attach");
    node.give(Some(cookie));
    let client = Ns::new();
    let fd = client.fd();
    let peer = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    outside.ip(&format!("link add eth1 type veth peer name eth0 netns {peer}"));
    for (ns, device, ip) in [(outside, "eth1", NODE4), (&client, "eth0", CLIENT4)] {
        ns.ip(&format!("addr add {ip}/24 dev {device}"));
        ns.ip(&format!("link set {device} up"));
    }
    client.ip(&format!("route add default via {NODE4}"));
    outside.command("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], "");
    outside.nft(&format!(
        "table ip nodeport {{
            chain pre {{ type nat hook prerouting priority -100; tcp dport 30080 dnat to {POD4}:{PROBED}; }}
            chain post {{ type nat hook postrouting priority 100; ct status dnat masquerade; }}
        }}"
    ));
    for (to, from, who) in
        [((NODE4, 30080), OUTSIDE4, "by a node port"), ((POD4, PROBED), CLIENT4, "as a pod")]
    {
        let reached = Dial::default().to(&client, SocketAddr::new(address(to.0), to.1));
        let line = match reached {
            crate::listeners::Reached::Line { line, .. } => line,
            other => panic!("{who}: {other:?}"),
        };
        assert_eq!(line, format!("inbound {POD4}:{PROBED} from {from}"), "{who}");
        // From the kubelet's own cgroup, but in another pod's namespace and so from its address: it has the cookie.
        let to = SocketAddr::new(address(to.0), to.1);
        let said = client.run(|| child::dial(&node.tree.procs("forger"), to, 0));
        assert!(said.starts_with("inbound"), "{who}: {said}");
    }
    // Whoever has the right cookie, but comes from a pod's address, as one that replays what it has seen would.
    let stolen =
        client.run(|| child::dial(&node.tree.procs("ztunnel"), SocketAddr::new(address(POD4), PROBED), 0));
    assert!(stolen.starts_with("inbound"), "the right cookie from another pod: {stolen}");
    assert_eq!(node.probe(), ["app", "app"], "the kubelet's own");
}

fn replayed() {
    let node = Node::new("replayed");
    let kernel = &node.world.kernel;
    let [seen, current] = [(); 2].map(|()| kernel.new_cookie().expect("random bytes"));
    node.capture(&[seen]);
    kernel.attach_cookies(&node.kubelet()).expect("attach");
    node.give(Some(seen));
    assert_eq!(node.probe(), ["app", "app"]);
    node.world.step(Way::Nftables, Step::Replace(&with_door(&[current])));
    assert_eq!(node.probe(), ["inbound", "inbound"], "one that was seen, after it was replaced");
    for bit in 0..64 {
        let mut option = current.option();
        option[4 + bit / 8] ^= 1 << (bit % 8);
        let guessed = Cookie::from_option(&option).expect("a cookie");
        kernel.give_cookie(address(POD4), Some(guessed)).expect("the map takes it");
        assert_eq!(node.dial("ztunnel", POD4, PROBED), "inbound", "all but bit {bit} guessed");
    }
    node.give(Some(current));
    assert_eq!(node.probe(), ["app", "app"]);
}

fn rotation() {
    let node = Node::new("rotation");
    let kernel = &node.world.kernel;
    let mut current = kernel.new_cookie().expect("random bytes");
    node.capture(&[current]);
    kernel.attach_cookies(&node.kubelet()).expect("attach");
    node.give(Some(current));
    for _ in 0..3 {
        let next = kernel.new_cookie().expect("random bytes");
        node.world.step(Way::Nftables, Step::Replace(&with_door(&[current, next])));
        assert_eq!(node.probe(), ["app", "app"], "both are accepted, the old one is carried");
        node.give(Some(next));
        assert_eq!(node.probe(), ["app", "app"], "both are accepted, the new one is carried");
        node.world.step(Way::Nftables, Step::Replace(&with_door(&[next])));
        assert_eq!(node.probe(), ["app", "app"], "the new one alone");
        current = next;
    }
}

/// An agent ends without a word; the next one finds program and cookies, and probes pass all the while.
fn succession() {
    let node = Node::new("succession");
    let cookie = {
        let former = kernel();
        let cookie = former.new_cookie().expect("random bytes");
        node.capture(&[cookie]);
        former.attach_cookies(&node.kubelet()).expect("attach");
        give(&former, Some(cookie));
        cookie
    };
    assert_eq!(node.probe(), ["app", "app"], "no agent runs");
    let later = kernel();
    assert_eq!(later.attach_cookies(&node.kubelet()).expect("attach"), Attached::Anew);
    let given = PODS.map(|ip| (address(ip), cookie)).into();
    assert_eq!(later.cookies().expect("list"), given);
    assert_eq!(node.probe(), ["app", "app"], "taken over");
    give(&later, None);
    assert_eq!(node.probe(), ["inbound", "inbound"], "it is the one map that the one program reads");
    give(&later, Some(cookie));
    // One with another strategy.
    let last = kernel();
    assert!(last.detach_cookies(&node.kubelet()).expect("detach"));
    assert_eq!(node.probe(), ["inbound", "inbound"]);
}

fn restarted_kubelet() {
    let node = Node::new("restarted");
    let kernel = &node.world.kernel;
    let cookie = kernel.new_cookie().expect("random bytes");
    node.capture(&[cookie]);
    let before = node.kubelet();
    kernel.attach_cookies(&before).expect("attach");
    node.give(Some(cookie));
    assert_eq!(node.probe(), ["app", "app"]);
    for directory in ["ztunnel/container", "ztunnel"] {
        eventually(|| std::fs::remove_dir(node.tree.directory(directory)).ok());
    }
    std::fs::create_dir_all(node.tree.directory("ztunnel/container")).expect("make it again");
    let after = node.kubelet();
    assert_ne!(before.id, after.id);
    assert_eq!(node.probe(), ["inbound", "inbound"], "the new cgroup has no program");
    assert!(kernel.attach_cookies(&before).is_err(), "its directory is another cgroup's now");
    assert_eq!(kernel.attach_cookies(&after).expect("attach"), Attached::Anew);
    assert_eq!(node.probe(), ["app", "app"], "with the cookie that it had");
    // To another cgroup that lives beside it: the one that is left has no program any more.
    let elsewhere = cgroup::at_path(&HostProc::default(), &node.tree.path("forger")).expect("there");
    kernel.attach_cookies(&elsewhere).expect("attach");
    assert_eq!(node.probe(), ["inbound", "inbound"]);
    assert_eq!(node.dial("forger", POD4, PROBED), "app");
}

fn capabilities() {
    let tree = TestCgroups::new("cookie-capabilities");
    let path = tree.path("ztunnel");
    assert_eq!(child::cookies_with("net_admin,sys_admin,sys_ptrace,net_broadcast", &path), "attached");
    let said = child::cookies_with("net_admin,sys_ptrace,net_broadcast", &path);
    assert!(said.contains("CAP_SYS_ADMIN") && said.contains("EPERM"), "without sys_admin: {said}");
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
