//! Reads the netconf, within bounds of length and time.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The longest netconf, in bytes. A real one has a few thousand.
pub const MAX_STDIN: usize = 1024 * 1024;
/// How much is read at once, in bytes: more than a usual netconf.
const CHUNK: usize = 16 * 1024;

/// Why stdin could not be read.
#[derive(Debug)]
pub enum StdinError {
    /// More than [`MAX_STDIN`].
    TooLong,
    /// Still open at the deadline. What had come until then is here.
    StillOpen(Vec<u8>),
    /// The read failed.
    Failed(io::Error),
}

/// Reads to the end.
pub fn read(within: Duration) -> Result<Vec<u8>, StdinError> {
    let stdin = io::stdin();
    let deadline = Instant::now() + within;
    let mut bytes = Vec::with_capacity(2 * CHUNK);
    let mut filled = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(StdinError::StillOpen(bytes)),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(StdinError::Failed(e.into())),
        }
        bytes.resize(filled + CHUNK, 0);
        let read = nix::unistd::read(&stdin, &mut bytes[filled..]);
        filled += *read.as_ref().unwrap_or(&0);
        bytes.truncate(filled);
        match read {
            Ok(0) => return Ok(bytes),
            Ok(_) if filled > MAX_STDIN => return Err(StdinError::TooLong),
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(StdinError::Failed(e.into())),
        }
    }
}
