//! A tar whose bytes depend on nothing but what is put in: all of it is root's and was last changed at one time.

use anyhow::Context;
use tar::{Builder, EntryType, Header};

/// A tar that is being written.
pub struct Tarball {
    builder: Builder<Vec<u8>>,
    epoch: u64,
}

impl Tarball {
    /// An empty one, whose entries were last changed at `epoch` (seconds since 1970).
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { builder: Builder::new(Vec::new()), epoch }
    }

    /// Appends a directory.
    ///
    /// # Errors
    /// When its path does not fit into a header.
    pub fn directory(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        self.append(&format!("{path}/"), EntryType::Directory, mode, &[])
    }

    /// Appends a file.
    ///
    /// # Errors
    /// When its path does not fit into a header.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        self.append(path, EntryType::Regular, mode, bytes)
    }

    /// The tar's bytes.
    ///
    /// # Errors
    /// When its end cannot be written.
    pub fn finish(self) -> anyhow::Result<Vec<u8>> {
        self.builder.into_inner().context("cannot end the tar")
    }

    fn append(&mut self, path: &str, kind: EntryType, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.epoch);
        header.set_size(bytes.len() as u64);
        header.set_path(path).with_context(|| format!("{path} does not fit into a tar header"))?;
        header.set_cksum();
        self.builder.append(&header, bytes).with_context(|| format!("cannot pack {path}"))
    }
}
