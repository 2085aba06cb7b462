//! A cgroup in every hierarchy of the machine: cgroup v2, and the v1 controllers beside it where there are any.
//!
//! A kubelet and a runtime use whichever of them have controllers, so a node of theirs needs its place in each.

use super::cgroup::Cgroup;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What to mount it with elsewhere: `cpu,cpuacct`, `name=systemd`; empty for cgroup v2.
    pub options: String,
}

/// The same cgroup in every hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree {
    dirs: Vec<PathBuf>,
}

impl Hierarchy {
    /// Whether it is cgroup v2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.options.is_empty()
    }

    /// Those that this mount namespace shows from their roots, v2 first.
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?))
    }
}

impl Subtree {
    /// The directory `name` in each hierarchy, made where it is not there.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn create(name: &str) -> Result<Self> {
        let hierarchies = Hierarchy::all()?;
        let dirs = hierarchies.iter().map(|hierarchy| create(&hierarchy.mount.join(name)));
        Ok(Self { dirs: dirs.collect::<Result<_>>()? })
    }

    /// As it was written by [`Subtree::lines`].
    #[must_use]
    pub fn from_lines(text: &str) -> Self {
        Self { dirs: text.lines().map(PathBuf::from).collect() }
    }

    /// Its directories, one a line.
    #[must_use]
    pub fn lines(&self) -> String {
        self.dirs.iter().map(|dir| format!("{}\n", dir.display())).collect()
    }

    /// Its directories, that in cgroup v2 first if there is one.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The one in cgroup v2.
    ///
    /// # Errors
    /// When the machine has no cgroup v2.
    pub fn v2(&self) -> Result<Cgroup> {
        let all = Hierarchy::all()?;
        let v2 = all.first().filter(|hierarchy| hierarchy.is_v2()).context("there is no cgroup v2")?;
        let dir = self.dirs.first().context("a subtree of no hierarchy")?;
        Cgroup::below(&v2.mount, dir)
    }

    /// The cgroup `name` (may have slashes) below it, made if it is not there.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn below(&self, name: &str) -> Result<Self> {
        let mut dirs = self.dirs.clone();
        for part in Path::new(name) {
            for dir in &mut dirs {
                hand_down_controllers(dir)?;
                *dir = create(&dir.join(part))?;
            }
        }
        Ok(Self { dirs })
    }

    /// Moves this process, with all of its threads, into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self) -> Result<()> {
        self.dirs.iter().try_for_each(|dir| Cgroup::join(dir))
    }

    /// Ends what runs in it and removes it, with all below.
    ///
    /// # Errors
    /// Which directory stayed.
    pub fn remove(&self) -> Result<()> {
        for dir in &self.dirs {
            super::cgroup::kill_and_remove(dir);
            ensure!(!dir.exists(), "the cgroup {} cannot be removed: something runs in it", dir.display());
        }
        Ok(())
    }
}

/// Makes one cgroup. In v1 the controller cpuset begins empty, and an empty one takes no process.
fn create(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, above) = (dir.join(file), dir.parent().unwrap_or(dir).join(file));
        // In v2 an empty set means the parent's.
        if dir.join("cgroup.controllers").exists() || !own.exists() {
            continue;
        }
        if std::fs::read_to_string(&own)?.trim().is_empty() {
            let inherited = std::fs::read_to_string(&above)?;
            std::fs::write(&own, inherited.trim()).with_context(|| format!("set {}", own.display()))?;
        }
    }
    Ok(dir.to_path_buf())
}

/// In cgroup v2 a child has the controllers that its parent hands down. Where v1 has them, there are none to hand down.
fn hand_down_controllers(dir: &Path) -> Result<()> {
    let Ok(controllers) = std::fs::read_to_string(dir.join("cgroup.controllers")) else { return Ok(()) };
    if Hierarchy::all()?.iter().any(|hierarchy| !hierarchy.is_v2()) {
        return Ok(());
    }
    let all: String = controllers.split_whitespace().map(|name| format!("+{name} ")).collect();
    let control = dir.join("cgroup.subtree_control");
    std::fs::write(&control, all.trim())
        .with_context(|| format!("hand controllers down: {}", control.display()))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = mountinfo.lines().filter_map(parse_line).collect();
    found.sort_by_key(|hierarchy| !hierarchy.is_v2());
    found.dedup_by(|next, first| next.options == first.options);
    found
}

/// proc_pid_mountinfo(5).
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, mount) = (fields.next()?, fields.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    // Seen from a cgroup namespace below, the root of the tree is so many levels up.
    if !root.split('/').all(|part| part.is_empty() || part == "..") {
        return None;
    }
    let options = match kind {
        "cgroup2" => String::new(),
        "cgroup" => {
            // The rest is how it behaves, not which one it is.
            let which = |option: &&str| {
                let behaviour = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
                !behaviour.contains(option) && !option.starts_with("release_agent=")
            };
            options.split(',').filter(which).collect::<Vec<_>>().join(",")
        }
        _ => return None,
    };
    Some(Hierarchy { mount: PathBuf::from(mount), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(mountinfo: &str) -> Vec<(String, String)> {
        let text = |hierarchy: Hierarchy| (hierarchy.mount.display().to_string(), hierarchy.options);
        parse(mountinfo).into_iter().map(text).collect()
    }

    #[test]
    fn the_hybrid_layout_is_found_with_v2_first() {
        let found = mounts(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let expected = [
            ("/sys/fs/cgroup/unified", ""),
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ("/sys/fs/cgroup/systemd", "name=systemd"),
        ];
        assert_eq!(found, expected.map(|(mount, options)| (mount.to_owned(), options.to_owned())));
    }

    #[test]
    fn a_part_of_a_tree_is_not_taken_for_the_tree() {
        assert_eq!(mounts("41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), []);
        assert_eq!(mounts("41 31 0:38 /../x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), []);
        assert_eq!(mounts("garbage\n"), []);
    }

    #[test]
    fn the_tree_is_found_from_a_namespace_below() {
        let found = mounts("41 31 0:38 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(found, [("/sys/fs/cgroup".to_owned(), String::new())]);
    }

    #[test]
    fn lines_are_read_back() {
        let subtree = Subtree { dirs: vec!["/a/b".into(), "/c".into()] };
        assert_eq!(Subtree::from_lines(&subtree.lines()), subtree);
    }
}
