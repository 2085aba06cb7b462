//! Network namespaces to try things in: each lives as long as the thread that made it.

use crate::kernel::KernelError;
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::thread;

/// Runs `work` in a network namespace of its own, with nothing in it, which is gone afterwards.
pub(super) fn scratch<T: Send>(
    work: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    let failed = |source: io::Error| KernelError::Call {
        call: "make a network namespace to try things in".into(),
        source,
        detail: "the agent needs CAP_SYS_ADMIN".into(),
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("kernel-scratch".into()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            work()
        });
        thread
            .map_err(failed)?
            .join()
            .unwrap_or_else(|_| Err(KernelError::Gone("a trial in a scratch namespace panicked".into())))
    })
}
