//! The call itself, and what goes into it: the parts of `union bpf_attr` (include/uapi/linux/bpf.h) that each command
//! reads. The kernel takes what is missing at their end for zero.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

pub(super) const BPF_MAP_CREATE: u32 = 0;
pub(super) const BPF_MAP_LOOKUP_ELEM: u32 = 1;
pub(super) const BPF_MAP_UPDATE_ELEM: u32 = 2;
pub(super) const BPF_MAP_DELETE_ELEM: u32 = 3;
pub(super) const BPF_MAP_GET_NEXT_KEY: u32 = 4;
pub(super) const BPF_PROG_LOAD: u32 = 5;
pub(super) const BPF_PROG_ATTACH: u32 = 8;
pub(super) const BPF_PROG_DETACH: u32 = 9;
pub(super) const BPF_PROG_GET_NEXT_ID: u32 = 11;
pub(super) const BPF_PROG_GET_FD_BY_ID: u32 = 13;
pub(super) const BPF_MAP_GET_FD_BY_ID: u32 = 14;
pub(super) const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
pub(super) const BPF_PROG_QUERY: u32 = 16;

/// `BPF_OBJ_NAME_LEN`
pub(super) const NAME_BYTES: usize = 16;

#[repr(C)]
#[derive(Default)]
pub(super) struct CreateMap {
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    pub(super) inner_map: u32,
    pub(super) numa_node: u32,
    pub(super) name: [u8; NAME_BYTES],
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Element {
    pub(super) map: u32,
    pub(super) padding: u32,
    pub(super) key: u64,
    /// Or where the next key goes.
    pub(super) value: u64,
    pub(super) flags: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct LoadProgram {
    pub(super) kind: u32,
    pub(super) slots: u32,
    pub(super) code: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_bytes: u32,
    pub(super) log: u64,
    pub(super) kernel_version: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; NAME_BYTES],
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Attach {
    pub(super) cgroup: u32,
    pub(super) program: u32,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) replaced: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Query {
    pub(super) cgroup: u32,
    pub(super) kind: u32,
    pub(super) query_flags: u32,
    pub(super) attach_flags: u32,
    pub(super) ids: u64,
    pub(super) count: u32,
    pub(super) padding: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct ById {
    pub(super) id: u32,
    pub(super) next: u32,
    pub(super) flags: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct AskInfo {
    pub(super) object: u32,
    pub(super) info_bytes: u32,
    pub(super) info: u64,
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawProgramInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
    pub(super) jited_bytes: u32,
    pub(super) xlated_bytes: u32,
    pub(super) jited: u64,
    pub(super) xlated: u64,
    pub(super) load_time: u64,
    pub(super) uid: u32,
    pub(super) map_count: u32,
    pub(super) maps: u64,
    pub(super) name: [u8; NAME_BYTES],
}

/// The first fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawMapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
}

/// The system call. `attributes` names memory by address: what it names must live and be as long as it says.
pub(super) fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "no crate that we have knows this call")]
    // SAFETY: the kernel reads and writes `attributes` within its size, and the memory that its addresses name within
    // the lengths that go with them. Its callers are all in the module above; each lends memory of that length that
    // outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn descriptor<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    let number = bpf(command, attributes)?;
    #[expect(unsafe_code, reason = "the kernel hands over a descriptor as a number")]
    // SAFETY: the commands that come here give a new descriptor, which nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
