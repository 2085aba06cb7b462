//! A node's first process: it makes the node's view of the machine, then waits for whatever is orphaned.

use super::enter::Place;
use crate::lab::hierarchies::Hierarchy;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::wait;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where the upstream programs are on a node: on everybody's PATH.
const PROGRAMS: &str = "/usr/local/bin";
/// What a kubelet sets machine-wide, and to what. It gets files of its own to write to instead.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Goes into the node's cgroups and becomes `unshare(1)`, which starts [`init`] in new namespaces and ends with it.
/// The network namespace is the caller's.
///
/// # Errors
/// When the kernel refuses.
pub fn boot(dir: &Path, name: &str, programs: &Path) -> Result<()> {
    let place = Place::open(dir);
    // The cgroup namespace's root is where the process is that makes it.
    place.cgroups()?.join()?;
    let failure = Command::new("unshare")
        .args(["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child"])
        .args(["--propagation", "private", "--"])
        .arg(std::env::current_exe().context("which program is this?")?)
        .arg("init")
        .args([dir, Path::new(name), programs])
        .exec();
    bail!("unshare(1), from the package util-linux, could not be started: {failure}")
}

/// The node's first process. Does not return: whoever ends it ends the node.
///
/// # Errors
/// Which mount was refused.
pub fn init(dir: &Path, name: &str, programs: &Path) -> Result<()> {
    let place = Place::open(dir);
    // Where no process may be in a cgroup with children (cgroup v2 without v1), the node's own must be free.
    place.cgroups()?.below("init.scope")?.join()?;
    let hierarchies = Hierarchy::all()?;
    nix::unistd::sethostname(name).context("name the node")?;
    kernel_views(&hierarchies)?;
    identity(&place, name)?;
    sysctls(&place)?;
    for (from, to) in
        [("var/lib", "/var/lib"), ("var/log", "/var/log"), ("etc/cni", "/etc/cni"), ("opt", "/opt")]
    {
        bind(&place.disk(from), Path::new(to))?;
    }
    bind(programs, Path::new(PROGRAMS))?;
    let mut booted = place.booted_file()?;
    // The cluster's own files are below /run; a node sees none of them, and its own /run does not outlive it.
    umount2("/run", MntFlags::MNT_DETACH).context("hide the cluster's /run")?;
    mount_at("tmpfs", Path::new("/run"), "tmpfs", "mode=755")?;
    for below in ["/run/netns", "/run/lock"] {
        std::fs::create_dir_all(below)?;
    }
    // Pods that mount the node's directories see what is mounted there later (mountPropagation).
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("share the node's mounts with its pods")?;
    booted.write_all(b"yes\n").context("say that the node is up")?;
    drop(booted);
    reap()
}

/// `/proc` and `/sys` as the node's namespaces have them, with every cgroup hierarchy at its usual place.
fn kernel_views(hierarchies: &[Hierarchy]) -> Result<()> {
    // The old ones go: programs that look for cgroups in mountinfo take the first they find.
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount the machine's /sys")?;
    umount2("/proc", MntFlags::MNT_DETACH).context("unmount the machine's /proc")?;
    mount_at("proc", Path::new("/proc"), "proc", "")?;
    mount_at("sysfs", Path::new("/sys"), "sysfs", "")?;
    let root = Path::new("/sys/fs/cgroup");
    if let [Hierarchy { options, .. }] = hierarchies
        && options.is_empty()
    {
        return mount_at("cgroup2", root, "cgroup2", "");
    }
    mount_at("cgroup", root, "tmpfs", "mode=755")?;
    for hierarchy in hierarchies {
        let name = if hierarchy.is_v2() { Some("unified".as_ref()) } else { hierarchy.mount.file_name() };
        let target = root.join(name.unwrap_or_default());
        std::fs::create_dir(&target).with_context(|| format!("make {}", target.display()))?;
        let kind = if hierarchy.is_v2() { "cgroup2" } else { "cgroup" };
        mount_at(kind, &target, kind, &hierarchy.options)?;
    }
    Ok(())
}

/// What tells this machine from another, and this boot from the last.
fn identity(place: &Place, name: &str) -> Result<()> {
    let random = || std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a random UUID");
    let machine = place.disk("boot/machine-id");
    if !machine.exists() {
        std::fs::write(&machine, random()?.replace('-', ""))?;
    }
    bind(&machine, Path::new("/etc/machine-id"))?;
    let of_boot = [
        ("hostname", format!("{name}\n"), "/etc/hostname"),
        // No name server: the fabric leads nowhere.
        ("resolv.conf", String::new(), "/etc/resolv.conf"),
        ("boot-id", random()?, "/proc/sys/kernel/random/boot_id"),
    ];
    for (file, text, target) in of_boot {
        let file = place.disk("boot").join(file);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        bind(&file, Path::new(target))?;
    }
    Ok(())
}

/// Files to write to in place of the sysctls that no namespace has for itself.
fn sysctls(place: &Place) -> Result<()> {
    for (key, value) in SYSCTLS {
        let real = Path::new("/proc/sys").join(key);
        if !real.exists() {
            continue;
        }
        let file: PathBuf = place.disk("boot").join(key.replace('/', "."));
        std::fs::write(&file, format!("{value}\n")).with_context(|| format!("write {}", file.display()))?;
        bind(&file, &real)?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn mount_at(source: &str, target: &Path, kind: &str, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} on {} ({options})", target.display()))
}

/// Collects every process that has lost its parent, for good.
fn reap() -> Result<()> {
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing to wait for now; orphans come without a signal of ours.
            Err(Errno::ECHILD) => std::thread::sleep(Duration::from_millis(100)),
            Err(why) => return Err(why).context("wait for orphans"),
        }
    }
}
