//! The BPF programs that others have loaded, by the kernel's ids, and whether one of ours would be.

use sluice_shared::doctor::{BpfFacts, BpfProgram, Look, Trial, Unlooked};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
/// `r0 = 1; exit`, as `struct bpf_insn` has it.
const RETURN_ONE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
/// More programs than any node has; the kernel's list may change while it is read.
const MAX_PROGRAMS: usize = 20_000;

/// The part of `union bpf_attr` that asks for ids.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that asks for a program's description.
#[repr(C)]
#[derive(Default)]
struct About {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    pointers: [u64; 2],
    load_time: u64,
    uid: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Lists them.
pub(in crate::kernel) fn look() -> Look<BpfFacts> {
    let mut facts = BpfFacts { sock_ops: None, programs: Vec::new() };
    let mut last = 0;
    while facts.programs.len() < MAX_PROGRAMS {
        let mut ask = ById { id: last, ..ById::default() };
        match bpf(BPF_PROG_GET_NEXT_ID, &mut ask) {
            Ok(_) => last = ask.next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && !is_confined() => {
                // Nobody else's either.
                facts.sock_ops = Some(Err("this kernel has no bpf(2)".to_owned()));
                return Ok(facts);
            }
            Err(error) => return Err(unlooked(&error)),
        }
        match program(last) {
            Ok(program) => facts.programs.push(program),
            // It was unloaded meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(unlooked(&error)),
        }
    }
    facts.sock_ops = Some(sock_ops());
    Ok(facts)
}

fn unlooked(error: &io::Error) -> Unlooked {
    let how = if is_confined() {
        "run it as root with CAP_SYS_ADMIN and without a seccomp profile, as kubectl debug --profile=sysadmin does: that of this \
         container may be what forbids bpf(2)"
    } else {
        "run it as root with CAP_SYS_ADMIN"
    };
    Unlooked::new(format!("the kernel does not list BPF programs: {error}"), how)
}

/// Whether a seccomp filter decides which system calls this process may make (proc_pid_status(5)): it may say that there is
/// no such call.
fn is_confined() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn program(id: u32) -> io::Result<BpfProgram> {
    let program = descriptor(BPF_PROG_GET_FD_BY_ID, &mut ById { id, ..ById::default() })?;
    let mut info = Info::default();
    let mut about = About {
        fd: program.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut about)?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(BpfProgram {
        id: info.id,
        kind: info.kind,
        name: String::from_utf8_lossy(&info.name[..end]).into_owned(),
    })
}

/// Loads a program that does nothing, and lets go of it. It is attached to nothing.
fn sock_ops() -> Trial {
    let licence = c"Apache-2.0";
    let mut load = Load {
        kind: BPF_PROG_TYPE_SOCK_OPS,
        count: RETURN_ONE.len() as u32,
        instructions: RETURN_ONE.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        ..Load::default()
    };
    descriptor(BPF_PROG_LOAD, &mut load).map(drop).map_err(|error| error.to_string())
}

fn descriptor<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let number = bpf(command, attributes)?;
    #[expect(unsafe_code, reason = "the descriptor comes from a bare system call")]
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
    // SAFETY: the kernel reads and writes `size` bytes of the attributes, and what their addresses point to: instructions,
    // licence and description, which all outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
