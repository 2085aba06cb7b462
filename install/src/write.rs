//! Files that are whole or not there, and never written over somebody else's newer version.

use crate::disk::{Attributes, Disk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How temporary files begin and end: no runtime takes such a name for a configuration or a plugin.
const TEMPORARY: (&str, &str) = (".sluice-", ".tmp");
/// How often a file that is written by others at the same time is tried before it is looked at anew.
const ATTEMPTS: usize = 8;

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is made.
    Made,
    /// Somebody else changed the file first; nothing of theirs is lost, and nothing of ours is there.
    Overtaken,
}

/// Puts `bytes` in the place of `path`, whatever is there.
pub fn put(disk: &impl Disk, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    let dir = parent(path)?;
    let temporary = temporary_in(dir);
    create(disk, &temporary, bytes, attributes)?;
    if let Err(e) = disk.rename(&temporary, path) {
        let _ = disk.remove(&temporary);
        return Err(e);
    }
    disk.sync_dir(dir)
}

/// Changes a file of somebody else's from one text to another, keeping mode, owner and label.
///
/// The new file and the old one change places, and then the old one is looked at: if it is not what we had read,
/// somebody has written in between, and they change back.
pub fn swap(disk: &impl Disk, path: &Path, from: &[u8], to: &[u8]) -> io::Result<Change> {
    let path = &disk.resolve(path)?;
    let dir = parent(path)?;
    let temporary = temporary_in(dir);
    create(disk, &temporary, to, &disk.attributes(path)?)?;
    let swapped = swap_with(disk, &temporary, path, from, to);
    // Without the directory on disk the old file is the one that a power cut leaves.
    let synced = if swapped.is_ok() { disk.sync_dir(dir) } else { Ok(()) };
    let removed = match disk.remove(&temporary) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    let change = swapped?;
    synced.and(removed)?;
    Ok(change)
}

fn swap_with(disk: &impl Disk, ours: &Path, path: &Path, from: &[u8], to: &[u8]) -> io::Result<Change> {
    match disk.exchange(ours, path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {
            if disk.read(path, from.len())? != from {
                return Ok(Change::Overtaken);
            }
            disk.rename(ours, path)?;
            return Ok(Change::Made);
        }
        Err(e) => return Err(e),
    }
    if disk.read(ours, from.len())? == from {
        return Ok(Change::Made);
    }
    for _ in 0..ATTEMPTS {
        disk.exchange(ours, path)?;
        if disk.read(ours, to.len())? == to {
            return Ok(Change::Overtaken);
        }
    }
    Err(io::Error::other("it is written by somebody else faster than it can be read"))
}

/// Shortens a file without any room on the disk: the rest moves forward in one write, white space fills the end, and
/// the end is cut off. At each moment the file is JSON that says the same or what it shall say.
pub fn shrink(disk: &impl Disk, path: &Path, from: &[u8], to: &[u8]) -> io::Result<Change> {
    let path = &disk.resolve(path)?;
    if disk.read(path, from.len())? != from {
        return Ok(Change::Overtaken);
    }
    let same = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let mut rest = to[same..].to_vec();
    rest.resize(from.len().saturating_sub(same).max(rest.len()), b' ');
    disk.overwrite(path, same as u64, &rest, to.len() as u64)?;
    Ok(Change::Made)
}

/// A fresh temporary name in `dir`.
pub fn temporary_in(dir: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (begin, end) = TEMPORARY;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{begin}{}-{number}{end}", std::process::id()))
}

/// Whether a name is one of [`temporary_in`]'s.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Whether the disk is full.
pub fn no_room(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// One that a crash left behind under the same name is in the way of nobody.
fn create(disk: &impl Disk, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    match disk.create(path, bytes, attributes) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path)?;
            disk.create(path, bytes, attributes)
        }
        result => result,
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))
}
