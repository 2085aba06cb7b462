//! What holds a pod's namespaces open: the first process of its sandbox.
//!
//! It waits for SIGTERM or SIGINT and then ends at once. As the first process of a pid namespace it also takes in those
//! whose parents have ended, in pods that share one.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::process::ExitCode;

fn main() -> ExitCode {
    match pause() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pause: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Signals are taken one by one rather than handled: the kernel drops those that a namespace's first process would
/// leave to their default.
fn pause() -> nix::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]);
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        reap();
    }
    Ok(())
}

/// One SIGCHLD may stand for many.
fn reap() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
    {
    }
}
