//! A node with pods that run: namespaces, the runtime's bind mounts, processes in the kubelet's cgroups.

use super::runtime::{Manner, Runtime, Sandbox, info};
use crate::fixture::{Ns, eventually, kernel};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sluice_agent::adopt::{Finder, Found, Neighbours, NotFound, Settings, Stale, Wanted};
use sluice_agent::kernel::{Kernel, Pool};
use sluice_shared::ids::{NetnsId, PodRef, PodUid};
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// For a number that another test's process has: as long as such a test takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one test's.
pub struct Node {
    pub runtime: tokio::runtime::Runtime,
    pub finder: Finder,
    pub neighbours: Neighbours,
    directory: tempfile::TempDir,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    processes: Vec<Child>,
}

/// A pod.
pub struct Pod {
    pub ns: Ns,
    pub wanted: Wanted,
    pub id: NetnsId,
}

impl Node {
    /// A node whose runtime answers in this manner; with `None` there is none.
    pub fn new(manner: Option<Manner>) -> (Self, Option<Runtime>) {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("netns")).expect("a directory");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let socket = directory.path().join("cri.sock");
        let _within = runtime.enter();
        let cri = manner.map(|manner| Runtime::listen(&socket, Vec::new(), manner));
        let settings = Settings {
            cri_sockets: vec![directory.path().join("nobody.sock"), socket],
            netns_dirs: vec![directory.path().join("netns")],
            host_proc: "/proc".into(),
        };
        let pool = Pool::new(Arc::new(kernel()), Some(2)).expect("threads");
        let finder = Finder::new(settings, Arc::new(pool));
        drop(_within);
        let node = Self {
            runtime,
            finder,
            neighbours: Neighbours { complete: true, ..Neighbours::default() },
            directory,
            mounts: Vec::new(),
            cgroups: Vec::new(),
            processes: Vec::new(),
        };
        (node, cri)
    }

    pub fn find(&self, wanted: &Wanted) -> Result<Found, NotFound> {
        self.runtime.block_on(self.finder.find(wanted, &self.neighbours))
    }

    /// What is found must be this pod's namespace.
    pub fn finds(&self, pod: &Pod) -> Found {
        let found = self.find(&pod.wanted).expect("found");
        assert_eq!(found.netns.id(), pod.id, "the namespace of another");
        found
    }

    /// It must not be found, and these words must be among the reasons.
    pub fn refuses(&self, pod: &Pod, why: &str) {
        match self.find(&pod.wanted) {
            Ok(found) => {
                panic!("found {} at {}, in spite of {why:?}", found.netns.id(), found.path.display())
            }
            Err(error) => assert!(error.to_string().contains(why), "{error}\nis not about {why:?}"),
        }
    }

    pub fn mount_path(&self, name: &str) -> PathBuf {
        self.directory.path().join("netns").join(name)
    }

    /// Mounts a namespace where the runtime does.
    pub fn bind(&mut self, name: &str, namespace: &Path) -> PathBuf {
        let path = self.mount_path(name);
        fs::write(&path, "").expect("a file");
        mount(Some(namespace), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
        self.mounts.push(path.clone());
        path
    }

    pub fn unbind(&mut self, name: &str) {
        let path = self.mount_path(name);
        umount2(&path, MntFlags::MNT_DETACH).expect("unmount");
        self.mounts.retain(|mounted| *mounted != path);
    }

    /// Starts a process that stays, in a namespace and in the cgroup of this name.
    pub fn process(&mut self, ns: Option<&Ns>, cgroup: &str) -> u32 {
        let start = || {
            let mut sleeper = Command::new("sleep");
            sleeper.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("sleep")
        };
        let child = match ns {
            Some(ns) => ns.run(start),
            None => start(),
        };
        let pid = child.id();
        self.processes.push(child);
        if !cgroup.is_empty() {
            fs::write(self.cgroup(cgroup).join("cgroup.procs"), pid.to_string()).expect("move to the cgroup");
        }
        pid
    }

    /// Starts a process that gets the number of one that has ended.
    pub fn process_again(&mut self, pid: u32, ns: &Ns, cgroup: &str) {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "the number {pid} was not to be had again");
            // Another test may have got it, for a process or a thread, and give it back at its end.
            if Path::new(&format!("/proc/{pid}")).exists() {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            // The thread that starts the process takes a number, too.
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 2).to_string())
                .expect("this pid namespace's last pid");
            let next = self.process(Some(ns), cgroup);
            if next == pid {
                return;
            }
            self.end(next);
        }
    }

    /// Opens what was the pod's namespace once more.
    pub fn again(&self, pod: &Pod, path: &Path) -> Result<(), Stale> {
        let opened = self.finder.open_again(path, pod.id, &pod.wanted, &self.neighbours);
        self.runtime.block_on(opened).map(|netns| assert_eq!(netns.id(), pod.id))
    }

    /// Ends a process and waits for it, so that its number is free.
    pub fn end(&mut self, pid: u32) {
        let index = self.processes.iter().position(|child| child.id() == pid).expect("ours");
        let mut child = self.processes.remove(index);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    fn cgroup(&mut self, name: &str) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let line =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("this test needs cgroup v2");
        let root = PathBuf::from(line.split(' ').nth(4).expect("a mount point"));
        let id = self.directory.path().file_name().expect("a name").to_string_lossy().replace('.', "");
        let mut path = root.join(format!("sluice-kernel-tests-adopt-{id}"));
        for part in std::iter::once("").chain(name.split('/')) {
            path.push(part);
            if !self.cgroups.contains(&path) {
                fs::create_dir_all(&path).expect("make a cgroup");
                self.cgroups.push(path.clone());
            }
        }
        path
    }

    /// Another pod, as the source shows it.
    pub fn knows(&mut self, pod: &Pod) {
        let addresses = pod.wanted.ips.iter().map(|ip| (*ip, pod.wanted.uid.clone()));
        self.neighbours.addresses.extend(addresses);
        self.neighbours.known.insert(pod.wanted.uid.clone());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for path in &self.mounts {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        for path in self.cgroups.iter().rev() {
            // A process that has ended leaves its cgroup a moment later.
            eventually(|| match fs::remove_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => None,
                _ => Some(()),
            });
        }
    }
}

impl Pod {
    /// A pod with these addresses. Its uid begins with this, and is no other pod's: tests share one /proc.
    pub fn new(uid: &str, addresses: &[&str]) -> Self {
        static PODS: AtomicU32 = AtomicU32::new(0);
        let uid = format!("{uid}-{}", PODS.fetch_add(1, Ordering::Relaxed));
        let ns = Ns::new();
        let add: String = addresses.iter().map(|ip| format!("addr add {ip} dev eth0\n")).collect();
        ns.command("ip", &["-batch", "-"], &format!("link add eth0 type veth peer name peer\n{add}"));
        let id = kernel().adopt(ns.fd()).expect("a namespace").id();
        let ips = addresses.iter().map(|ip| ip.parse::<IpAddr>().expect("an address")).collect();
        let wanted = Wanted { uid: PodUid::new(&*uid).expect("a uid"), pod: PodRef::new("demo", uid), ips };
        Self { ns, wanted, id }
    }

    /// A way to its namespace that lives as long as this.
    pub fn handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.ns.borrowed().as_raw_fd()))
    }

    /// Its cgroup, as the kubelet names it with systemd's driver.
    pub fn cgroup(&self) -> String {
        let uid = self.wanted.uid.as_str().replace('-', "_");
        format!("kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{uid}.scope")
    }

    /// Its sandbox, as an honest runtime tells of it.
    pub fn sandbox(&self, path: &Path, pid: u32) -> Sandbox {
        let uid = self.wanted.uid.as_str();
        Sandbox {
            id: format!("sandbox-{uid}"),
            uid: uid.into(),
            name: uid.into(),
            attempt: 0,
            ready: true,
            ip: self.wanted.ips[0].to_string(),
            info: info(&path.display().to_string(), pid),
        }
    }
}
