//! What ip_tables (legacy iptables) holds, read without running a program.
//!
//! Asking ip_tables about a table that the namespace does not use yet would create it there, hooks and all. So only
//! those are asked about that the namespace says it has.

use super::ruleset::Hash;
use crate::kernel::{Fingerprint, KernelError};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use sluice_shared::contract::IPTABLES_PREFIX;
use sluice_shared::ids::Family;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// How often a table is read again when it changed between asking for its size and for its content.
const READ_ATTEMPTS: usize = 20;

// include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h: the same numbers in both.
const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;
/// `XT_TABLE_MAXNAMELEN`
const NAME: usize = 32;
/// `struct ipt_getinfo`
const GET_INFO: usize = 84;
const GET_INFO_ENTRIES: usize = 76;
const GET_INFO_SIZE: usize = 80;
/// Where `struct ipt_get_entries` has its first entry.
const GET_ENTRIES: usize = 40;
/// The entries of a nat table without rules: one policy a hook, and the end.
const EMPTY_NAT: u32 = 5;

/// What is at which offset in `struct ipt_entry` and `struct ip6t_entry`.
struct Layout {
    nfcache: usize,
    next: usize,
    comefrom: usize,
    counters: usize,
    header: usize,
}

const V4: Layout = Layout { nfcache: 84, next: 90, comefrom: 92, counters: 96, header: 112 };
const V6: Layout = Layout { nfcache: 136, next: 142, comefrom: 144, counters: 152, header: 168 };

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
                let table = entries(family, &name).map_err(|source| KernelError::Call {
                    call: format!("read the {family} legacy iptables table {name}"),
                    source,
                    detail: String::new(),
                })?;
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

struct Table {
    entries: u32,
    content: Vec<u8>,
}

fn entries(family: Family, name: &str) -> io::Result<Table> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    for _ in 0..READ_ATTEMPTS {
        let mut info = vec![0; GET_INFO];
        info[..name.len().min(NAME - 1)].copy_from_slice(&name.as_bytes()[..name.len().min(NAME - 1)]);
        get(socket.as_fd(), level, SO_GET_INFO, &mut info)?;
        let size = number(&info, GET_INFO_SIZE) as usize;
        let mut table = vec![0; GET_ENTRIES + size];
        table[..NAME].copy_from_slice(&info[..NAME]);
        table[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match get(socket.as_fd(), level, SO_GET_ENTRIES, &mut table) {
            Ok(()) => {
                let content = table.split_off(GET_ENTRIES);
                return Ok(Table { entries: number(&info, GET_INFO_ENTRIES), content });
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

/// The content with counters, and what the kernel notes for itself, as zero.
fn without_counts(mut content: Vec<u8>, family: Family) -> Vec<u8> {
    let layout = if family == Family::V4 { V4 } else { V6 };
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
