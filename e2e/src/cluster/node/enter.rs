//! How a program gets onto a node: into its cgroups first, then into its namespaces.
//!
//! Entering a namespace does not change the cgroup, and a process sees cgroups relative to its cgroup namespace's root:
//! in another order it would see itself outside of the node.

use crate::lab::hierarchies::Subtree;
use crate::lab::write_whole;
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program on a node has for its environment: what a service manager would give it.
pub const ENVIRONMENT: [&str; 2] =
    ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"];

/// Directories of a node's disk that are there from the beginning.
const DIRECTORIES: [&str; 6] =
    ["var/lib/kubelet", "var/lib/containerd", "var/log", "etc/cni/net.d", "opt/cni/bin", "boot"];

/// A node's directory: its disk, and where its cgroups and its first process are.
#[derive(Clone, Debug)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// Makes it. The disk is a tmpfs: it is fast, carries overlays, and nothing of it is left when the cluster ends,
    /// however it ends.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        let disk = dir.join("disk");
        std::fs::create_dir_all(&disk).with_context(|| format!("make {}", disk.display()))?;
        mount(Some("disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mount a tmpfs on {}", disk.display()))?;
        for below in DIRECTORIES {
            std::fs::create_dir_all(disk.join(below))?;
        }
        Ok(Self::open(dir))
    }

    /// One that was made before.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path of the node's disk: `var/lib/…`, `var/log/…`, `etc/cni/…` or `opt/…`.
    #[must_use]
    pub fn disk(&self, path: &str) -> PathBuf {
        self.dir.join("disk").join(path)
    }

    /// Takes it away, with the disk.
    pub(super) fn discard(&self) -> Result<()> {
        umount2(&self.dir.join("disk"), MntFlags::MNT_DETACH).context("unmount the node's disk")?;
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }

    /// The process id of the node's first process.
    ///
    /// # Errors
    /// When the node is off.
    pub fn init(&self) -> Result<i32> {
        let path = self.dir.join("init.pid");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("the node is off: {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} is no process id", path.display()))
    }

    pub(super) fn set_init(&self, pid: i32) -> Result<()> {
        write_whole(&self.dir.join("init.pid"), &pid.to_string())
    }

    pub(super) fn forget_init(&self) -> Result<()> {
        std::fs::remove_file(self.dir.join("init.pid"))?;
        std::fs::remove_file(self.dir.join("booted")).context("forget the boot")
    }

    /// Where the first process says that it has done its work. It opens the file before it hides it from itself.
    pub(super) fn booted_file(&self) -> Result<File> {
        File::create(self.dir.join("booted")).context("make the file that says that the node is up")
    }

    /// Whether the first process has done its work.
    pub(super) fn is_booted(&self) -> bool {
        std::fs::metadata(self.dir.join("booted")).is_ok_and(|found| found.len() > 0)
    }

    /// The node's cgroups.
    ///
    /// # Errors
    /// When they are not written down.
    pub fn cgroups(&self) -> Result<Subtree> {
        let path = self.dir.join("cgroups");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Subtree::from_lines(&text))
    }

    pub(super) fn write_cgroups(&self, cgroups: &Subtree) -> Result<()> {
        write_whole(&self.dir.join("cgroups"), &cgroups.lines())
    }
}

/// Becomes `program` on the node whose directory is `dir`, in the cgroup `cgroup` below the node's.
///
/// # Errors
/// When the node is off, or the kernel refuses.
pub fn enter(dir: &Path, cgroup: &str, program: &[OsString]) -> Result<()> {
    let place = Place::open(dir);
    let init = place.init()?;
    place.cgroups()?.below(cgroup)?.join()?;
    let failure = Command::new("nsenter")
        .args(["--target", &init.to_string()])
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd=/", "--"])
        .args(["env", "--ignore-environment"])
        .args(ENVIRONMENT)
        .args(terminal())
        .args(program)
        .exec();
    bail!("nsenter(1), from the package util-linux, could not be started: {failure}")
}

/// Programs that draw on the terminal must know which it is.
fn terminal() -> Option<String> {
    std::env::var("TERM").ok().map(|term| format!("TERM={term}"))
}
