//! The BPF programs that others have in the kernel, by the kernel's ids, and whether ours would be taken.

use super::bpf::{Program, program_after};
use super::cookies;
use crate::kernel::KernelError;
use sluice_shared::doctor::{BpfFacts, BpfProgram, Look, Unlooked};

/// More programs than any node has; the kernel's list may change while it is read.
const MAX_PROGRAMS: usize = 20_000;

/// Lists them.
pub(in crate::kernel) fn look() -> Look<BpfFacts> {
    let programs = match list() {
        Ok(programs) => programs,
        // Nobody else's either.
        Err(error) if errno(&error) == Some(libc::ENOSYS) && !is_confined() => Vec::new(),
        Err(error) => return Err(unlooked(&error)),
    };
    let cookies = cookies::try_program().map_err(|error| error.to_string());
    Ok(BpfFacts { cookies, programs })
}

fn list() -> Result<Vec<BpfProgram>, KernelError> {
    let (mut found, mut last) = (Vec::new(), 0);
    while let Some(id) = program_after(last)? {
        match Program::by_id(id).and_then(|program| program.info()) {
            Ok(info) => found.push(BpfProgram { id: info.id, kind: info.kind, name: info.name }),
            // It was unloaded meanwhile.
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        if found.len() == MAX_PROGRAMS {
            break;
        }
        last = id;
    }
    Ok(found)
}

fn errno(error: &KernelError) -> Option<i32> {
    match error {
        KernelError::Call { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

fn unlooked(error: &KernelError) -> Unlooked {
    let how = if is_confined() {
        "run it as root with CAP_SYS_ADMIN and without a seccomp profile, as kubectl debug --profile=sysadmin does: that of \
         this container may be what forbids bpf(2)"
    } else {
        "run it as root with CAP_SYS_ADMIN"
    };
    Unlooked::new(error.to_string(), how)
}

/// Whether a seccomp filter decides which system calls this process may make (proc_pid_status(5)): it may say that there is
/// no such call.
fn is_confined() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}
