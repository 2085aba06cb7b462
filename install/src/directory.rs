//! The configuration directory: looked at, and changed one step at a time.

use crate::disk::{Attributes, Disk, Kind};
use crate::exchange::{is_aside, settle, swap};
use crate::write::{Change, is_temporary, no_room, put, shrink, temporary_in};
use sluice_shared::conflist::{
    DROP_IN_FILE, Directory, DropIn, File, MAX_CONFLIST, Step, is_configuration, is_parked,
};
use std::io::{self, ErrorKind};
use std::path::Path;

/// What a drop-in gets that has no neighbour to be like.
const PLAIN: Attributes = Attributes { mode: 0o644, owner: (0, 0), label: None };

/// What is in the directory.
pub fn look(disk: &impl Disk, dir: &Path) -> io::Result<Directory> {
    let mut found = Directory::default();
    for (name, kind) in disk.names(dir)? {
        match kind {
            Kind::File if is_configuration(&name) || is_parked(&name) => {
                if let Some(text) = read(disk, &dir.join(&name)) {
                    found.files.push(File { name, text });
                }
            }
            Kind::Directory if !is_temporary(&name) => {
                if let Some(text) = read(disk, &dir.join(&name).join(DROP_IN_FILE)) {
                    found.drop_ins.push(DropIn { network: name, text });
                }
            }
            Kind::File | Kind::Directory | Kind::Other => {}
        }
    }
    Ok(found)
}

/// Makes one change.
pub fn apply(disk: &impl Disk, dir: &Path, step: &Step) -> io::Result<Change> {
    match step {
        Step::Edit { file, from, to } => edit(disk, &dir.join(file), from, to, step.takes_away()),
        Step::PutOwned { file, text, like } => match disk.attributes(&dir.join(like)) {
            Ok(attributes) => put(disk, &dir.join(file), text.as_bytes(), &attributes).map(|()| Change::Made),
            // The primary's file went away meanwhile, and our list may not outlive it.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Change::Overtaken),
            Err(e) => Err(e),
        },
        Step::RemoveOwned { file } | Step::RemoveIstios { file } => {
            gone(disk.remove(&dir.join(file)))?;
            disk.sync_dir(dir).map(|()| Change::Made)
        }
        Step::PutDropIn { network, text } => put_drop_in(disk, dir, network, text).map(|()| Change::Made),
        Step::RemoveDropIn { network } => remove_drop_in(disk, dir, network).map(|()| Change::Made),
    }
}

/// Ends changes that a crash or an error has broken off, and removes temporary files.
pub fn sweep(disk: &impl Disk, dir: &Path) -> io::Result<()> {
    settle(disk, dir, None)?;
    for (name, kind) in disk.names(dir)? {
        let path = dir.join(&name);
        match kind {
            Kind::Directory if is_temporary(&name) => empty(disk, &path)?,
            Kind::Directory => {
                let inner = disk.names(&path).unwrap_or_default();
                for (name, _) in inner.into_iter().filter(|(name, _)| is_temporary(name)) {
                    gone(disk.remove(&path.join(name)))?;
                }
            }
            // One that is still there is of a change that goes on.
            _ if is_temporary(&name) && !is_aside(&name) => gone(disk.remove(&path))?,
            Kind::File if is_configuration(&name) => settle_behind(disk, dir, &path)?,
            _ => {}
        }
    }
    Ok(())
}

/// A link's file is changed where it is.
fn settle_behind(disk: &impl Disk, dir: &Path, path: &Path) -> io::Result<()> {
    let Ok(file) = disk.resolve(path) else { return Ok(()) };
    match (file.parent(), file.file_name().and_then(|name| name.to_str())) {
        (Some(other), Some(name)) if other != dir => settle(disk, other, Some(name)),
        _ => Ok(()),
    }
}

/// A file's text, or why it has none; `None` when it is not there.
fn read(disk: &impl Disk, path: &Path) -> Option<Result<String, String>> {
    match disk.read(path, MAX_CONFLIST) {
        Ok(bytes) => Some(String::from_utf8(bytes).map_err(|e| e.to_string())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(e) => Some(Err(e.to_string())),
    }
}

/// A full disk keeps our entry from going in, never from going out.
fn edit(disk: &impl Disk, path: &Path, from: &str, to: &str, takes_away: bool) -> io::Result<Change> {
    match swap(disk, path, from.as_bytes(), to.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Change::Overtaken),
        Err(e) if no_room(&e) && takes_away => shrink(disk, path, from.as_bytes(), to.as_bytes()),
        result => result,
    }
}

/// Runtimes watch the directory and not those below it. A new one comes into its place with the file in it, so that
/// the runtime looks when all is there; for one that is there already, something comes and goes beside it.
fn put_drop_in(disk: &impl Disk, dir: &Path, network: &str, text: &str) -> io::Result<()> {
    let place = dir.join(network);
    let attributes = Attributes { label: disk.attributes(dir).ok().and_then(|dir| dir.label), ..PLAIN };
    if disk.stamp(&place).is_ok() {
        put(disk, &place.join(DROP_IN_FILE), text.as_bytes(), &attributes)?;
        return nudge(disk, dir);
    }
    let temporary = temporary_in(dir);
    let made = disk
        .make_dir(&temporary)
        .and_then(|()| disk.create(&temporary.join(DROP_IN_FILE), text.as_bytes(), &attributes))
        .and_then(|()| disk.sync_dir(&temporary))
        .and_then(|()| disk.rename(&temporary, &place));
    if made.is_err() {
        let _ = disk.remove(&temporary.join(DROP_IN_FILE));
        let _ = disk.remove_dir(&temporary);
    }
    made.and_then(|()| disk.sync_dir(dir))
}

/// The directory of which nothing but our file is left goes with it, in one step: a crash leaves no empty one.
fn remove_drop_in(disk: &impl Disk, dir: &Path, network: &str) -> io::Result<()> {
    let place = dir.join(network);
    let others =
        disk.names(&place)?.into_iter().any(|(name, _)| name != DROP_IN_FILE && !is_temporary(&name));
    if others {
        gone(disk.remove(&place.join(DROP_IN_FILE)))?;
        disk.sync_dir(&place)?;
        return nudge(disk, dir);
    }
    let temporary = temporary_in(dir);
    disk.rename(&place, &temporary)?;
    disk.sync_dir(dir)?;
    empty(disk, &temporary)
}

/// Removes a directory and the files in it.
fn empty(disk: &impl Disk, dir: &Path) -> io::Result<()> {
    for (name, _) in disk.names(dir)? {
        gone(disk.remove(&dir.join(name)))?;
    }
    gone(disk.remove_dir(dir))
}

/// Best effort: a runtime that does not look now does so at the next change, or when it starts.
fn nudge(disk: &impl Disk, dir: &Path) -> io::Result<()> {
    let temporary = temporary_in(dir);
    if disk.make_dir(&temporary).is_ok() {
        disk.remove_dir(&temporary)?;
    }
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
