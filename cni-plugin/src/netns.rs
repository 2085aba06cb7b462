//! Opens the pod's network namespace.

use crate::answer::Failure;
use nix::fcntl::OFlag;
use sluice_shared::cni::code;
use sluice_shared::ids::NetnsId;
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Our own namespace. A runtime starts plugins in the host's.
const OWN: &str = "/proc/self/ns/net";

/// Opens `path`, which must be a namespace and not ours.
///
/// Whether it is a *network* namespace only an ioctl can say; the agent asks it of every descriptor that it takes.
/// Here it is enough that the path leads to nsfs, of which a kernel has exactly one.
pub fn open(path: &str) -> Result<File, Failure> {
    let wrong = |why: String| Failure::new(code::WRONG_NETNS, format!("CNI_NETNS {path:?} {why}"));
    // O_NONBLOCK: opening a FIFO must not hang.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|e| wrong(format!("cannot be opened: {e}")))?;
    let theirs = file
        .metadata()
        .map(|metadata| identity(&metadata))
        .map_err(|e| wrong(format!("cannot be looked at: {e}")))?;
    let ours = std::fs::metadata(OWN)
        .map(|metadata| identity(&metadata))
        .map_err(|e| Failure::new(code::IO_FAILURE, format!("cannot look at {OWN}: {e}")))?;
    if theirs == ours {
        return Err(wrong(format!(
            "is the host's own network namespace ({ours}), which is never redirected"
        )));
    }
    if theirs.dev != ours.dev {
        return Err(wrong("is not a network namespace".to_owned()));
    }
    Ok(file)
}

fn identity(metadata: &Metadata) -> NetnsId {
    NetnsId { dev: metadata.dev(), inode: metadata.ino() }
}
