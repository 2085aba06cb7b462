//! Directories as they were, to be compared with what they are.

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Names, modes and contents of a directory and those below it; a directory has no content.
pub type Snapshot = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

/// Fails unless both are the same, and says where they are not.
pub fn same(before: &Snapshot, now: &Snapshot) -> Result<()> {
    let text = |found: Option<&(u32, Option<Vec<u8>>)>| {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        found.map(|(mode, bytes)| (format!("{mode:o}"), bytes.as_ref().map(text)))
    };
    let odd: Vec<_> = before
        .keys()
        .chain(now.keys())
        .filter(|path| before.get(*path) != now.get(*path))
        .map(|path| {
            format!("{}: was {:?}, is {:?}", path.display(), text(before.get(path)), text(now.get(path)))
        })
        .collect();
    ensure!(odd.is_empty(), "it is not as it was: {}", odd.join("; "));
    Ok(())
}

/// Adds what is below a directory.
pub fn collect(dir: &Path, found: &mut Snapshot) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            found.insert(path.clone(), (mode, None));
            collect(&path, found)?;
        } else if let Ok(bytes) = fs::read(&path) {
            found.insert(path, (mode, Some(bytes)));
        }
    }
    Ok(())
}
