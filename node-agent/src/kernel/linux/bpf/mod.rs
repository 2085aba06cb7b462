//! bpf(2), as far as one map and one program on a cgroup need it, and a look at the programs of others.

mod call;

use crate::kernel::KernelError;
use call::{
    AskInfo, Attach, BPF_MAP_CREATE, BPF_MAP_DELETE_ELEM, BPF_MAP_GET_FD_BY_ID, BPF_MAP_GET_NEXT_KEY,
    BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_ATTACH, BPF_PROG_DETACH,
    BPF_PROG_GET_FD_BY_ID, BPF_PROG_GET_NEXT_ID, BPF_PROG_LOAD, BPF_PROG_QUERY, ById, CreateMap, Element,
    LoadProgram, NAME_BYTES, Query, RawMapInfo, RawProgramInfo, bpf, descriptor,
};
use sluice_shared::cookie::Slot;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const BPF_MAP_TYPE_HASH: u32 = 1;
/// A program for the sockets of a cgroup.
pub(super) const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
/// Elements take memory when they come, not before.
const BPF_F_NO_PREALLOC: u32 = 1;
/// Beside the programs of others.
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// No cgroup takes more programs (`BPF_CGROUP_MAX_PROGS`).
const MOST_PROGRAMS: usize = 64;
/// What the verifier says when it refuses.
const VERDICT_BYTES: usize = 16 * 1024;
/// The kernel asks for it where it decides which functions a program may call: ours needs none of the reserved ones.
const LICENSE: &[u8] = b"Apache-2.0\0";

/// Keys with their values.
type Entries<const KEY: usize, const VALUE: usize> = Vec<([u8; KEY], [u8; VALUE])>;

/// A hash map in the kernel, of keys and values of these lengths.
#[derive(Debug)]
pub(super) struct Map<const KEY: usize, const VALUE: usize>(OwnedFd);

/// A program in the kernel, attached or not.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    pub id: u32,
    pub name: String,
    pub maps: Vec<u32>,
    /// `enum bpf_prog_type`
    pub kind: u32,
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: *const T) -> u64 {
    of.addr() as u64
}

fn named(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    // The last stays zero.
    for (byte, letter) in bytes[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    bytes
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn failed(call: &str, source: io::Error) -> KernelError {
    let detail = match source.raw_os_error() {
        Some(libc::EPERM) => {
            "it takes CAP_SYS_ADMIN, a seccomp profile that allows bpf, and no cgroup above that keeps programs out"
        }
        Some(libc::ENOSYS) => "this kernel has no BPF",
        _ => "",
    };
    KernelError::Call { call: call.to_owned(), source, detail: detail.to_owned() }
}

impl<const KEY: usize, const VALUE: usize> Map<KEY, VALUE> {
    /// Makes one.
    pub(super) fn create(name: &str, max_entries: u32) -> Result<Self, KernelError> {
        let mut create = CreateMap {
            kind: BPF_MAP_TYPE_HASH,
            key_bytes: KEY as u32,
            value_bytes: VALUE as u32,
            max_entries,
            flags: BPF_F_NO_PREALLOC,
            name: named(name),
            ..CreateMap::default()
        };
        descriptor(BPF_MAP_CREATE, &mut create).map(Self).map_err(|error| failed("make a BPF map", error))
    }

    /// One that is there; `None` when its keys and values are of other lengths.
    pub(super) fn by_id(id: u32) -> Result<Option<Self>, KernelError> {
        let open = || {
            let fd = descriptor(BPF_MAP_GET_FD_BY_ID, &mut ById { id, ..ById::default() })?;
            let mut info = RawMapInfo::default();
            ask_info(fd.as_fd(), &mut info)?;
            let lengths = (info.kind, info.key_bytes as usize, info.value_bytes as usize);
            Ok((lengths == (BPF_MAP_TYPE_HASH, KEY, VALUE)).then_some(Self(fd)))
        };
        open().map_err(|error| failed(&format!("open the BPF map {id}"), error))
    }

    /// Its descriptor, as a program names it.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(super) fn set(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> Result<(), KernelError> {
        let mut element = self.element(key);
        element.value = address(value);
        bpf(BPF_MAP_UPDATE_ELEM, &mut element)
            .map(drop)
            .map_err(|error| failed("write to the BPF map", error))
    }

    /// One that is not there is no error.
    pub(super) fn remove(&self, key: &[u8; KEY]) -> Result<(), KernelError> {
        match bpf(BPF_MAP_DELETE_ELEM, &mut self.element(key)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(failed("delete from the BPF map", error))
            }
            _ => Ok(()),
        }
    }

    /// Everything in it. Nobody else writes to it meanwhile: a walk over a map that shrinks begins anew.
    pub(super) fn entries(&self) -> Result<Entries<KEY, VALUE>, KernelError> {
        let list = || {
            let mut found = Vec::new();
            let mut next = self.key_after(None)?;
            while let Some(key) = next {
                let mut value = [0; VALUE];
                let mut element = self.element(&key);
                element.value = address(value.as_mut_ptr());
                bpf(BPF_MAP_LOOKUP_ELEM, &mut element)?;
                found.push((key, value));
                next = self.key_after(Some(&key))?;
            }
            Ok(found)
        };
        list().map_err(|error| failed("list the BPF map", error))
    }

    fn key_after(&self, key: Option<&[u8; KEY]>) -> io::Result<Option<[u8; KEY]>> {
        let mut next = [0; KEY];
        let mut element = Element {
            map: number(self.0.as_fd()),
            key: key.map_or(0, |key| address(key)),
            value: address(next.as_mut_ptr()),
            ..Element::default()
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut element) {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn element(&self, key: &[u8; KEY]) -> Element {
        Element { map: number(self.0.as_fd()), key: address(key), ..Element::default() }
    }
}

impl Program {
    /// Has the kernel verify and take a program for the sockets of a cgroup.
    pub(super) fn load(name: &str, code: &[Slot]) -> Result<Self, KernelError> {
        let mut load = LoadProgram {
            kind: BPF_PROG_TYPE_SOCK_OPS,
            slots: code.len() as u32,
            code: address(code.as_ptr()),
            license: address(LICENSE.as_ptr()),
            name: named(name),
            ..LoadProgram::default()
        };
        let refused = match descriptor(BPF_PROG_LOAD, &mut load) {
            Ok(fd) => return Ok(Self(fd)),
            Err(error) => error,
        };
        // Once more, for the verifier's words; it has none about who may load programs.
        let mut log = vec![0; VERDICT_BYTES];
        let verdict = if refused.raw_os_error() == Some(libc::EPERM) {
            String::new()
        } else {
            load.log_level = 1;
            load.log_bytes = VERDICT_BYTES as u32;
            load.log = address(log.as_mut_ptr());
            let _ = descriptor(BPF_PROG_LOAD, &mut load);
            let said = text(&log);
            said.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
        };
        Err(match failed("load the program that writes cookies", refused) {
            KernelError::Call { call, source, detail } if detail.is_empty() && !verdict.is_empty() => {
                KernelError::Call {
                    call,
                    source,
                    detail: format!("the verifier, last line first: {verdict}"),
                }
            }
            other => other,
        })
    }

    /// One that is there, attached or held by somebody.
    pub(super) fn by_id(id: u32) -> Result<Self, KernelError> {
        descriptor(BPF_PROG_GET_FD_BY_ID, &mut ById { id, ..ById::default() })
            .map(Self)
            .map_err(|error| failed(&format!("open the BPF program {id}"), error))
    }

    pub(super) fn info(&self) -> Result<ProgramInfo, KernelError> {
        let mut maps = [0u32; 4];
        let mut info = RawProgramInfo {
            map_count: maps.len() as u32,
            maps: address(maps.as_mut_ptr()),
            ..RawProgramInfo::default()
        };
        ask_info(self.0.as_fd(), &mut info).map_err(|error| failed("ask about a BPF program", error))?;
        let count = (info.map_count as usize).min(maps.len());
        Ok(ProgramInfo { id: info.id, name: text(&info.name), maps: maps[..count].to_vec(), kind: info.kind })
    }

    /// Attaches it to a cgroup, beside what others have there, or in the place of a program of ours: with no moment in
    /// which neither runs.
    pub(super) fn attach(
        &self,
        cgroup: BorrowedFd<'_>,
        instead_of: Option<&Self>,
    ) -> Result<(), KernelError> {
        let mut attach = self.attachment(cgroup);
        attach.flags = BPF_F_ALLOW_MULTI;
        if let Some(replaced) = instead_of {
            attach.flags |= BPF_F_REPLACE;
            attach.replaced = number(replaced.0.as_fd());
        }
        bpf(BPF_PROG_ATTACH, &mut attach)
            .map(drop)
            .map_err(|error| failed("attach the program that writes cookies to the kubelet's cgroup", error))
    }

    /// Takes it off a cgroup; where it is not attached that is no error.
    pub(super) fn detach(&self, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
        match bpf(BPF_PROG_DETACH, &mut self.attachment(cgroup)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(failed("take the program that writes cookies off a cgroup", error))
            }
            _ => Ok(()),
        }
    }

    fn attachment(&self, cgroup: BorrowedFd<'_>) -> Attach {
        Attach {
            cgroup: number(cgroup),
            program: number(self.0.as_fd()),
            kind: BPF_CGROUP_SOCK_OPS,
            ..Attach::default()
        }
    }
}

/// The next of the ids of all programs in the kernel; `None` after the last.
pub(super) fn program_after(id: u32) -> Result<Option<u32>, KernelError> {
    let mut ask = ById { id, ..ById::default() };
    match bpf(BPF_PROG_GET_NEXT_ID, &mut ask) {
        Ok(_) => Ok(Some(ask.next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(failed("list BPF programs", error)),
    }
}

/// The programs for sockets that are attached to this very cgroup, by id.
pub(super) fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, KernelError> {
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut query = Query {
        cgroup: number(cgroup),
        kind: BPF_CGROUP_SOCK_OPS,
        ids: address(ids.as_mut_ptr()),
        count: MOST_PROGRAMS as u32,
        ..Query::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)
        .map_err(|error| failed("ask which programs are on the kubelet's cgroup", error))?;
    Ok(ids[..(query.count as usize).min(MOST_PROGRAMS)].to_vec())
}

fn ask_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut ask = AskInfo {
        object: number(object),
        info_bytes: size_of::<T>() as u32,
        info: address(std::ptr::from_mut(info)),
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut ask).map(drop)
}
