//! What `sluicectl doctor` asks of the kernel: what it can do, and which programs others have put into it.

use super::linux::{loaded, trials};
use sluice_shared::doctor::{BpfFacts, KernelTrials, Look, Trial};

/// Looks at the kernel, and leaves nothing in it.
pub trait Examiner {
    /// What it takes of a pod's plan, in a network namespace made for the purpose. The host's is not entered.
    fn trials(&self) -> Look<KernelTrials>;

    /// The BPF programs that are loaded, and whether one could be.
    fn bpf(&self) -> Look<BpfFacts>;

    /// Whether one more inotify instance can be had.
    fn inotify(&self) -> Trial;
}

/// The kernel that this runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisKernel;

impl Examiner for ThisKernel {
    fn trials(&self) -> Look<KernelTrials> {
        trials::run()
    }

    fn bpf(&self) -> Look<BpfFacts> {
        loaded::look()
    }

    fn inotify(&self) -> Trial {
        inotify::Inotify::init().map(drop).map_err(|error| error.to_string())
    }
}
