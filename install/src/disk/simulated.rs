//! A disk in memory that loses power, or fills up, at a chosen operation.
//!
//! What is in a directory counts as lost in a power cut until the directory is flushed, and also as kept: both are
//! looked at, since a file system may do either. A file's bytes are flushed as it is made.

use super::{Attributes, Disk, Kind, Stamp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

type Tree = BTreeMap<PathBuf, Node>;
/// Bytes, mode and label of each file; `None` for a directory.
pub type Listing = BTreeMap<PathBuf, Option<(Vec<u8>, u32, Option<Vec<u8>>)>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File { bytes: Vec<u8>, attributes: Attributes, inode: u64 },
    Directory,
}

/// The disk. Clones are independent.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    tree: RefCell<Tree>,
    flushed: RefCell<Tree>,
    /// Changes that were made.
    operations: Cell<usize>,
    /// The operation from which on nothing works any more.
    pub dies_at: Cell<Option<usize>>,
    /// Whether nothing that needs room works.
    pub full: Cell<bool>,
    inodes: Cell<u64>,
}

impl Simulated {
    /// A disk with these files and the directories that they are in.
    pub fn with(files: &[(&str, &str, u32)]) -> Self {
        let disk = Self::default();
        for (path, text, mode) in files {
            disk.put_there(path, text.as_bytes(), *mode);
        }
        disk.flushed.replace(disk.tree.borrow().clone());
        disk
    }

    /// Somebody else writes a file, and it is on the disk at once.
    pub fn put_there(&self, path: &str, bytes: &[u8], mode: u32) {
        for dir in Path::new(path).ancestors().skip(1) {
            self.tree.borrow_mut().insert(dir.to_path_buf(), Node::Directory);
        }
        let attributes = Attributes { mode, owner: (0, 0), label: Some(b"etc_t".to_vec()) };
        let node = Node::File { bytes: bytes.to_vec(), attributes, inode: self.next_inode() };
        self.tree.borrow_mut().insert(path.into(), node);
        self.flushed.replace(self.tree.borrow().clone());
    }

    /// What is below `dir`.
    pub fn below(&self, dir: &str) -> Listing {
        let tree = self.tree.borrow();
        let below = tree.iter().filter(|(path, _)| path.starts_with(dir) && *path != Path::new(dir));
        let plain = |node: &Node| match node {
            Node::File { bytes, attributes, .. } => {
                Some((bytes.clone(), attributes.mode, attributes.label.clone()))
            }
            Node::Directory => None,
        };
        below.map(|(path, node)| (path.clone(), plain(node))).collect()
    }

    pub fn operations(&self) -> usize {
        self.operations.get()
    }

    /// After a crash of the program: what it has done is there.
    pub fn after_crash(&self) -> Self {
        let tree = self.tree.borrow().clone();
        self.renewed(tree)
    }

    /// After a power cut in which nothing survived that was not flushed.
    pub fn after_power_cut(&self) -> Self {
        let tree = self.flushed.borrow().clone();
        self.renewed(tree)
    }

    fn renewed(&self, tree: Tree) -> Self {
        let (tree, flushed) = (RefCell::new(tree.clone()), RefCell::new(tree));
        Self { tree, flushed, inodes: self.inodes.clone(), ..Self::default() }
    }

    fn next_inode(&self) -> u64 {
        self.inodes.set(self.inodes.get() + 1);
        self.inodes.get()
    }

    /// Counts a change, unless the disk is dead.
    fn change(&self, needs_room: bool) -> io::Result<()> {
        if self.dies_at.get().is_some_and(|at| self.operations.get() >= at) {
            return Err(io::Error::other("the power is gone"));
        }
        if needs_room && self.full.get() {
            return Err(ErrorKind::StorageFull.into());
        }
        self.operations.set(self.operations.get() + 1);
        Ok(())
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        self.tree.borrow().get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn file(&self, path: &Path) -> io::Result<(Vec<u8>, Attributes, u64)> {
        match self.node(path)? {
            Node::File { bytes, attributes, inode } => Ok((bytes, attributes, inode)),
            Node::Directory => Err(ErrorKind::IsADirectory.into()),
        }
    }

    /// Moves a node and all below it.
    fn transplant(tree: &mut Tree, from: &Path, to: &Path) {
        let moved: Vec<_> = tree.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let rest = path.strip_prefix(from).unwrap().to_path_buf();
            let node = tree.remove(&path).unwrap();
            let path = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            tree.insert(path, node);
        }
    }
}

impl Disk for Simulated {
    fn names(&self, dir: &Path) -> io::Result<Vec<(String, Kind)>> {
        self.node(dir)?;
        let tree = self.tree.borrow();
        let children = tree.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(children
            .map(|(path, node)| {
                let kind = if matches!(node, Node::Directory) { Kind::Directory } else { Kind::File };
                (path.file_name().unwrap().to_str().unwrap().to_owned(), kind)
            })
            .collect())
    }

    fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let (bytes, _, _) = self.file(path)?;
        Ok(bytes[..bytes.len().min(most + 1)].to_vec())
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        Ok(match self.node(path)? {
            Node::Directory => Stamp { inode: (0, 0), size: 0, changed: (0, 0), mode: 0o755 },
            Node::File { bytes, attributes, inode } => {
                Stamp { inode: (1, inode), size: bytes.len() as u64, changed: (0, 0), mode: attributes.mode }
            }
        })
    }

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        match self.node(path)? {
            Node::File { attributes, .. } => Ok(attributes),
            Node::Directory => Ok(Attributes { mode: 0o755, owner: (0, 0), label: Some(b"etc_t".to_vec()) }),
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.node(path).map(|_| path.to_path_buf())
    }

    fn create(&self, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
        self.node(path.parent().unwrap())?;
        if self.node(path).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.change(true)?;
        let node =
            Node::File { bytes: bytes.to_vec(), attributes: attributes.clone(), inode: self.next_inode() };
        self.tree.borrow_mut().insert(path.to_path_buf(), node);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.node(from)?;
        self.change(false)?;
        Self::transplant(&mut self.tree.borrow_mut(), from, to);
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let (first, second) = (self.node(one)?, self.node(other)?);
        self.change(false)?;
        let mut tree = self.tree.borrow_mut();
        tree.insert(one.to_path_buf(), second);
        tree.insert(other.to_path_buf(), first);
        Ok(())
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8], length: u64) -> io::Result<()> {
        let (mut content, attributes, inode) = self.file(path)?;
        let offset = usize::try_from(offset).unwrap();
        let put = |content: &Vec<u8>| {
            let node = Node::File { bytes: content.clone(), attributes: attributes.clone(), inode };
            // The file's own bytes: on the disk under whatever name it has there.
            self.tree.borrow_mut().insert(path.to_path_buf(), node.clone());
            if self.flushed.borrow().contains_key(path) {
                self.flushed.borrow_mut().insert(path.to_path_buf(), node);
            }
        };
        self.change(offset + bytes.len() > content.len())?;
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(&content);
        self.change(false)?;
        content.truncate(usize::try_from(length).unwrap());
        put(&content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.change(false)?;
        self.tree.borrow_mut().remove(path);
        Ok(())
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.change(true)?;
        self.tree.borrow_mut().insert(path.to_path_buf(), Node::Directory);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.node(path)?;
        if !self.names(path)?.is_empty() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        self.change(false)?;
        self.tree.borrow_mut().remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.node(dir)?;
        self.change(false)?;
        let tree = self.tree.borrow();
        let mut flushed = self.flushed.borrow_mut();
        let child = |path: &PathBuf| path.parent() == Some(dir);
        flushed.retain(|path, _| !child(path) || tree.contains_key(path));
        // A directory that comes in takes along what it had when it was flushed itself: all, here.
        let new: Vec<_> =
            tree.keys().filter(|path| child(path) && !flushed.contains_key(*path)).cloned().collect();
        for (path, node) in tree.iter() {
            if child(path) || new.iter().any(|new| path.starts_with(new)) {
                flushed.insert(path.clone(), node.clone());
            }
        }
        // What was in a directory that is gone is gone.
        let gone: Vec<_> = flushed
            .keys()
            .filter(|path| {
                path.parent().is_some_and(|parent| parent.starts_with(dir) && !flushed.contains_key(parent))
            })
            .cloned()
            .collect();
        gone.iter().for_each(|path| drop(flushed.remove(path)));
        Ok(())
    }

    fn may_run(&self, dir: &Path) -> io::Result<bool> {
        self.node(dir).map(|_| true)
    }
}
