//! A node that is a directory, and a kernel that does what it is told to.

use sluice_agent::doctor::{Options, Root};
use sluice_agent::kernel::Examiner;
use sluice_shared::doctor::{BpfFacts, BpfProgram, KernelTrials, Look, Trial};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub const KINDNET: &str = "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"kindnet\",\n  \"plugins\": [\n    \
                           {\"type\": \"ptp\"},\n    {\"type\": \"portmap\"}\n  ]\n}\n";

/// The node; gone with this.
pub struct Node(tempfile::TempDir);

/// A kernel that takes everything, unless it is told otherwise.
pub struct FakeKernel {
    pub trials: Look<KernelTrials>,
    pub programs: Vec<BpfProgram>,
}

impl Node {
    /// Nothing at all.
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A /proc, and no CNI.
    pub fn bare() -> Self {
        let node = Self::empty();
        node.write("etc/os-release", "ID=test\n");
        node.write("proc/sys/kernel/random/boot_id", "b2d0a5de\n");
        node.write("proc/sys/net/ipv4/ip_forward", "1\n");
        node.write("proc/sys/fs/inotify/max_user_instances", "8192\n");
        node.write(
            "proc/1/net/route",
            "Iface\tDestination\tGateway\neth0\t00000000\t0102A8C0\neth0\t0002A8C0\t00000000\n",
        );
        node.write("proc/1/mounts", "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        node.write(
            "proc/1/net/dev",
            "Inter-|   Receive                                                |  Transmit\n face |bytes    packets\n    \
             lo:       0       0\n  eth0: 1234 5 6\nvlan.eth.1: 0 0\n",
        );
        node.make("proc/1/ns");
        for namespace in ["net", "cgroup"] {
            symlink(format!("/proc/self/ns/{namespace}"), node.path(&format!("proc/1/ns/{namespace}")))
                .unwrap();
        }
        node
    }

    /// With kindnet.
    pub fn new() -> Self {
        let node = Self::bare();
        node.write("etc/cni/net.d/10-kindnet.conflist", KINDNET);
        node.make("opt/cni/bin");
        node
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub fn make(&self, directory: &str) {
        std::fs::create_dir_all(self.path(directory)).unwrap();
    }

    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn options(&self) -> Options {
        let root = Root::find(Some(self.path("")), None);
        Options { plugin: self.path("ours/sluice-cni"), ..Options::new(root) }
    }
}

impl Default for FakeKernel {
    fn default() -> Self {
        let trials = KernelTrials {
            release: "6.12.0".to_owned(),
            nftables: Ok(()),
            iptables: Err("not tried: nftables works".to_owned()),
            nftables_v4: None,
            mark_guard: Ok(Ok(())),
            transparent_v4: Ok(()),
            transparent_v6: Ok(()),
        };
        Self { trials: Ok(trials), programs: Vec::new() }
    }
}

impl Examiner for FakeKernel {
    fn trials(&self) -> Look<KernelTrials> {
        self.trials.clone()
    }

    fn bpf(&self) -> Look<BpfFacts> {
        Ok(BpfFacts { cookies: Ok(()), programs: self.programs.clone() })
    }

    fn inotify(&self) -> Look<Trial> {
        Ok(Ok(()))
    }
}
