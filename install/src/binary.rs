//! The plugin's file on the node: there before our entry is, and never rewritten when it is the same.

use crate::disk::{Attributes, Disk, Kind, Stamp};
use crate::write::put;
use sluice_shared::conflist::PLUGIN_TYPE;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The mode of a plugin.
const MODE: u32 = 0o755;
/// The largest plugin that is taken, in bytes.
const MAX_PLUGIN: usize = 64 * 1024 * 1024;

/// The plugin's file.
#[derive(Debug)]
pub struct Binary {
    path: PathBuf,
    bytes: Vec<u8>,
    /// What it was when it was right.
    right: Option<Stamp>,
}

impl Binary {
    /// Reads the plugin that is to be put into `bin_dir`.
    pub fn read(disk: &impl Disk, plugin: &Path, bin_dir: &Path) -> io::Result<Self> {
        let bytes = disk.read(plugin, MAX_PLUGIN)?;
        if bytes.is_empty() || bytes.len() > MAX_PLUGIN {
            return Err(io::Error::other(format!("it has {} bytes, which no plugin has", bytes.len())));
        }
        Ok(Self { path: bin_dir.join(PLUGIN_TYPE), bytes, right: None })
    }

    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it into its place, unless it is there. Gives whether it was written.
    pub fn ensure(&mut self, disk: &impl Disk) -> io::Result<bool> {
        let dir = self.path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
        if !disk.may_run(dir)? {
            return Err(io::Error::other("programs in it may not be run (noexec)"));
        }
        let now = disk.stamp(&self.path);
        if now.as_ref().is_ok_and(|now| Some(*now) == self.right) {
            return Ok(false);
        }
        self.right = None;
        let there = match now {
            Ok(stamp) => stamp.mode == MODE && disk.read(&self.path, self.bytes.len())? == self.bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if !there {
            put(disk, &self.path, &self.bytes, &self.attributes(disk, dir)?)?;
        }
        self.right = Some(disk.stamp(&self.path)?);
        Ok(!there)
    }

    /// Whether something is in its place that a runtime could run.
    pub fn is_there(&self, disk: &impl Disk) -> bool {
        disk.stamp(&self.path).is_ok_and(|stamp| stamp.size > 0 && stamp.mode & 0o111 != 0)
    }

    /// The label of what it replaces, else of another plugin.
    fn attributes(&self, disk: &impl Disk, dir: &Path) -> io::Result<Attributes> {
        let old = match disk.attributes(&self.path) {
            Ok(old) => Some(old),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let names = disk.names(dir)?;
                let neighbour =
                    names.iter().find(|(name, kind)| *kind == Kind::File && !name.starts_with('.'));
                neighbour.and_then(|(name, _)| disk.attributes(&dir.join(name)).ok())
            }
            Err(e) => return Err(e),
        };
        Ok(Attributes { mode: MODE, owner: (0, 0), label: old.and_then(|old| old.label) })
    }
}
