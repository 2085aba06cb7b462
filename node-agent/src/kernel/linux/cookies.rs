//! The program that writes cookies, on the kubelet's cgroup: `shared::cookie` says what it does.
//!
//! It is attached without a link and pinned nowhere: it stays on the cgroup when the agent ends, and goes when the cgroup
//! does. Whoever comes next finds it there by its name, and with it the map and every cookie that is given out.

use super::bpf::{BPF_PROG_TYPE_SOCK_OPS, Map, Program, attached};
use super::cgroup;
use crate::kernel::{Attached, HostProc, KernelError};
use sluice_shared::cookie::{self, Cookie, KEY_BYTES, MAX_ADDRESSES, OPTION_BYTES};
use sluice_shared::plan::CgroupRef;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By what an attached program is known as ours.
const PROGRAM: &str = "sluice_cookie";
const MAP: &str = "sluice_cookies";

pub(super) type Cookies = Map<KEY_BYTES, OPTION_BYTES>;

/// What of ours is in the kernel; nothing before the first [`Stamp::attach`].
#[derive(Debug, Default)]
pub(super) struct Stamp(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    map: Option<Cookies>,
    on: Option<On>,
}

/// Where the program is.
#[derive(Debug)]
struct On {
    place: CgroupRef,
    directory: File,
    program: Program,
    id: u32,
}

impl Stamp {
    /// Has the program on this cgroup, and on no other that it was on before. What a former run left there is taken over,
    /// with its cookies.
    pub(super) fn attach(&self, proc: &HostProc, place: &CgroupRef) -> Result<Attached, KernelError> {
        let mut held = self.lock();
        let directory = cgroup::open(proc, place)?;
        let there = attached(directory.as_fd())?;
        if held.on.as_ref().is_some_and(|on| on.place == *place && there.contains(&on.id)) {
            return Ok(Attached::AsItWas);
        }
        let former = named(&there, PROGRAM);
        let Held { map, on } = &mut *held;
        let map = match map {
            Some(map) => map,
            None => map.insert(match former.as_ref().and_then(former_map) {
                Some(map) => map,
                None => Cookies::create(MAP, MAX_ADDRESSES)?,
            }),
        };
        let program = Program::load(PROGRAM, &cookie::program(map.number()))?;
        program.attach(directory.as_fd(), former.as_ref())?;
        let id = program.info()?.id;
        if let Some(left) = on.replace(On { place: place.clone(), directory, program, id }) {
            // That cgroup may be gone, and the program with it.
            let _ = left.program.detach(left.directory.as_fd());
        }
        Ok(Attached::Anew)
    }

    /// Takes off a cgroup whatever is ours there. Says whether there was anything.
    pub(super) fn detach(&self, proc: &HostProc, place: &CgroupRef) -> Result<bool, KernelError> {
        let mut held = self.lock();
        let directory = cgroup::open(proc, place)?;
        let any = detach_named(directory.as_fd(), PROGRAM)?;
        if held.on.as_ref().is_some_and(|on| on.place == *place) {
            *held = Held::default();
        }
        Ok(any)
    }

    /// Every cookie that is given out.
    pub(super) fn given(&self) -> Result<BTreeMap<IpAddr, Cookie>, KernelError> {
        let held = self.lock();
        let Some(map) = &held.map else { return Ok(BTreeMap::new()) };
        let entries = map.entries()?;
        let readable = entries
            .into_iter()
            .filter_map(|(key, option)| Some((cookie::address(key), Cookie::from_option(&option)?)));
        Ok(readable.collect())
    }

    /// Gives an address a cookie, or takes it away.
    pub(super) fn give(&self, to: IpAddr, cookie: Option<Cookie>) -> Result<(), KernelError> {
        let held = self.lock();
        let Some(map) = &held.map else {
            return Err(KernelError::Gone("no program that writes cookies is attached".into()));
        };
        match cookie {
            Some(cookie) => map.set(&cookie::key(to), &cookie.option()),
            None => map.remove(&cookie::key(to)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the kernel takes the program. It is let go of at once, and attached to nothing.
pub(super) fn try_program() -> Result<(), KernelError> {
    let map = Cookies::create(MAP, MAX_ADDRESSES)?;
    Program::load(PROGRAM, &cookie::program(map.number())).map(drop)
}

/// A cookie that nobody can guess.
pub(super) fn random() -> Result<Cookie, KernelError> {
    let mut secret = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut secret));
    read.map_err(|source| KernelError::Call {
        call: "read /dev/urandom".into(),
        source,
        detail: "a cookie must be random".into(),
    })?;
    Ok(Cookie::new(secret))
}

/// Takes the programs of this name off a cgroup that its owner attached. Says whether there was any.
pub(super) fn detach_named(directory: BorrowedFd<'_>, name: &str) -> Result<bool, KernelError> {
    let mut any = false;
    while let Some(program) = named(&attached(directory)?, name) {
        program.detach(directory)?;
        any = true;
    }
    Ok(any)
}

/// Our program of this name among those on a cgroup.
fn named(there: &[u32], name: &str) -> Option<Program> {
    let ours = |id: &u32| {
        let program = Program::by_id(*id).ok()?;
        let info = program.info().ok()?;
        (info.kind == BPF_PROG_TYPE_SOCK_OPS && info.name == name).then_some(program)
    };
    there.iter().find_map(ours)
}

/// The map of a former run's program, if it is one that today's can go on with.
fn former_map(program: &Program) -> Option<Cookies> {
    let maps = program.info().ok()?.maps;
    maps.into_iter().find_map(|id| Cookies::by_id(id).ok().flatten())
}
