//! Files of our own that are whole or not there; and somebody else's made shorter where there is no room for a second.

use crate::disk::{Attributes, Disk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How temporary files begin and end: no runtime takes such a name for a configuration or a plugin.
pub const TEMPORARY: (&str, &str) = (".sluice-", ".tmp");

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

/// Shortens a file without any room on the disk: the rest moves forward in one write, white space fills the end, and
/// the end is cut off. At each moment the file is JSON that says the same or what it shall say.
pub fn shrink(disk: &impl Disk, path: &Path, from: &[u8], to: &[u8]) -> io::Result<Change> {
    let same = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let mut rest = to[same..].to_vec();
    rest.resize(from.len().saturating_sub(same).max(rest.len()), b' ');
    let made = disk.overwrite(path, Some(from), same as u64, &rest, to.len() as u64)?;
    Ok(if made { Change::Made } else { Change::Overtaken })
}

/// A fresh temporary name in `dir`.
pub fn temporary_in(dir: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (begin, end) = TEMPORARY;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{begin}{}-{number}{end}", std::process::id()))
}

/// Whether a name is one of [`temporary_in`]'s, or of a file that an exchange has beside it.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Whether a name is one of [`temporary_in`]'s. The agent writes to the same directories, and its names have no `-` there.
pub fn is_of_a_write(name: &str) -> bool {
    let between = name.strip_prefix(TEMPORARY.0).and_then(|rest| rest.strip_suffix(TEMPORARY.1));
    let numbers = between.and_then(|between| between.split_once('-'));
    numbers.is_some_and(|(process, number)| [process, number].iter().all(|part| part.parse::<u64>().is_ok()))
}

/// Whether the disk is full.
pub fn no_room(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// One that a crash left behind under the same name is in the way of nobody.
pub fn create(disk: &impl Disk, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    match disk.create(path, bytes, attributes) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path)?;
            disk.create(path, bytes, attributes)
        }
        result => result,
    }
}

/// The directory that a file is in.
pub fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))
}
