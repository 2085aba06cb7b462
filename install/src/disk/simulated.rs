//! A disk in memory that loses power, or fills up, at a chosen operation, and that others write to between any two.
//!
//! What is in a directory counts as lost in a power cut until the directory is flushed, and also as kept: both are
//! looked at, since a file system may do either. A file's bytes are flushed as it is made.

use super::{Attributes, Disk, Kind, Stamp};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
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

/// What somebody else does to a file, in one system call. What he writes is on the disk at once.
#[derive(Clone, Debug)]
pub enum Act {
    /// Another file is renamed onto it.
    Replace(&'static str, Vec<u8>),
    /// It is opened for writing: emptied, or made when it is not there.
    Truncate(&'static str),
    /// More is written to the file that was opened, wherever that is by now.
    Write(Vec<u8>),
    /// It is removed.
    Remove(&'static str),
}

/// The disk. Clones are independent.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    tree: RefCell<Tree>,
    flushed: RefCell<Tree>,
    /// Changes that were made.
    operations: Cell<usize>,
    /// Our calls, reading ones too.
    calls: Cell<usize>,
    /// How many changes had been made at each of them.
    made: RefCell<Vec<usize>>,
    /// What others do, and before which of our calls.
    others: RefCell<VecDeque<(usize, Act)>>,
    /// The file that somebody else has open.
    opened: Cell<Option<u64>>,
    /// The operation from which on nothing works any more.
    pub dies_at: Cell<Option<usize>>,
    /// Whether that operation was wanted.
    pub dead: Cell<bool>,
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

    pub fn calls(&self) -> usize {
        self.calls.get()
    }

    /// How many changes this program had made at a call.
    pub fn operations_at(&self, call: usize) -> usize {
        let before = self.calls.get() - self.made.borrow().len();
        let made = self.made.borrow().get(call - before).copied();
        made.unwrap_or_else(|| self.operations.get())
    }

    /// Somebody else acts, before the calls of these numbers.
    pub fn meanwhile(&self, acts: impl IntoIterator<Item = (usize, Act)>) {
        self.others.borrow_mut().extend(acts);
    }

    /// Somebody else does all that he has not done yet.
    pub fn others_end(&self) {
        let rest: Vec<_> = self.others.borrow_mut().drain(..).collect();
        rest.into_iter().for_each(|(_, act)| self.act(act));
    }

    /// One more call of ours; who wanted to act before it does.
    fn call(&self) {
        while self.others.borrow().front().is_some_and(|(at, _)| *at <= self.calls.get()) {
            let next = self.others.borrow_mut().pop_front();
            next.into_iter().for_each(|(_, act)| self.act(act));
        }
        self.calls.set(self.calls.get() + 1);
        self.made.borrow_mut().push(self.operations.get());
    }

    fn act(&self, act: Act) {
        match act {
            Act::Replace(path, bytes) => self.put_there(path, &bytes, 0o600),
            Act::Truncate(path) => {
                let there = self.tree.borrow().get(Path::new(path)).cloned();
                if let Some(Node::File { inode, .. }) = there {
                    self.opened.set(Some(inode));
                    self.write_to(inode, Vec::clear);
                } else {
                    self.put_there(path, b"", 0o600);
                    self.opened.set(Some(self.inodes.get()));
                }
            }
            Act::Write(more) => {
                let opened = self.opened.get().expect("a file is open");
                self.write_to(opened, |bytes| bytes.extend(more.iter()));
            }
            Act::Remove(path) => {
                self.tree.borrow_mut().remove(Path::new(path));
                self.flushed.replace(self.tree.borrow().clone());
            }
        }
    }

    /// By the inode: under whatever name it is, here and on the disk; under none it is lost.
    fn write_to(&self, file: u64, write: impl Fn(&mut Vec<u8>)) {
        for tree in [&self.tree, &self.flushed] {
            for node in tree.borrow_mut().values_mut() {
                match node {
                    Node::File { bytes, inode, .. } if *inode == file => write(bytes),
                    _ => {}
                }
            }
        }
    }

    /// After a crash of the program: what it has done is there, and others go on.
    pub fn after_crash(&self) -> Self {
        let tree = self.tree.borrow().clone();
        Self {
            calls: self.calls.clone(),
            others: self.others.clone(),
            opened: self.opened.clone(),
            ..self.renewed(tree)
        }
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
            self.dead.set(true);
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
        self.call();
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
        self.call();
        let (bytes, _, _) = self.file(path)?;
        Ok(bytes[..bytes.len().min(most + 1)].to_vec())
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        self.call();
        Ok(match self.node(path)? {
            Node::Directory => Stamp { inode: (0, 0), size: 0, changed: (0, 0), mode: 0o755 },
            Node::File { bytes, attributes, inode } => {
                Stamp { inode: (1, inode), size: bytes.len() as u64, changed: (0, 0), mode: attributes.mode }
            }
        })
    }

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        self.call();
        match self.node(path)? {
            Node::File { attributes, .. } => Ok(attributes),
            Node::Directory => Ok(Attributes { mode: 0o755, owner: (0, 0), label: Some(b"etc_t".to_vec()) }),
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.node(path).map(|_| path.to_path_buf())
    }

    fn create(&self, path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
        self.call();
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
        self.call();
        self.node(from)?;
        self.change(false)?;
        Self::transplant(&mut self.tree.borrow_mut(), from, to);
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.call();
        let (first, second) = (self.node(one)?, self.node(other)?);
        self.change(false)?;
        let mut tree = self.tree.borrow_mut();
        tree.insert(one.to_path_buf(), second);
        tree.insert(other.to_path_buf(), first);
        Ok(())
    }

    fn overwrite(
        &self,
        path: &Path,
        from: Option<&[u8]>,
        at: u64,
        bytes: &[u8],
        end: u64,
    ) -> io::Result<bool> {
        self.call();
        let (content, _, inode) = self.file(path)?;
        if from.is_some_and(|from| from != content) {
            return Ok(false);
        }
        let (at, end) = (usize::try_from(at).unwrap(), usize::try_from(end).unwrap());
        self.call();
        self.change(at + bytes.len() > content.len())?;
        self.write_to(inode, |content| {
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(bytes);
        });
        self.change(false)?;
        self.write_to(inode, |content| content.truncate(end));
        Ok(true)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call();
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
        self.call();
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
