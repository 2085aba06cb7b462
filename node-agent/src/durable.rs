//! Files that are whole or not there: temporary file, optionally fsync, rename, fsync of the directory.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Whether a file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// File and directory are flushed to disk.
    Yes,
    /// It is enough that a reader sees the old or the new one (a tmpfs).
    No,
}

/// Puts `bytes` in the place of `path`, mode 0600.
///
/// # Errors
/// When any step fails; the old file is then still there, whole.
pub fn replace(path: &Path, bytes: &[u8], sync: Sync) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let mut file = tempfile::Builder::new().prefix(".sluice-").suffix(".tmp").tempfile_in(dir)?;
    file.write_all(bytes)?;
    if sync == Sync::Yes {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|e| e.error)?;
    if sync == Sync::Yes {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Makes a directory, and its parents, that only we can enter.
///
/// # Errors
/// When it cannot be made, or its mode cannot be set.
pub fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}
