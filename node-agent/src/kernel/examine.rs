//! What `sluicectl doctor` asks of the kernel: what it can do, and which programs others have put into it.

use super::HostProc;
use super::linux::{loaded, trials};
use sluice_shared::doctor::{BpfFacts, KernelTrials, Look, Trial, Unlooked};
use std::io;

/// Looks at the kernel, and leaves nothing in it.
pub trait Examiner {
    /// What it takes of a pod's plan, in a network namespace made for the purpose. The host's is not entered.
    fn trials(&self) -> Look<KernelTrials>;

    /// The BPF programs that are loaded, and whether one could be.
    fn bpf(&self) -> Look<BpfFacts>;

    /// Whether one more inotify instance can be had.
    fn inotify(&self) -> Look<Trial>;
}

/// The kernel that this runs on.
#[derive(Clone, Debug)]
pub struct ThisKernel {
    /// Where the host's processes are seen.
    pub proc: HostProc,
}

impl Examiner for ThisKernel {
    fn trials(&self) -> Look<KernelTrials> {
        trials::run(&self.proc)
    }

    fn bpf(&self) -> Look<BpfFacts> {
        loaded::look()
    }

    fn inotify(&self) -> Look<Trial> {
        match inotify::Inotify::init() {
            Ok(_) => Ok(Ok(())),
            Err(error) if is_forbidden(&error) => Err(Unlooked::new(
                format!("no inotify instance can be made: {error}"),
                "run it without a seccomp profile, or with one that allows inotify_init1",
            )),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

/// Whether a system call was not carried out at all: what it would have said is not known.
fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}
