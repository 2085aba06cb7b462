//! How files of a node are read: whatever is there in their place, it neither blocks nor fills the memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The longest file of /proc that is read, in bytes: mounts of a node with thousands of pods.
const MAX_PROC: usize = 16 * 1024 * 1024;
/// How much of two files is compared at a time, in bytes.
const CHUNK: u64 = 64 * 1024;

/// All of a file of no more than `most` bytes.
pub(super) fn bytes(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// The same of a file that is text.
pub(super) fn text(path: &Path, most: usize) -> io::Result<String> {
    String::from_utf8(bytes(path, most)?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// A file of /proc.
pub(super) fn proc(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(path, MAX_PROC)?).into_owned())
}

/// Whether two files have the same bytes.
pub(super) fn are_equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (open(one)?, open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    loop {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        one.by_ref().take(CHUNK).read_to_end(&mut here)?;
        other.by_ref().take(CHUNK).read_to_end(&mut there)?;
        if here != there {
            return Ok(false);
        }
        if here.is_empty() {
            return Ok(true);
        }
    }
}

/// A regular file. A FIFO would wait for a writer, and a device do something when it is opened.
fn open(path: &Path) -> io::Result<File> {
    let no_file = || io::Error::new(ErrorKind::InvalidInput, "it is no regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(no_file());
    }
    // It may have been replaced meanwhile.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}
