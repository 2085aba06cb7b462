//! What nf_tables holds: dumps, and their fingerprint.
//!
//! A fingerprint covers what somebody wrote (tables, chains, rules, sets, elements) and leaves out what the kernel adds
//! or counts: handles, use counts, packet counters. So the same batch has the same fingerprint in every namespace.

use super::netlink::{Conversation, Kept, Refused, Request, attribute, attributes, string};
use super::shared_tables;
use crate::kernel::{Fingerprint, KernelError};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sluice_shared::contract::{IPTABLES_PREFIX, NFT_TABLE};
use std::collections::{BTreeMap, BTreeSet};

/// How often everything is read again when the rule set changes between one dump and the next.
const READ_ATTEMPTS: usize = 20;

// include/uapi/linux/netfilter/nf_tables.h
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_CHAIN_FLAGS: u16 = 10;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_HANDLE: u16 = 16;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
/// `struct nfgenmsg`
const NFGENMSG: usize = 4;

/// `NFPROTO_INET`
const INET: u8 = 1;

/// A table by family and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Table {
    pub(super) family: u8,
    pub(super) name: String,
}

/// Everything that one look at a namespace needs of nf_tables.
pub(super) struct Ruleset {
    /// Counts the commits of the namespace.
    pub(super) generation: u32,
    /// Our `inet` table, if it is there.
    pub(super) ours: Option<Fingerprint>,
    /// The tables of iptables' nft variant with chains of ours.
    pub(super) iptables_tables: Vec<Table>,
    /// They together.
    pub(super) iptables: Option<Fingerprint>,
    /// Other tables with a chain that translates addresses, as `family name`.
    pub(super) foreign_nat: BTreeSet<String>,
}

/// What of a table a fingerprint covers.
type HashTable = fn(&mut Conversation, &Table, &Kept, &[Kept], &mut Hash) -> Result<(), Refused>;

/// A hash that is the same on every machine and in every release: FNV-1a, 64 bits. Each piece is fed with its length.
#[derive(Clone, Copy)]
pub(super) struct Hash(u64);

impl Ruleset {
    /// Reads it; `None` when the kernel has no nf_tables.
    pub(super) fn read() -> Result<Option<Self>, KernelError> {
        consistent(|conversation, generation| Self::read_once(conversation, generation, hash_table))
    }

    /// As [`Ruleset::read`], on a host: of iptables' tables, which are others' too, the fingerprint covers what is ours.
    pub(super) fn read_on_host() -> Result<Option<Self>, KernelError> {
        consistent(|conversation, generation| {
            Self::read_once(conversation, generation, shared_tables::hash_ours)
        })
    }

    fn read_once(
        conversation: &mut Conversation,
        generation: u32,
        of_iptables: HashTable,
    ) -> Result<Self, Refused> {
        let chains = dump(conversation, libc::NFT_MSG_GETCHAIN, 0, &[])?;
        let our_table = Table { family: INET, name: NFT_TABLE.into() };
        let iptables_tables = iptables_tables(&chains);
        let foreign_nat = foreign_nat(&chains, &our_table, &iptables_tables);
        let ours = fingerprint(conversation, std::slice::from_ref(&our_table), &chains, hash_table)?;
        let iptables = fingerprint(conversation, &iptables_tables, &chains, of_iptables)?;
        Ok(Self { generation, ours, iptables_tables, iptables, foreign_nat })
    }
}

impl Hash {
    pub(super) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(super) const fn finish(self) -> u64 {
        self.0
    }
}

/// What `read` finds with nothing changed from its first dump to its last, given the generation; `None` when the kernel
/// has no nf_tables.
pub(super) fn consistent<T>(
    read: impl Fn(&mut Conversation, u32) -> Result<T, Refused>,
) -> Result<Option<T>, KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    for _ in 0..READ_ATTEMPTS {
        let Some(before) = generation(&mut conversation)? else { return Ok(None) };
        match read(&mut conversation, before) {
            Ok(found) if generation(&mut conversation)? == Some(before) => return Ok(Some(found)),
            // Something went away between two dumps, or was added: begin again.
            Ok(_) => {}
            Err(refused) if refused.errno() == Some(libc::ENOENT) => {}
            Err(refused) => return Err(refused.during("read the nf_tables rule set")),
        }
    }
    Err(Refused {
        source: std::io::Error::from_raw_os_error(libc::EBUSY),
        words: format!("somebody else changed it during each of {READ_ATTEMPTS} attempts"),
    }
    .during("read the nf_tables rule set"))
}

/// The number of the calling thread's namespace's last commit; `None` when the kernel has no nf_tables.
pub(super) fn current_generation() -> Result<Option<u32>, KernelError> {
    generation(&mut Conversation::open(NETLINK_NETFILTER)?)
}

/// The number of the namespace's last commit; `None` when the kernel has no nf_tables.
fn generation(conversation: &mut Conversation) -> Result<Option<u32>, KernelError> {
    match conversation.one(request(libc::NFT_MSG_GETGEN, 0, &[])) {
        Ok(answer) => Ok(nf_attribute(&answer, NFTA_GEN_ID)
            .and_then(|value| value.try_into().ok())
            .map(u32::from_be_bytes)),
        // What nfnetlink says when no subsystem has that number.
        Err(refused) if matches!(refused.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
        Err(refused) => Err(refused.during("ask for the nf_tables generation")),
    }
}

/// The fingerprint of these tables together; `None` when none is there.
fn fingerprint(
    conversation: &mut Conversation,
    tables: &[Table],
    chains: &[Kept],
    hash_table: HashTable,
) -> Result<Option<Fingerprint>, Refused> {
    let mut hash = Hash::new();
    let mut found = false;
    for table in tables {
        let name = (NFTA_TABLE_NAME, table.name.as_str());
        let header = match conversation.one(request(libc::NFT_MSG_GETTABLE, table.family, &[name])) {
            Ok(header) => header,
            Err(refused) if refused.errno() == Some(libc::ENOENT) => continue,
            Err(refused) => return Err(refused),
        };
        found = true;
        hash_table(conversation, table, &header, chains, &mut hash)?;
    }
    Ok(found.then(|| Fingerprint(hash.finish())))
}

fn hash_table(
    conversation: &mut Conversation,
    table: &Table,
    header: &Kept,
    chains: &[Kept],
    hash: &mut Hash,
) -> Result<(), Refused> {
    hash_header(table, header, hash);
    hash_chains(table, chains, hash);
    for rule in dump(conversation, libc::NFT_MSG_GETRULE, table.family, &[(NFTA_RULE_TABLE, &table.name)])? {
        select(&rule, &[NFTA_RULE_CHAIN], hash);
        let expressions = nf_attribute(&rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        for (_, expression) in attributes(expressions) {
            hash.feed(without_counts(expression));
        }
    }
    for set in dump(conversation, libc::NFT_MSG_GETSET, table.family, &[(NFTA_SET_TABLE, &table.name)])? {
        for (kind, value) in nf_attributes(&set).filter(|(kind, _)| *kind != NFTA_SET_HANDLE) {
            hash.feed(&kind.to_ne_bytes());
            hash.feed(value);
        }
        let name = nf_attribute(&set, NFTA_SET_NAME).map(string).unwrap_or_default();
        hash.feed(&hash_elements(&elements(conversation, table, &name)?).to_le_bytes());
    }
    Ok(())
}

pub(super) fn hash_header(table: &Table, header: &Kept, hash: &mut Hash) {
    hash.feed(&[table.family]);
    // Flags too: a dormant table is all there, and does nothing.
    select(header, &[NFTA_TABLE_NAME, NFTA_TABLE_FLAGS], hash);
}

/// Those of the chains that are the table's.
pub(super) fn hash_chains<'a>(table: &Table, chains: impl IntoIterator<Item = &'a Kept>, hash: &mut Hash) {
    let written = [NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_CHAIN_FLAGS];
    for chain in chains {
        if Table::of(chain, NFTA_CHAIN_TABLE).as_ref() == Some(table) {
            select(chain, &written, hash);
        }
    }
}

/// The elements of a set come in the order of its hash table, which has a random seed: their sum does not depend on it.
fn hash_elements(elements: &[Vec<u8>]) -> u64 {
    let one = |element: &Vec<u8>| {
        let mut hash = Hash::new();
        for kind in [NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS] {
            hash.feed(attribute(element, kind).unwrap_or_default());
        }
        hash.finish()
    };
    elements.iter().map(one).fold(elements.len() as u64, u64::wrapping_add)
}

/// The elements of a set, each as its attributes.
fn elements(conversation: &mut Conversation, table: &Table, set: &str) -> Result<Vec<Vec<u8>>, Refused> {
    let which = [(NFTA_SET_ELEM_LIST_TABLE, table.name.as_str()), (NFTA_SET_ELEM_LIST_SET, set)];
    let pieces = dump(conversation, libc::NFT_MSG_GETSETELEM, table.family, &which)?;
    Ok(pieces
        .iter()
        .filter_map(|piece| nf_attribute(piece, NFTA_SET_ELEM_LIST_ELEMENTS))
        .flat_map(|list| attributes(list).map(|(_, element)| element.to_vec()))
        .collect())
}

/// The tables of iptables' nft variant that hold nothing but its own empty chains that let everything pass, with
/// those chains.
pub(super) fn empty_iptables_tables() -> Result<Vec<(Table, Vec<String>)>, KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    let read = |conversation: &mut Conversation| -> Result<_, Refused> {
        let mut tables = BTreeMap::<Table, Option<Vec<String>>>::new();
        for chain in dump(conversation, libc::NFT_MSG_GETCHAIN, 0, &[])? {
            let Some(table) = Table::of(&chain, NFTA_CHAIN_TABLE).filter(Table::is_of_iptables) else {
                continue;
            };
            let policy = nf_attribute(&chain, NFTA_CHAIN_POLICY).and_then(|value| value.try_into().ok());
            let passive = policy.map(u32::from_be_bytes) == Some(libc::NF_ACCEPT as u32);
            let chains = tables.entry(table).or_insert_with(|| Some(Vec::new()));
            *chains = chains.take().filter(|_| passive);
            if let Some(chains) = chains {
                chains.push(chain_name(&chain));
            }
        }
        let mut empty = Vec::new();
        for (table, chains) in tables {
            let which = [(NFTA_RULE_TABLE, table.name.as_str())];
            if let Some(chains) = chains
                && dump(conversation, libc::NFT_MSG_GETRULE, table.family, &which)?.is_empty()
            {
                empty.push((table, chains));
            }
        }
        Ok(empty)
    };
    read(&mut conversation).map_err(|refused| refused.during("look for empty iptables tables"))
}

/// The keys of one of our sets; empty when it or the table is not there.
pub(super) fn our_set_keys(set: &str) -> Result<Vec<Vec<u8>>, KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    let table = Table { family: INET, name: NFT_TABLE.into() };
    let elements = match elements(&mut conversation, &table, set) {
        Ok(elements) => elements,
        Err(refused) if matches!(refused.errno(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Vec::new()
        }
        Err(refused) => return Err(refused.during(format!("read the set {set}"))),
    };
    // A key is a nested attribute that holds its value.
    Ok(elements
        .iter()
        .filter_map(|element| attribute(element, NFTA_SET_ELEM_KEY))
        .filter_map(|key| attributes(key).next().map(|(_, value)| value.to_vec()))
        .collect())
}

/// An expression, but only its name when it counts packets.
pub(super) fn without_counts(expression: &[u8]) -> &[u8] {
    match attribute(expression, NFTA_EXPR_NAME) {
        Some(name) if string(name) == "counter" => name,
        _ => expression,
    }
}

/// The tables of iptables' nft variant that hold chains of ours.
pub(super) fn iptables_tables(chains: &[Kept]) -> Vec<Table> {
    let ours = chains.iter().filter(|chain| chain_name(chain).starts_with(IPTABLES_PREFIX));
    let tables: BTreeSet<Table> =
        ours.filter_map(|chain| Table::of(chain, NFTA_CHAIN_TABLE)).filter(Table::is_of_iptables).collect();
    tables.into_iter().collect()
}

fn foreign_nat(chains: &[Kept], ours: &Table, iptables: &[Table]) -> BTreeSet<String> {
    chains
        .iter()
        .filter(|chain| nf_attribute(chain, NFTA_CHAIN_TYPE).map(string).as_deref() == Some("nat"))
        .filter_map(|chain| Table::of(chain, NFTA_CHAIN_TABLE))
        .filter(|table| table != ours && !iptables.contains(table))
        .map(|table| table.to_string())
        .collect()
}

pub(super) fn chain_name(chain: &Kept) -> String {
    nf_attribute(chain, NFTA_CHAIN_NAME).map(string).unwrap_or_default()
}

fn select(message: &Kept, kinds: &[u16], hash: &mut Hash) {
    for kind in kinds {
        hash.feed(nf_attribute(message, *kind).unwrap_or_default());
    }
}

pub(super) fn dump(
    conversation: &mut Conversation,
    kind: i32,
    family: u8,
    which: &[(u16, &str)],
) -> Result<Vec<Kept>, Refused> {
    conversation.dump(&request(kind, family, which))
}

fn request(kind: i32, family: u8, which: &[(u16, &str)]) -> Request {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    let request = Request::new(kind, 0).fixed(&[family, libc::NFNETLINK_V0 as u8, 0, 0]);
    which.iter().fold(request, |request, (kind, value)| request.string(*kind, value))
}

pub(super) fn nf_attributes(message: &Kept) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(message.payload.get(NFGENMSG..).unwrap_or_default())
}

pub(super) fn nf_attribute(message: &Kept, kind: u16) -> Option<&[u8]> {
    attribute(message.payload.get(NFGENMSG..)?, kind)
}

impl Table {
    /// Whether iptables' nft variant calls one of its tables so.
    fn is_of_iptables(&self) -> bool {
        matches!(i32::from(self.family), libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6)
            && ["raw", "mangle", "nat", "filter"].contains(&self.name.as_str())
    }

    /// The table that a message is about.
    pub(super) fn of(message: &Kept, kind: u16) -> Option<Self> {
        let name = nf_attribute(message, kind).map(string)?;
        message.payload.first().map(|family| Self { family: *family, name })
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match i32::from(self.family) {
            libc::NFPROTO_IPV4 => "ip",
            libc::NFPROTO_IPV6 => "ip6",
            libc::NFPROTO_INET => "inet",
            _ => "other",
        };
        write!(f, "{family} {}", self.name)
    }
}
