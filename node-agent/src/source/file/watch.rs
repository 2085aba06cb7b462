//! Noticing that a file has changed, however it is changed: written in place, replaced by rename, deleted and made
//! again, or behind a symbolic link that is swapped (as in a mounted ConfigMap).

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long a file must be left alone before it is read, when nothing has said that its writer is done.
const QUIET: Duration = Duration::from_secs(1);
/// How often the file is looked at besides, for what inotify cannot show (network file systems, a missing directory).
const POLL: Duration = Duration::from_secs(5);
/// How many symbolic links are followed.
const MAX_LINKS: usize = 16;

/// Watches one file.
pub(super) struct Watch {
    path: PathBuf,
    inotify: Option<inotify::EventStream<Vec<u8>>>,
    /// Directories, and the names in them that matter.
    watched: HashMap<WatchDescriptor, BTreeSet<OsString>>,
    stamp: Option<Stamp>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
}

impl Watch {
    /// Starts to watch. A system that has no inotify instance left is polled.
    pub(super) fn new(path: PathBuf) -> Self {
        let inotify = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; 4096]));
        let inotify = inotify
            .inspect_err(
                |error| tracing::warn!(%error, "no inotify; the pods file is looked at every 5 s only"),
            )
            .ok();
        let stamp = Stamp::of(&path);
        let mut watch = Self { path, inotify, watched: HashMap::new(), stamp };
        watch.arm();
        watch
    }

    /// Waits until the file is worth reading again. What changes after this has returned will be noticed by the next call.
    pub(super) async fn changed(&mut self) {
        let mut due: Option<Instant> = None;
        loop {
            let poll = Instant::now() + POLL;
            tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or(poll)) => {
                    self.arm();
                    let stamp = Stamp::of(&self.path);
                    if due.is_some() || stamp != self.stamp {
                        self.stamp = stamp;
                        return;
                    }
                }
                wait = self.next_hint() => {
                    let at = Instant::now() + wait;
                    due = Some(at);
                    // Links may lead elsewhere now: watch there before it is read.
                    self.arm();
                }
            }
        }
    }

    /// Waits for an event that concerns the file; how long to wait from then on, for the writer to be done.
    async fn next_hint(&mut self) -> Duration {
        let Some(stream) = self.inotify.as_mut() else { return std::future::pending().await };
        loop {
            let event = match stream.next().await {
                Some(Ok(event)) => event,
                Some(Err(_)) => return Duration::ZERO,
                None => return std::future::pending().await,
            };
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return QUIET;
            }
            let Some(names) = self.watched.get(&event.wd) else { continue };
            match event.name {
                Some(name) if !names.contains(&name) => {}
                // The rename, or the writer's close, is the last that happens to a new version.
                Some(_) if event.mask.intersects(EventMask::MOVED_TO | EventMask::CLOSE_WRITE) => {
                    return Duration::ZERO;
                }
                _ => return QUIET,
            }
        }
    }

    /// Watches every directory whose change can change what the path leads to, and no other.
    fn arm(&mut self) {
        let Some(stream) = self.inotify.as_ref() else { return };
        let mut wanted: HashMap<PathBuf, BTreeSet<OsString>> = HashMap::new();
        for (directory, name) in steps_to(&self.path) {
            wanted.entry(directory).or_default().insert(name);
        }
        let mut watches = stream.watches();
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::MOVE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut now: HashMap<WatchDescriptor, BTreeSet<OsString>> = HashMap::new();
        for (directory, names) in wanted {
            // A directory that is not there is left to the poll.
            let Ok(descriptor) = watches.add(&directory, mask) else { continue };
            now.entry(descriptor).or_default().extend(names);
        }
        for (descriptor, _) in std::mem::take(&mut self.watched) {
            if !now.contains_key(&descriptor) {
                // It fails when the directory is gone, and the watch with it.
                drop(watches.remove(descriptor));
            }
        }
        self.watched = now;
    }
}

impl Stamp {
    /// `None` when there is nothing at the path.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let modified = meta.modified().ok();
        Some(Self { inode: (meta.dev(), meta.ino()), length: meta.len(), modified })
    }
}

/// Walks to a file as the kernel does. Every (directory, name) on the way that is a symbolic link, or is missing, and the
/// file itself: if none of these changes, the path leads to the same file.
fn steps_to(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    let mut here = PathBuf::from("/");
    let mut ahead: VecDeque<PathBuf> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        let Some(name) = part.file_name() else {
            if part == Path::new("..") {
                here.pop();
            } else {
                here = PathBuf::from("/");
            }
            continue;
        };
        let at = here.join(name);
        let target = fs::read_link(&at);
        if target.is_ok() || ahead.is_empty() || !at.exists() {
            found.push((here.clone(), name.to_owned()));
        }
        match target {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                parts(&target).rev().for_each(|part| ahead.push_front(part));
            }
            Ok(_) => break,
            Err(_) => here = at,
        }
    }
    found
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = PathBuf> {
    path.components().filter(|part| *part != Component::CurDir).map(|part| PathBuf::from(part.as_os_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_is_watched_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let volume = root.join("volume");
        fs::create_dir_all(volume.join("..v1")).unwrap();
        fs::write(volume.join("..v1/pods.yaml"), "").unwrap();
        symlink("..v1", volume.join("..data")).unwrap();
        symlink("..data/pods.yaml", volume.join("pods.yaml")).unwrap();
        symlink(&volume, root.join("current")).unwrap();
        let step = |directory: &str, name: &str| (root.join(directory), OsString::from(name));
        assert_eq!(
            steps_to(&root.join("current/./pods.yaml")),
            [
                (root.clone(), "current".into()),
                step("volume", "pods.yaml"),
                step("volume", "..data"),
                step("volume/..v1", "pods.yaml"),
            ]
        );
        assert_eq!(
            steps_to(&root.join("volume/../missing/pods.yaml")),
            [(root.clone(), "missing".into()), step("missing", "pods.yaml")]
        );
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(steps_to(&root.join("loop/pods.yaml")).len(), MAX_LINKS + 1);
    }
}
