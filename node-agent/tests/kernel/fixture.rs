//! Namespaces to test in: a pod, and the world outside of it, joined by a veth pair.

use nix::sched::{CloneFlags, setns, unshare};
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_agent::kernel::linux::iptables::Variant;
use sluice_agent::kernel::{Kernel, Netns};
use sluice_shared::enroll::Overrides;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::plan::{self, Hold, MarkGuard, Older, ProbeDoor, RedirectConfig, RedirectPlan, Stage};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const POD4: &str = "10.7.0.2";
pub const POD6: &str = "fd07::2";
pub const OUTSIDE4: &str = "10.7.0.1";
pub const OUTSIDE6: &str = "fd07::1";
/// An address of the outside that is not on the pod's own link.
pub const FAR4: &str = "198.51.100.9";
pub const FAR6: &str = "2001:db8::9";

/// A network namespace that lives as long as this.
pub struct Ns(File);

/// A pod and its outside.
pub struct World {
    pub kernel: LinuxKernel,
    pub pod: Ns,
    pub outside: Ns,
    pub netns: Netns,
}

/// How rules get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Nftables,
    Iptables(Variant),
}

impl Ns {
    pub fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        };
        let ns = Self(thread::spawn(open).join().expect("make a namespace"));
        ns.ip("link set lo up");
        ns
    }

    pub fn fd(&self) -> OwnedFd {
        self.0.try_clone().expect("duplicate").into()
    }

    pub fn borrowed(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a thread of its own in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program there and gives what it prints; it must succeed.
    pub fn command(&self, program: &str, arguments: &[&str], input: &str) -> String {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program} (is it installed?): {error}"));
            child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
            let output = child.wait_with_output().expect("wait");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", &arguments.split(' ').collect::<Vec<_>>(), "")
    }

    pub fn nft(&self, script: &str) -> String {
        self.command("nft", &["-f", "-"], script)
    }

    /// Links that are made from now on have their own link-local address as soon as they are up, and not when nobody has
    /// claimed it for a second or two: it would come in the middle of a test.
    fn without_duplicate_detection(&self) {
        self.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).expect("accept_dad");
    }

    /// Everything that the agent could leave behind.
    pub fn snapshot(&self) -> String {
        let shown = [
            // Without counters: a stray packet is no trace.
            ("nft", "--stateless list ruleset"),
            ("ip", "-4 rule"),
            ("ip", "-6 rule"),
            ("ip", "-4 route show table all"),
            ("ip", "-6 route show table all"),
        ];
        shown
            .iter()
            .map(|(program, arguments)| {
                let text = self.command(program, &arguments.split(' ').collect::<Vec<_>>(), "");
                format!("# {program} {arguments}\n{text}")
            })
            .collect()
    }
}

impl World {
    /// A pod with addresses of both families.
    pub fn new() -> Self {
        let (pod, outside) = (Ns::new(), Ns::new());
        for ns in [&pod, &outside] {
            ns.without_duplicate_detection();
        }
        let peer = format!("/proc/{}/fd/{}", std::process::id(), outside.0.as_raw_fd());
        pod.ip(&format!("link add eth0 type veth peer name eth0 netns {peer}"));
        for (ns, v4, v6) in [(&pod, POD4, POD6), (&outside, OUTSIDE4, OUTSIDE6)] {
            ns.ip(&format!("addr add {v4}/24 dev eth0"));
            ns.ip(&format!("-6 addr add {v6}/64 dev eth0 nodad"));
            ns.ip("link set eth0 up");
        }
        outside.ip(&format!("-4 addr add {FAR4} dev lo"));
        // On lo too an address is tentative for a moment otherwise, and nothing can be bound to it.
        outside.ip(&format!("-6 addr add {FAR6} dev lo nodad"));
        pod.ip(&format!("-4 route add default via {OUTSIDE4}"));
        pod.ip(&format!("-6 route add default via {OUTSIDE6}"));
        // The link is up on both ends, and what the kernel adds by itself is there, a moment later.
        for (ns, other) in [(&pod, OUTSIDE6), (&outside, POD6)] {
            eventually(|| ns.ip(&format!("-6 route get {other}")).contains("eth0").then_some(()));
            eventually(|| ns.ip("-6 route show table local").contains("local fe80::").then_some(()));
        }
        let kernel = kernel();
        let netns = kernel.adopt(pod.fd()).expect("adopt the pod");
        Self { kernel, pod, outside, netns }
    }

    pub fn enroll(&self, way: Way, plan: &RedirectPlan) {
        self.step(way, Step::Enroll { plan, live: true });
    }

    pub fn step(&self, way: Way, step: Step<'_>) {
        if let Way::Iptables(variant) = way {
            self.kernel.use_iptables(variant);
        }
        self.kernel.run(&self.netns, &lower(way.backend(), step)).expect("carry out the step");
    }
}

impl Way {
    pub const ALL: [Self; 3] =
        [Self::Nftables, Self::Iptables(Variant::Legacy), Self::Iptables(Variant::Nft)];

    pub const fn backend(self) -> Backend {
        match self {
            Self::Nftables => Backend::Nftables,
            Self::Iptables(_) => Backend::Iptables,
        }
    }
}

/// Gives this mount namespace a `/run` of its own: iptables locks a file there, and must neither wait for nor delay
/// anybody on the machine. Without root there is nothing to be had, and every test says so.
pub fn private_run_directory() {
    let none: Option<&str> = None;
    let _ = nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), nix::mount::MsFlags::empty(), none);
}

/// The kernel as the agent sees it, with the tests' private outer namespace as host.
pub fn kernel() -> LinuxKernel {
    LinuxKernel::new(Path::new("/proc/self/ns/net")).expect("open the own namespace")
}

/// A plan that captures everything, with nothing older.
pub fn plan() -> RedirectPlan {
    let config = RedirectConfig { dns_capture: true, ipv6: true };
    let stage = Stage::Redirect(Older::None);
    plan::redirect(&Overrides::default(), &config, stage, ProbeDoor::Closed, MarkGuard::Off, Hold::Drop)
}

/// Waits for something that must come; 20 s is far beyond what a loaded machine needs.
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not come within 20 s");
        thread::sleep(Duration::from_millis(10));
    }
}
