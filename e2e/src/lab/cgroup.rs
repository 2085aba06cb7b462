//! cgroup v2 directories of the lab: `<cgroup2>/sluice-lab-<pid>/…`. Those of the same name in cgroup v1 hierarchies,
//! where [`super::hierarchies`] makes some, live and end with them.
//!
//! The lab holds a shared lock on its directory for as long as it lives, so that a later start tells a dead lab's
//! directories from a living one's, whatever pid namespaces are between them.

use super::hierarchies::Hierarchy;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every lab's directory begins with this.
const PREFIX: &str = "sluice-lab-";

/// The lab's directory in the cgroup v2 tree.
#[derive(Debug)]
pub struct Cgroups {
    mount: PathBuf,
    root: PathBuf,
    _alive: Flock<File>,
}

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
    /// Its path as `/proc/PID/cgroup` shows it, with a leading slash.
    pub path: String,
}

impl Cgroups {
    /// Removes what dead labs left, then makes this lab's directory.
    ///
    /// # Errors
    /// When there is no cgroup v2 and it cannot be mounted, or the directory cannot be made.
    pub fn create(lab_dir: &Path) -> Result<Self> {
        let mount = match find_mount(&std::fs::read_to_string("/proc/self/mountinfo")?) {
            Some(found) => found,
            None => mount_privately(lab_dir)?,
        };
        remove_stale(&mount)?;
        // Between making the directory and locking it, another start may take it for a dead lab's: then once more.
        for attempt in 0..100 {
            let root = mount.join(format!("{PREFIX}{}-{attempt}", unique()));
            std::fs::create_dir(&root).with_context(|| format!("make the cgroup {}", root.display()))?;
            if let Some(alive) = lock(&root, FlockArg::LockSharedNonblock)
                && std::fs::metadata(&root).is_ok_and(|now| same_inode(&now, &alive))
            {
                return Ok(Self { mount, root, _alive: alive });
            }
        }
        bail!("no cgroup below {} could be kept", mount.display())
    }

    /// Removes what dead labs left.
    ///
    /// # Errors
    /// When the cgroups cannot be listed.
    pub fn remove_dead() -> Result<()> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
        // Where no cgroup v2 is mounted, a lab mounts one that goes with it.
        find_mount(&mountinfo).map_or(Ok(()), |mount| remove_stale(&mount))
    }

    /// The cgroup `name` (may have slashes) below the lab's own, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cgroup(&self, name: &str) -> Result<Cgroup> {
        let dir = self.root.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
        Cgroup::below(&self.mount, &dir)
    }

    /// The lab's own directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lab's own directory, by name: the same in every hierarchy.
    #[must_use]
    pub fn name(&self) -> &str {
        self.root.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
    }

    /// Ends what still runs in the lab's cgroups and removes them.
    pub fn remove(&self) {
        kill_and_remove(&self.root);
        for hierarchy in beside_v2() {
            kill_and_remove(&hierarchy.join(self.name()));
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Cgroup {
    /// The one of a directory below the hierarchy's mount.
    ///
    /// # Errors
    /// When it is below another.
    pub fn below(mount: &Path, dir: &Path) -> Result<Self> {
        let below = dir.strip_prefix(mount).context("a cgroup outside its mount")?;
        Ok(Self { path: format!("/{}", below.display()), dir: dir.to_path_buf() })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its 64-bit id: the directory's inode.
    ///
    /// # Errors
    /// When it is gone.
    pub fn id(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.dir).with_context(|| format!("look at {}", self.dir.display()))?.ino())
    }

    /// Removes it and makes it anew, as a kubelet's service manager does at a restart: the path is the same, the id
    /// is another. It must be empty.
    ///
    /// # Errors
    /// When something runs in it.
    pub fn remake(&self) -> Result<()> {
        std::fs::remove_dir(&self.dir).with_context(|| format!("remove {}", self.dir.display()))?;
        std::fs::create_dir(&self.dir).with_context(|| format!("make {}", self.dir.display()))
    }

    /// Moves this process, with all of its threads, into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(dir: &Path) -> Result<()> {
        std::fs::write(dir.join("cgroup.procs"), "0").with_context(|| format!("join {}", dir.display()))
    }
}

/// The first cgroup2 mount that shows the tree from its root.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if !after.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let root = fields.next()?;
        // A space in a mount point is written \040; no cgroup mount point has one.
        let target = fields.next()?;
        (root == "/").then(|| PathBuf::from(target))
    })
}

fn mount_privately(lab_dir: &Path) -> Result<PathBuf> {
    let target = lab_dir.join("cgroup2");
    std::fs::create_dir_all(&target)?;
    mount(Some("cgroup2"), &target, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .context("no cgroup v2 is mounted here, and mounting one is refused")?;
    Ok(target)
}

/// Unlike a pid, different in every pid namespace.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_micros())
}

fn same_inode(found: &std::fs::Metadata, held: &File) -> bool {
    held.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (found.dev(), found.ino()))
}

fn lock(dir: &Path, how: FlockArg) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, how).ok()
}

fn remove_stale(mount: &Path) -> Result<()> {
    for entry in std::fs::read_dir(mount).with_context(|| format!("list {}", mount.display()))? {
        let dir = entry?.path();
        let ours = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if ours && dir.is_dir() && lock(&dir, FlockArg::LockExclusiveNonblock).is_some() {
            kill_and_remove(&dir);
        }
    }
    for hierarchy in beside_v2() {
        let Ok(entries) = std::fs::read_dir(&hierarchy) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // The v2 directory is made before those in v1 and removed before them.
            if name.to_string_lossy().starts_with(PREFIX) && !mount.join(&name).exists() {
                kill_and_remove(&entry.path());
            }
        }
    }
    Ok(())
}

/// Where the cgroup v1 hierarchies are mounted.
fn beside_v2() -> Vec<PathBuf> {
    let all = Hierarchy::all().unwrap_or_default();
    all.into_iter().filter(|hierarchy| !hierarchy.is_v2()).map(|hierarchy| hierarchy.mount).collect()
}

/// Removes a tree of cgroups, the deepest first, ending what runs in it.
pub(super) fn kill_and_remove(dir: &Path) {
    let begun = Instant::now();
    // Not there before kernel 5.14: then the directories stay until what runs in them ends.
    let _ = std::fs::write(dir.join("cgroup.kill"), "1");
    while remove_tree(dir).is_err() && begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(why),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_layout_is_found() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mountinfo), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_part_of_the_tree_is_not_taken_for_the_tree() {
        assert_eq!(find_mount("41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), None);
        assert_eq!(find_mount(""), None);
    }
}
