//! The node as seen from here: its root directory, which may be a mount or another process's, and its /proc.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Where the agent's container has the host's /proc.
const MOUNTED_PROC: &str = "/host/proc";
/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// The node's root and /proc.
#[derive(Clone, Debug)]
pub struct Root {
    directory: PathBuf,
    proc: PathBuf,
}

impl Root {
    /// What is said, and for the rest what can be seen: with the host's /proc mounted, as in the agent's container, the root
    /// of the host's first process.
    #[must_use]
    pub fn find(directory: Option<PathBuf>, proc: Option<PathBuf>) -> Self {
        let proc = proc.unwrap_or_else(|| match &directory {
            None if Path::new(MOUNTED_PROC).join("1").is_dir() => MOUNTED_PROC.into(),
            None => "/proc".into(),
            Some(directory) => directory.join("proc"),
        });
        let directory = directory.unwrap_or_else(|| {
            let host = proc.join("1/root");
            let elsewhere = proc != Path::new("/proc");
            // Following it takes CAP_SYS_PTRACE.
            if elsewhere && std::fs::read_dir(&host).is_ok() { host } else { "/".into() }
        });
        Self { directory, proc }
    }

    /// A path of the node as it is reached from here. Links are followed within the node's root: absolute ones would
    /// otherwise lead to this program's own.
    #[must_use]
    pub fn of(&self, path: &Path) -> PathBuf {
        let mut pending: Vec<OsString> = reversed(path);
        let (mut within, mut links) = (PathBuf::new(), 0);
        while let Some(name) = pending.pop() {
            if name == ".." {
                within.pop();
                continue;
            }
            let link = std::fs::read_link(self.directory.join(&within).join(&name));
            match link {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        within = PathBuf::new();
                    }
                    pending.extend(reversed(&target));
                }
                _ => within.push(name),
            }
        }
        self.directory.join(within)
    }

    /// A file of the node's /proc.
    #[must_use]
    pub fn proc(&self, file: &str) -> PathBuf {
        self.proc.join(file)
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    let kept = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(kept).collect::<Vec<_>>().into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_mounted_proc_leads_to_the_node() {
        let seen = tempfile::tempdir().unwrap();
        let proc = seen.path().join("proc");
        let of = |root: &Root| (root.of(Path::new("/etc")), root.proc("1/ns/net"));
        // Following the link is refused: what is left is this program's own root.
        let blind = Root::find(None, Some(proc.clone()));
        assert_eq!(of(&blind), (PathBuf::from("/etc"), proc.join("1/ns/net")));
        fs::create_dir_all(proc.join("1")).unwrap();
        symlink(seen.path(), proc.join("1/root")).unwrap();
        assert_eq!(of(&Root::find(None, Some(proc.clone()))).0, proc.join("1/root/etc"));
        // What is said comes first, and has its own /proc.
        let said = Root::find(Some("/host".into()), None);
        assert_eq!(of(&said), (PathBuf::from("/host/etc"), PathBuf::from("/host/proc/1/ns/net")));
    }

    #[test]
    fn links_stay_within_the_node() {
        let node = tempfile::tempdir().unwrap();
        let at = |path: &str| node.path().join(path);
        fs::create_dir_all(at("var/snap/microk8s/12/args/cni-network")).unwrap();
        fs::create_dir_all(at("etc/cni")).unwrap();
        symlink("12", at("var/snap/microk8s/current")).unwrap();
        symlink("/var/snap/microk8s/current/args/cni-network", at("etc/cni/net.d")).unwrap();
        symlink("../../etc", at("var/snap/up")).unwrap();
        symlink("/loop", at("loop")).unwrap();
        let root = Root { directory: node.path().to_owned(), proc: at("proc") };
        assert_eq!(root.of(Path::new("/etc/cni/net.d/a")), at("var/snap/microk8s/12/args/cni-network/a"));
        assert_eq!(root.of(Path::new("/var/snap/up/cni")), at("etc/cni"));
        assert_eq!(root.of(Path::new("/../../not/there")), at("not/there"));
        assert_eq!(root.of(Path::new("/loop")), at("loop"), "a circle ends");
    }
}
