//! Two pods and an outside world, joined by a bridge in the outside's namespace, and the stand-in to serve them.

use crate::agent::Agent;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace.
pub struct Netns(pub OwnedFd);

/// Who is on the bridge.
pub struct Lab {
    pub outside: Netns,
    pub a: Netns,
    pub b: Netns,
    pub dir: TempDir,
}

/// A running stand-in.
pub struct Standin {
    child: Child,
    reader: Option<JoinHandle<()>>,
    events: Arc<(Mutex<Vec<Value>>, Condvar)>,
}

impl Netns {
    /// A new, empty one.
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
            Self(File::open("/proc/thread-self/ns/net").expect("the namespace").into())
        };
        std::thread::spawn(make).join().expect("a namespace")
    }

    /// Does `work` within.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            };
            match scope.spawn(enter).join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a command line within.
    pub fn sh(&self, script: &str) {
        self.inside(|| {
            let done = Command::new("sh").args(["-ec", script]).output().expect("sh");
            assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        });
    }

    /// A path that other programs can open.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn inode(&self) -> u64 {
        File::from(self.0.try_clone().expect("dup")).metadata().expect("fstat").ino()
    }
}

impl Lab {
    /// Addresses 10.244.0.{1,2,3} and fd00::{1,2,3} for the outside, a and b; both pods redirected.
    pub fn new() -> Self {
        let lab = Self::unredirected();
        for pod in [&lab.a, &lab.b] {
            redirect(pod);
        }
        lab
    }

    /// The same without redirection.
    pub fn unredirected() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let lab = Self { outside: Netns::new(), a: Netns::new(), b: Netns::new(), dir };
        lab.outside.sh("ip link set lo up; ip link add br0 type bridge; ip link set br0 up; \
                        ip addr add 10.244.0.1/24 dev br0; ip addr add fd00::1/64 dev br0 nodad");
        for (n, pod) in [(2, &lab.a), (3, &lab.b)] {
            lab.outside.sh(&format!(
                "ip link add pod{n} type veth peer name eth0 netns {}; ip link set pod{n} master br0 up",
                pod.path()
            ));
            pod.sh(&format!(
                "ip link set lo up; ip link set eth0 up; ip addr add 10.244.0.{n}/24 dev eth0; \
                 ip addr add fd00::{n}/64 dev eth0 nodad; ip route add default via 10.244.0.1; \
                 ip -6 route add default via fd00::1"
            ));
        }
        lab.tell_of(WORKLOADS);
        lab
    }

    pub fn workloads(&self) -> PathBuf {
        self.dir.path().join("workloads.yaml")
    }

    /// Changes what istiod would say, at once.
    pub fn tell_of(&self, workloads: &str) {
        let next = self.dir.path().join("next.yaml");
        std::fs::write(&next, workloads).expect("the workloads file");
        std::fs::rename(next, self.workloads()).expect("rename");
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("z.sock")
    }

    /// Listens as the node agent.
    pub fn agent(&self) -> Agent {
        Agent::listen(&self.socket())
    }

    /// Starts the stand-in in the outside's namespace.
    pub fn standin(&self, more: &[&str]) -> Standin {
        let mut child = self.outside.inside(|| {
            Command::new(env!("CARGO_BIN_EXE_ztunnel-standin"))
                .arg("--zds")
                .arg(self.socket())
                .arg("--workloads")
                .arg(self.workloads())
                .args(["--node", "node1"])
                .args(more)
                .stdout(Stdio::piped())
                .spawn()
                .expect("the stand-in")
        });
        let events: Arc<(Mutex<Vec<Value>>, Condvar)> = Arc::default();
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let told = events.clone();
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                told.0.lock().expect("events").push(event);
                told.1.notify_all();
            }
        });
        Standin { child, reader: Some(reader), events }
    }

    /// An agent, a stand-in that it has told of both pods, and the session between them.
    pub fn serve_both(&self, more: &[&str]) -> (Agent, Standin) {
        let mut agent = self.agent();
        let standin = self.standin(more);
        agent.accept();
        agent.add("ua", "pod-a", &self.a).expect_ack();
        agent.add("ub", "pod-b", &self.b).expect_ack();
        agent.snapshot_sent().expect_ack();
        standin.wait("ready");
        (agent, standin)
    }
}

impl Standin {
    /// The first event of this name.
    pub fn wait(&self, name: &str) -> Value {
        self.wait_for(|event| event["event"] == name, name)
    }

    /// The first event that `is_it` takes.
    pub fn wait_for(&self, is_it: impl Fn(&Value) -> bool, what: &str) -> Value {
        let (events, changed) = &*self.events;
        let deadline = Instant::now() + PATIENCE;
        let mut held = events.lock().expect("events");
        loop {
            if let Some(event) = held.iter().find(|event| is_it(event)) {
                return event.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no event {what:?} in {held:#?}");
            held = changed.wait_timeout(held, left).expect("events").0;
        }
    }

    /// What was said so far; all of it, once the process has ended.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let events = self.events.0.lock().expect("events");
        events.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    /// Waits for the end; the exit code.
    pub fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("wait") {
                self.reader.take().into_iter().for_each(|reader| reader.join().expect("every line is JSON"));
                return status.code().expect("it was not killed");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the stand-in did not end");
    }

    /// Ends it as an operator would; the exit code.
    pub fn terminate(&mut self) -> i32 {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.exit_code()
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `GET path` at an address of the outside.
pub fn http_get(outside: &Netns, address: &str, path: &str) -> String {
    let mut stream = outside.inside(|| TcpStream::connect(address).expect("connect"));
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

/// What a node agent would put into a pod: the rules that ztunnel expects.
pub fn redirect(pod: &Netns) {
    route_to_lo(pod, "0x111");
    load(pod, RULES);
}

/// The outbound half of the same without NAT: what the pod sends is turned round on lo and taken by TPROXY.
pub fn redirect_without_nat(pod: &Netns) {
    route_to_lo(pod, "0x112");
    load(pod, RULES_WITHOUT_NAT);
}

fn route_to_lo(pod: &Netns, mark: &str) {
    for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        pod.sh(&format!(
            "ip {family} rule add fwmark {mark}/0xfff pref 32764 lookup 100; \
             ip {family} route add local {all} dev lo table 100"
        ));
    }
}

fn load(pod: &Netns, rules: &str) {
    pod.inside(|| {
        let mut nft =
            Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft is needed");
        nft.stdin.take().expect("stdin").write_all(rules.as_bytes()).expect("rules");
        assert!(nft.wait().expect("nft").success(), "nft refused the rules");
    });
}

const RULES: &str = "
table inet standin {
  chain pre_mangle {
    type filter hook prerouting priority -150;
    meta mark & 0xfff == 0x539 ct mark set 0x111
  }
  chain out_mangle {
    type route hook output priority -150;
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
  chain pre_nat {
    type nat hook prerouting priority -100;
    ip daddr 127.0.0.1 return
    ip6 daddr ::1 return
    tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
  }
  chain out_nat {
    type nat hook output priority -100;
    oifname != \"lo\" udp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
    ip daddr 127.0.0.1 return
    ip6 daddr ::1 return
    tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
    meta mark & 0xfff == 0x111 accept
    oifname \"lo\" accept
    meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
  }
}
";

const RULES_WITHOUT_NAT: &str = "
table inet standin {
  chain output {
    type route hook output priority -150;
    meta mark & 0xfff == 0x539 return
    oifname \"lo\" return
    ct direction reply return
    meta l4proto tcp meta mark set 0x112
  }
  chain prerouting {
    type filter hook prerouting priority -150;
    meta mark & 0xfff == 0x112 meta l4proto tcp tproxy to :15001 accept
  }
}
";

pub const WORKLOADS: &str = r#"
workloads:
- uid: c//v1/Pod/demo/pod-a
  name: pod-a
  namespace: demo
  serviceAccount: default
  trustDomain: cluster.local
  workloadIps: ["10.244.0.2", "fd00::2"]
  protocol: HBONE
  node: node1
  network: ""
  services: {}
- uid: c//v1/Pod/demo/pod-b
  name: pod-b
  namespace: demo
  serviceAccount: sa-b
  trustDomain: cluster.local
  workloadIps: ["10.244.0.3", "fd00::3"]
  protocol: HBONE
  node: node1
  services:
    "demo/echo.demo.svc.cluster.local": { 80: 8080 }
services:
- name: echo
  namespace: demo
  hostname: echo.demo.svc.cluster.local
  vips: ["/10.96.0.10", "/fd96::a"]
  ports: { 80: 8080 }
policies: []
"#;
