//! What the kernel lets this process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;

/// Raises the limit of open files to the hard limit, and says what it is now. The soft limit is often 1024, while a node of
/// 500 pods needs a descriptor for each pod's namespace, and two for each ADD that waits.
///
/// # Errors
/// The kernel's. The limit is then what it was.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}
