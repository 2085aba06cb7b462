//! The real file system.

use super::{Attributes, Disk, Kind, Stamp};
use rustix::fs::{CWD, RenameFlags, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Where SELinux keeps a file's label (xattr(7)).
const LABEL: &str = "security.selinux";
/// The longest label that is kept, in bytes.
const MAX_LABEL: usize = 4096;

/// This machine's.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

impl Disk for Linux {
    fn names(&self, dir: &Path) -> io::Result<Vec<(String, Kind)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A name that is not UTF-8 is nobody's configuration that we could write about.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => Kind::File,
                Ok(metadata) if metadata.is_dir() => Kind::Directory,
                Ok(_) => Kind::Other,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !is_link(&entry) => continue,
                // A link to nowhere is there: a runtime would stumble over it too.
                Err(_) => Kind::File,
            };
            names.push((name, kind));
        }
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(names)
    }

    fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let found = fs::metadata(path)?;
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Ok(Stamp {
            inode: (found.dev(), found.ino()),
            size: found.size(),
            changed: (
                nanoseconds(found.mtime(), found.mtime_nsec()),
                nanoseconds(found.ctime(), found.ctime_nsec()),
            ),
            mode: found.mode() & 0o7777,
        })
    }

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let found = fs::metadata(path)?;
        let mut label = vec![0; MAX_LABEL];
        let label = match rustix::fs::getxattr(path, LABEL, &mut label[..]) {
            Ok(length) => Some(label[..length].to_vec()),
            Err(Errno::NODATA | Errno::NOTSUP) => None,
            Err(e) => return Err(e.into()),
        };
        Ok(Attributes { mode: found.mode() & 0o7777, owner: (found.uid(), found.gid()), label })
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn create(&self, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let filled = fill(&file, bytes, attributes);
        if filled.is_err() {
            let _ = fs::remove_file(path);
        }
        filled
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            Err(e) => Err(e.into()),
        }
    }

    fn overwrite(
        &self,
        path: &Path,
        from: Option<&[u8]>,
        at: u64,
        bytes: &[u8],
        end: u64,
    ) -> io::Result<bool> {
        let file = OpenOptions::new().read(from.is_some()).write(true).open(path)?;
        if let Some(from) = from {
            let mut found = Vec::new();
            (&file).take(from.len() as u64 + 1).read_to_end(&mut found)?;
            if found != from {
                return Ok(false);
            }
        }
        file.write_all_at(bytes, at)?;
        file.set_len(end)?;
        file.sync_all()?;
        Ok(true)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o755).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn may_run(&self, dir: &Path) -> io::Result<bool> {
        Ok(!rustix::fs::statvfs(dir)?.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

fn is_link(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_symlink())
}

fn fill(file: &File, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    let mut writer = file;
    writer.write_all(bytes)?;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != attributes.owner {
        fchown(file, Some(attributes.owner.0), Some(attributes.owner.1))?;
    }
    file.set_permissions(Permissions::from_mode(attributes.mode))?;
    if let Some(label) = &attributes.label {
        let mut now = vec![0; MAX_LABEL];
        let has = rustix::fs::fgetxattr(file, LABEL, &mut now[..]);
        // A label that is right already need not be set, which takes a privilege.
        if has.ok().and_then(|length| now.get(..length)) != Some(label) {
            rustix::fs::fsetxattr(file, LABEL, label, XattrFlags::empty())?;
        }
    }
    file.sync_all()
}
