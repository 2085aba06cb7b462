//! Takes everything off the node, however much of it is there: after it the directory is as it was before us.

use crate::directory::{apply, look, sweep};
use crate::disk::{Disk, Kind};
use crate::notes::{Clock, Notes};
use crate::options::{Leftover, Paths};
use crate::output::log;
use anyhow::{Context, bail};
use sluice_shared::conflist::{ConflistError, File, PLUGIN_TYPE, contains, leave};
use std::io::ErrorKind;
use std::path::Path;

/// How often a directory that others write at the same time is looked at anew.
const LOOKS: usize = 50;
/// The longest cached attachment that is read, in bytes.
const MAX_CACHED: usize = 1024 * 1024;

/// Takes off everything but the plugin's file: entry and notes. Nothing of it being there is success too.
///
/// The lease is given up first, so that a failure further on holds no pod back.
pub fn remove(disk: &impl Disk, paths: &Paths, clock: &Clock) -> anyhow::Result<()> {
    let notes = Notes { disk, paths };
    let released =
        notes.release(clock).with_context(|| format!("cannot give up {}", paths.lease().display()));
    take_out(disk, &paths.conf_dir)?;
    released?;
    notes.remove_all().with_context(|| format!("cannot empty {}", paths.host_state_dir.display()))
}

/// Removes the plugin's file, as `leftover` says. An attachment that has begun with our entry in the chain must have
/// ended before, or it fails for want of the plugin.
pub fn remove_plugin(
    disk: &impl Disk,
    paths: &Paths,
    leftover: Leftover,
    cni_cache: &Path,
) -> anyhow::Result<()> {
    let binary = paths.bin_dir.join(PLUGIN_TYPE);
    sweep_if_there(disk, &paths.bin_dir)?;
    let goes = match leftover {
        Leftover::Keep => false,
        Leftover::Remove => true,
        Leftover::Auto => !is_cached(disk, cni_cache),
    };
    if !goes {
        log!("{} stays: pods' cached attachments may name it", binary.display());
        return Ok(());
    }
    match disk.remove(&binary) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            // Without an entry nobody runs it.
            log!("{} cannot be removed: {e}; it does no harm", binary.display());
        }
        _ => {}
    }
    Ok(())
}

/// Takes our entry out of the directory, wherever it is in it.
pub fn take_out(disk: &impl Disk, dir: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot take our entry out of {}", dir.display());
    for _ in 0..LOOKS {
        // What an earlier write has left may be somebody's newest version.
        sweep_if_there(disk, dir).with_context(cannot)?;
        let directory = match look(disk, dir) {
            Ok(directory) => directory,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(cannot),
        };
        let steps = leave(&directory);
        if steps.is_empty() {
            if let Some((name, why)) = directory.files.iter().find_map(unclear) {
                bail!("{}: {name} cannot be understood: {why}", cannot());
            }
            return sweep_if_there(disk, dir).with_context(cannot);
        }
        for step in &steps {
            apply(disk, dir, step).with_context(cannot)?;
        }
    }
    bail!("{}: somebody puts it back again and again", cannot())
}

/// A file that may have our entry, and cannot be read: half written, perhaps.
fn unclear(file: &File) -> Option<(&str, String)> {
    match &file.text {
        Err(why) => Some((&file.name, why.clone())),
        Ok(text) if text.contains(PLUGIN_TYPE) => {
            let why = contains(text).err().filter(ConflistError::may_pass)?;
            Some((&file.name, why.to_string()))
        }
        Ok(_) => None,
    }
}

fn sweep_if_there(disk: &impl Disk, dir: &Path) -> anyhow::Result<()> {
    match sweep(disk, dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove temporary files from {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Whether an attachment that libcni has cached names our plugin: CRI-O and Multus delete a pod by it. What cannot be
/// read counts as "yes".
fn is_cached(disk: &impl Disk, cache: &Path) -> bool {
    let Ok(names) = disk.names(cache) else { return true };
    names.iter().filter(|(_, kind)| *kind == Kind::File).any(|(name, _)| {
        match disk.read(&cache.join(name), MAX_CACHED) {
            Ok(bytes) => names_us(&bytes),
            Err(e) => e.kind() != ErrorKind::NotFound,
        }
    })
}

/// The list is in it as base64, and our name at one of three offsets.
fn names_us(bytes: &[u8]) -> bool {
    let forms: [&[u8]; 4] = [PLUGIN_TYPE.as_bytes(), b"c2x1aWNlLWNu", b"NsdWljZS1jbm", b"zbHVpY2UtY25p"];
    forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == *form))
}
