//! A change of somebody else's file that loses nothing of theirs, whenever it is broken off.
//!
//! The new file and the old one change places (`RENAME_EXCHANGE`), and then what came out is looked at: if it is not
//! what we had read, somebody has written in between, and they change back. The file beside it is the only place of
//! whatever came out, so its name says whose it was, what was put in and what was to come out:
//!
//! ```text
//! .sluice-new-<digest that goes in>-<digest that comes out>-<file>.tmp     it began as ours
//! .sluice-back-<digest that goes in>-<digest that comes out>-<file>.tmp    it is theirs, on its way back
//! ```
//!
//! With that [`settle`] ends what a crash, a power cut or an I/O error has broken off, and the same function ends a
//! change that nobody breaks off: there is no second way.

use crate::disk::Disk;
use crate::write::{Change, TEMPORARY, create, parent};
use sluice_shared::conflist::MAX_CONFLIST;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// How often a file that is written by others at the same time is tried before it is looked at anew.
const ATTEMPTS: usize = 8;
/// As much of a file as its digest is made of, in bytes; whatever we write is shorter.
const MOST: usize = 2 * MAX_CONFLIST;

/// A file beside the one that is changed, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Aside {
    phase: Phase,
    /// What the exchange puts into the file's place.
    goes_in: Digest,
    /// What is to come out, if nobody has come in between.
    comes_out: Digest,
    /// The name of the file that is changed.
    file: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Made by us: until the exchange it is worth nothing.
    New,
    /// Somebody else's, and nowhere else.
    Back,
}

/// FNV-1a, 64 bits: it tells versions of a file apart, and nobody gains by making two that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digest(u64);

/// How an exchange stands at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// What we put in is in.
    In,
    /// What somebody else has written is in.
    Theirs,
}

/// Changes a file of somebody else's from one text to another, keeping mode, owner and label.
pub fn swap(disk: &impl Disk, path: &Path, from: &[u8], to: &[u8]) -> io::Result<Change> {
    let path = &disk.resolve(path)?;
    let (dir, file) = place(path)?;
    settle(disk, dir, Some(file))?;
    let (goes_in, comes_out) = (Digest::of(to), Digest::of(from));
    let aside = Aside { phase: Phase::New, goes_in, comes_out, file: file.to_owned() };
    let beside = aside.path(dir);
    create(disk, &beside, to, &disk.attributes(path)?)?;
    match disk.exchange(&beside, path) {
        Ok(()) => Ok(match settle_one(disk, dir, aside)? {
            End::In => Change::Made,
            End::Theirs => Change::Overtaken,
        }),
        Err(e) => {
            let replaced = match e.kind() {
                ErrorKind::Unsupported => rename_over(disk, &beside, path, from),
                _ => Err(e),
            };
            if replaced.as_ref().ok() != Some(&Change::Made) {
                // What is said is why it failed. What is beside it now stays until it can be settled.
                let _ = settle_one(disk, dir, aside);
            }
            replaced
        }
    }
}

/// Ends what was broken off in `dir`: for one file of it, or for all.
pub fn settle(disk: &impl Disk, dir: &Path, only: Option<&str>) -> io::Result<()> {
    for (name, _) in disk.names(dir)? {
        if let Some(aside) = Aside::parse(&name)
            && only.is_none_or(|only| only == aside.file)
        {
            settle_one(disk, dir, aside)?;
        }
    }
    Ok(())
}

/// Whether [`settle`] is for a file of this name.
pub fn is_aside(name: &str) -> bool {
    Aside::parse(name).is_some()
}

/// Where exchanges are not known: a second look right before, and what is written after it is lost.
fn rename_over(disk: &impl Disk, ours: &Path, path: &Path, from: &[u8]) -> io::Result<Change> {
    if disk.read(path, from.len())? != from {
        return Ok(Change::Overtaken);
    }
    disk.rename(ours, path)?;
    disk.sync_dir(parent(path)?)?;
    Ok(Change::Made)
}

/// Ends one exchange. After an error the file beside stays, since it may be the only one of its kind.
fn settle_one(disk: &impl Disk, dir: &Path, mut aside: Aside) -> io::Result<End> {
    let path = dir.join(&aside.file);
    for _ in 0..ATTEMPTS {
        let beside = aside.path(dir);
        let Some(held) = Digest::read(disk, &beside)? else { return Ok(End::Theirs) };
        let end = if aside.phase == Phase::New { End::In } else { End::Theirs };
        if held == aside.comes_out {
            // Without the directory on disk the old file is the one that a power cut leaves. And whoever was just
            // opening the old one when it went out has had time to begin.
            disk.sync_dir(dir)?;
            if Digest::read(disk, &beside)? == Some(held) {
                return discard(disk, &beside).map(|()| end);
            }
            continue;
        }
        let there = Digest::read(disk, &path)?;
        let newest = match aside.phase {
            // Not exchanged.
            Phase::New if held == aside.goes_in => false,
            // It came out, and since then nobody has written.
            Phase::New => there == Some(aside.goes_in),
            // Not exchanged yet, though it may be written on; or a newer one came out in its place.
            Phase::Back if held == aside.goes_in => there == Some(aside.comes_out),
            Phase::Back => there == Some(aside.comes_out) || there == Some(aside.goes_in),
        };
        let Some(there) = there.filter(|_| newest) else {
            return discard(disk, &beside).map(|()| End::Theirs);
        };
        let back = Aside { phase: Phase::Back, goes_in: held, comes_out: there, file: aside.file.clone() };
        if back != aside {
            disk.rename(&beside, &back.path(dir))?;
            aside = back;
        }
        match disk.exchange(&aside.path(dir), &path) {
            // The file has been removed meanwhile: the next look says so.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            exchanged => exchanged?,
        }
    }
    Err(io::Error::other("it is written by somebody else faster than it can be read"))
}

fn discard(disk: &impl Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn place(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok((parent(path)?, name.ok_or_else(|| io::Error::other("its name is no text"))?))
}

impl Aside {
    fn path(&self, dir: &Path) -> PathBuf {
        let Self { phase, goes_in: Digest(goes_in), comes_out: Digest(comes_out), file } = self;
        let (begin, end) = TEMPORARY;
        dir.join(format!("{begin}{}-{goes_in:016x}-{comes_out:016x}-{file}{end}", phase.as_str()))
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(TEMPORARY.0)?.strip_suffix(TEMPORARY.1)?.splitn(4, '-');
        let phase = parts.next()?;
        let phase = [Phase::New, Phase::Back].into_iter().find(|known| known.as_str() == phase)?;
        let mut digest = || Some(Digest(u64::from_str_radix(parts.next()?, 16).ok()?));
        let (goes_in, comes_out) = (digest()?, digest()?);
        Some(Self { phase, goes_in, comes_out, file: parts.next()?.to_owned() })
    }
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Back => "back",
        }
    }
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        Self(bytes.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME)))
    }

    /// `None` when there is no such file.
    fn read(disk: &impl Disk, path: &Path) -> io::Result<Option<Self>> {
        match disk.read(path, MOST) {
            Ok(bytes) => Ok(Some(Self::of(&bytes))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_was_made_of() {
        for phase in [Phase::New, Phase::Back] {
            let (goes_in, comes_out) = (Digest::of(b"new"), Digest::of(b""));
            let aside = Aside { phase, goes_in, comes_out, file: "10-a-b.conflist".to_owned() };
            let path = aside.path(Path::new("/conf"));
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert_eq!(Aside::parse(name), Some(aside));
            assert!(crate::write::is_temporary(name), "{name}");
        }
        for other in [".sluice-17-0.tmp", ".sluice-new-0-x.tmp", ".sluice-new-1-2.tmp", "10-a.conflist"] {
            assert_eq!(Aside::parse(other), None, "{other}");
        }
        // The published test vectors of FNV-1a.
        assert_eq!(Digest::of(b"a"), Digest(0xaf63_dc4c_8601_ec8c));
        assert_eq!(Digest::of(b"foobar"), Digest(0x8594_4171_f739_67e8));
    }
}
