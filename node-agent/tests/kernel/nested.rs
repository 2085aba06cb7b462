//! A node that is a container, as kind's are: its first process has a cgroup namespace and a pid namespace of its own,
//! and the agent's container has others again.

use crate::child;
use crate::packets::TestCgroups;
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_agent::kernel::{HostProc, Kernel};
use sluice_shared::lower::Backend;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const TESTS: &[(&str, fn())] = &[
    ("cgroups_count_from_the_nodes_root", seen_from_the_node),
    ("a_containers_own_procfs_is_not_taken_for_the_hosts", own_procfs),
];

/// `$1` is the node's cgroup, `$2` the agent's below it, `$3` where the node's /proc goes, the rest the command.
const NODE: &str = r#"
echo 0 > "$1/cgroup.procs"
exec unshare --pid --mount --cgroup --fork --kill-child --propagation private -- sh -ec '
    mount -t proc proc /proc
    mkdir -p /run/node-cgroups
    mount -t cgroup2 cgroup2 /run/node-cgroups
    mkdir -p "$3"
    mount --bind /proc "$3"
    sh -ec "echo 0 > /run/node-cgroups/\$2/cgroup.procs; shift 3; exec \"\$@\"" sh "$@"
' node "$@"
"#;

/// The agent's container on it.
const CONTAINER: [&str; 6] = ["unshare", "--pid", "--mount", "--cgroup", "--fork", "--mount-proc"];

/// What the agent says of `host_proc` from within its container on such a node.
fn on_a_node(test: &str, host_proc: &str) -> String {
    let tree = TestCgroups::new(test);
    let root = tree.directory("").display().to_string();
    let mut command = vec!["sh", "-ec", NODE, "node", &root, "ztunnel/container", "/run/node-proc"];
    command.extend(CONTAINER);
    child::in_a_container(&command, host_proc)
}

fn seen_from_the_node() {
    let said = on_a_node("nested", "/run/node-proc");
    let expected = "kubelet 1 forger; agent 2 ztunnel/container; told apart: Ok(())";
    assert_eq!(said, expected);
}

fn own_procfs() {
    let said = on_a_node("nested-own", "/proc");
    assert!(said.contains("the first process is the agent itself"), "{said}");
}

/// The task of the agent's container: finds a cgroup by its path and one by its process, and tries a rule by cgroup.
pub fn look(host_proc: &str) -> String {
    let proc = HostProc::at(host_proc);
    let kernel = LinuxKernel::new(Path::new("/proc/self/ns/net")).expect("own namespace");
    let kernel = kernel.with_host_proc(proc.clone());
    let (here, _there) = UnixStream::pair().expect("a socket pair");
    let said = || {
        let kubelet = kernel.cgroup_at("forger")?;
        let pid = proc.peer(here.as_fd()).expect("the peer's pid");
        let agent = kernel.cgroup_of(pid)?;
        let told_apart = kernel.cgroups_are_told_apart(Backend::Nftables);
        Ok::<_, sluice_agent::kernel::KernelError>(format!(
            "kubelet {} {}; agent {} {}; told apart: {told_apart:?}",
            kubelet.level, kubelet.path, agent.level, agent.path
        ))
    };
    said().unwrap_or_else(|error| error.to_string())
}
