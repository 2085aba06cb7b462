//! What is said: a log on stderr, answers on stdout. Whoever reads may be gone, as `head` is once it has enough, and a
//! runtime that is started anew: nothing that is done on the node depends on it.

use anyhow::Context;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};

/// A line of the log. `eprintln!` panics where nobody reads, in the middle of whatever is under way.
macro_rules! log {
    ($($words:tt)*) => {
        $crate::output::line(format_args!($($words)*))
    };
}
pub(crate) use log;

/// Behind [`log!`]. A whole line at once: the agent's and ours may share a terminal.
pub fn line(words: Arguments<'_>) {
    let _ = stderr().write_all(format!("{words}\n").as_bytes());
}

/// Prints an answer, as far as somebody reads it.
///
/// # Errors
/// When it cannot be written for another reason, as to a file on a full disk.
pub fn answer(said: &[u8]) -> anyhow::Result<()> {
    let mut out = stdout();
    match out.write_all(said).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}
