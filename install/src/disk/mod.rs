//! The seam to the file system, so that power cuts and full disks can be simulated at every write.

pub mod linux;
#[cfg(test)]
pub mod simulated;

use std::io;
use std::path::{Path, PathBuf};

/// What the installer does with files.
pub trait Disk {
    /// What is in a directory.
    fn names(&self, dir: &Path) -> io::Result<Vec<(String, Kind)>>;
    /// A file's bytes, `most` of them and one more.
    fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>>;
    /// What tells one state of a file from another without reading it.
    fn stamp(&self, path: &Path) -> io::Result<Stamp>;
    /// Mode, owner and label of a file.
    fn attributes(&self, path: &Path) -> io::Result<Attributes>;
    /// The file that a path means in the end, when it is a symbolic link.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    /// Makes a new file and flushes it to disk; nothing is left when it fails.
    fn create(&self, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()>;
    /// Puts `from` in the place of `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Lets two files change places. `Unsupported` where the file system cannot.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;
    /// Writes `bytes` at the offset `at` in one call, then cuts the file to the length `end`, then flushes it. With
    /// `from` only a file that says just that: gives whether it does. All of it happens to one file, whatever is
    /// renamed onto it meanwhile.
    fn overwrite(
        &self,
        path: &Path,
        from: Option<&[u8]>,
        at: u64,
        bytes: &[u8],
        end: u64,
    ) -> io::Result<bool>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory, mode 0755.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Flushes a directory's entries to disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether programs in this directory may be run.
    fn may_run(&self, dir: &Path) -> io::Result<bool>;
}

/// What a directory's entry is, symbolic links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Other,
}

/// One state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub inode: (u64, u64),
    pub size: u64,
    /// Nanoseconds since 1970 of the last change of content and of inode.
    pub changed: (i128, i128),
    pub mode: u32,
}

/// What a file keeps when its content is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// `security.selinux`, where there is one.
    pub label: Option<Vec<u8>>,
}
