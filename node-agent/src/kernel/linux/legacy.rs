//! What ip_tables (legacy iptables) holds, read without running a program.
//!
//! Asking ip_tables about a table that the namespace does not use yet would create it there, hooks and all. So only
//! those are asked about that the namespace says it has.

use super::ruleset::Hash;
use super::xtables::{Blob, Changed, layout};
use crate::kernel::{Fingerprint, KernelError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use sluice_shared::contract::IPTABLES_PREFIX;
use sluice_shared::ids::Family;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How often a table is read again when it changed between asking for its size and for its content.
const READ_ATTEMPTS: usize = 20;

// include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h: the same numbers in both.
const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;
const SO_SET_REPLACE: i32 = 64;
const SO_SET_ADD_COUNTERS: i32 = 65;
/// `XT_TABLE_MAXNAMELEN`
const NAME: usize = 32;
/// `struct ipt_getinfo`
const GET_INFO: usize = 84;
const GET_INFO_HOOKS: usize = 32;
const GET_INFO_ENTRY: usize = 36;
const GET_INFO_UNDERFLOW: usize = 56;
const GET_INFO_ENTRIES: usize = 76;
const GET_INFO_SIZE: usize = 80;
/// Where `struct ipt_get_entries` has its first entry.
const GET_ENTRIES: usize = 40;
/// `struct ipt_replace`, up to its entries, and where in it the kernel finds room for the counters of the entries that go.
const REPLACE: usize = 96;
const REPLACE_COUNTERS: usize = 88;
/// `struct xt_counters`
const COUNTER: usize = 16;
/// The entries of a nat table without rules: one policy a hook, and the end.
const EMPTY_NAT: u32 = 5;

/// What one look at ip_tables and ip6_tables found.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// The tables with chains of ours together, if there are any.
    pub(super) ours: Option<Fingerprint>,
    /// Tables with rules that translate addresses and no chain of ours.
    pub(super) foreign_nat: Vec<String>,
}

impl Legacy {
    /// Reads the calling thread's namespace.
    pub(super) fn read() -> Result<Self, KernelError> {
        let mut hash = Hash::new();
        let (mut found, mut foreign_nat) = (false, Vec::new());
        for family in Family::BOTH {
            for name in table_names(family) {
                let table = blob(family, &name)?;
                if holds_our_chains(&table.content) {
                    found = true;
                    hash.feed(name.as_bytes());
                    hash.feed(&without_counts(table.content, family));
                } else if name == "nat" && table.entries > EMPTY_NAT {
                    foreign_nat.push(format!("{family} nat (legacy iptables)"));
                }
            }
        }
        Ok(Self { ours: found.then(|| Fingerprint(hash.finish())), foreign_nat })
    }
}

/// The tables of the calling thread's namespace, sorted; none when the kernel has no ip_tables.
pub(super) fn table_names(family: Family) -> Vec<String> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let mut names: Vec<String> =
        fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// Whether a table of the calling thread's namespace has chains of ours.
pub(super) fn has_our_chains(family: Family, name: &str) -> bool {
    entries(family, name).is_ok_and(|table| holds_our_chains(&table.content))
}

/// What a table of the calling thread's namespace holds.
pub(super) fn blob(family: Family, name: &str) -> Result<Blob, KernelError> {
    entries(family, name).map_err(|source| failed("read", family, name, source))
}

/// Takes chains and the jumps to them out of a table of the calling thread's namespace; a packet sees the old table or
/// the new one.
pub(super) fn remove_chains(
    family: Family,
    name: &str,
    chains: &BTreeSet<String>,
) -> Result<(), KernelError> {
    if !table_names(family).iter().any(|there| there == name) {
        return Ok(());
    }
    for _ in 0..READ_ATTEMPTS {
        let before = blob(family, name)?;
        let Some(changed) = before.without(chains) else { return Ok(()) };
        match exchange(name, before.entries, &changed) {
            // It has another number of entries by now.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            outcome => return outcome.map_err(|source| failed("change", family, name, source)),
        }
    }
    Err(failed("change", family, name, io::Error::from_raw_os_error(libc::EBUSY)))
}

fn failed(what: &str, family: Family, name: &str, source: io::Error) -> KernelError {
    let call = format!("{what} the {family} legacy iptables table {name}");
    KernelError::Call { call, source, detail: String::new() }
}

/// Puts a table in the place of one with so many entries, and gives its entries the counters that they had.
fn exchange(name: &str, before: u32, changed: &Changed) -> io::Result<()> {
    let Changed { blob, counters } = changed;
    let (socket, level) = open(blob.family)?;
    // The kernel writes the old entries' counters there.
    let mut old = vec![0_u8; before as usize * COUNTER];
    let mut replace = padded(name);
    for number in [blob.hooks, blob.entries, blob.content.len() as u32] {
        replace.extend_from_slice(&number.to_ne_bytes());
    }
    for offset in blob.entry.iter().chain(&blob.underflow).chain([&before]) {
        replace.extend_from_slice(&offset.to_ne_bytes());
    }
    replace.resize(REPLACE_COUNTERS, 0);
    replace.extend_from_slice(&(old.as_mut_ptr() as usize).to_ne_bytes());
    replace.resize(REPLACE, 0);
    replace.extend_from_slice(&without_counts(blob.content.clone(), blob.family));
    set(socket.as_fd(), level, SO_SET_REPLACE, &replace)?;
    let mut counts = padded(name);
    counts.extend_from_slice(&blob.entries.to_ne_bytes());
    counts.resize(NAME + 8, 0);
    counts.extend_from_slice(counters);
    // Counts are for people to read; the rules are in force.
    let _ = set(socket.as_fd(), level, SO_SET_ADD_COUNTERS, &counts);
    drop(old);
    Ok(())
}

/// A table's name with zeros after it.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes()[..name.len().min(NAME - 1)].to_vec();
    bytes.resize(NAME, 0);
    bytes
}

/// A socket that ip_tables can be asked by. Its options are for sockets of every kind: what the kind's own code and IP's
/// do not know goes to `nf_getsockopt` and `nf_setsockopt` (net/ipv4/ip_sockglue.c, net/ipv6/ipv6_sockglue.c). A raw one,
/// as iptables has it, would need CAP_NET_RAW too, which the agent does not have.
fn open(family: Family) -> io::Result<(OwnedFd, i32)> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    Ok((socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?, level))
}

fn entries(family: Family, name: &str) -> io::Result<Blob> {
    let (socket, level) = open(family)?;
    for _ in 0..READ_ATTEMPTS {
        let mut info = padded(name);
        info.resize(GET_INFO, 0);
        get(socket.as_fd(), level, SO_GET_INFO, &mut info)?;
        let size = number(&info, GET_INFO_SIZE) as usize;
        let mut table = vec![0; GET_ENTRIES + size];
        table[..NAME].copy_from_slice(&info[..NAME]);
        table[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match get(socket.as_fd(), level, SO_GET_ENTRIES, &mut table) {
            Ok(()) => {
                let content = table.split_off(GET_ENTRIES);
                let offsets = |at: usize| std::array::from_fn(|hook| number(&info, at + 4 * hook));
                return Ok(Blob {
                    family,
                    hooks: number(&info, GET_INFO_HOOKS),
                    entry: offsets(GET_INFO_ENTRY),
                    underflow: offsets(GET_INFO_UNDERFLOW),
                    entries: number(&info, GET_INFO_ENTRIES),
                    content,
                });
            }
            // Its size has changed since it was asked for.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn get(socket: BorrowedFd<'_>, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    #[expect(unsafe_code, reason = "ip_tables is read by socket options that no crate knows")]
    // SAFETY: the kernel reads and writes at most `length` bytes at `buffer`, which has that many, all initialised.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Needs CAP_NET_ADMIN in the namespace's user namespace.
fn set(socket: BorrowedFd<'_>, level: i32, name: i32, buffer: &[u8]) -> io::Result<()> {
    let length = buffer.len() as libc::socklen_t;
    #[expect(unsafe_code, reason = "ip_tables is changed by socket options that no crate knows")]
    // SAFETY: the kernel reads `length` bytes at `buffer`, which has that many. Where `SO_SET_REPLACE` has it write
    // counters, the pointer in the buffer is to memory of the caller's that has room for as many as the buffer says, and
    // lives until after this call; a table with another number of entries is refused before anything is written.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, buffer.as_ptr().cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The content with counters, and what the kernel notes for itself, as zero.
fn without_counts(mut content: Vec<u8>, family: Family) -> Vec<u8> {
    let layout = layout(family);
    let mut at = 0;
    while let Some(entry) = content.get_mut(at..).filter(|entry| entry.len() >= layout.header) {
        let next = usize::from(u16::from_ne_bytes([entry[layout.next], entry[layout.next + 1]]));
        entry[layout.nfcache..layout.nfcache + 4].fill(0);
        entry[layout.comefrom..layout.comefrom + 4].fill(0);
        entry[layout.counters..layout.counters + 16].fill(0);
        if next < layout.header {
            break;
        }
        at += next;
    }
    content
}

/// A chain's name is in the entry that begins it.
fn holds_our_chains(content: &[u8]) -> bool {
    content.windows(IPTABLES_PREFIX.len()).any(|window| window == IPTABLES_PREFIX.as_bytes())
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
