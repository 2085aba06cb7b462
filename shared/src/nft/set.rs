//! Sets and their elements.

use super::message::{Attributes, Batch, Kind};
use super::rule::octets;
use crate::contract::NFT_TABLE;
use crate::ids::Family;
use crate::netfilter::{Elements, Set};
use crate::plan::Flow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`
const UDATA_KEY_BYTE_ORDER: u8 = 0;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`
const UDATA_ELEM_COMMENT: u8 = 0;

/// Elements in one message: 512 of the longest (an IPv6 tuple takes 56 bytes) stay well below an attribute's 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 512;
/// nft's limit for a comment, its NUL included.
const COMMENT_BYTES: usize = 128;

/// nft's number for a data type, by which it prints a set's keys (its `enum datatypes`).
mod datatype {
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PORT: u32 = 13;
    pub(super) const CGROUP: u32 = 46;

    /// Four types in one key: six bits each, the first in front.
    pub(super) const fn concat(parts: [u32; 4]) -> u32 {
        parts[0] << 18 | parts[1] << 12 | parts[2] << 6 | parts[3]
    }
}

/// How nft reads a key's bytes (its `enum byteorder`).
#[derive(Clone, Copy)]
enum ByteOrder {
    Mixed = 0,
    Host = 1,
    Network = 2,
}

/// An element's key, and its note.
type Key<'a> = (Vec<u8>, &'a str);

/// Defines a set and fills it.
pub(super) fn define(batch: &mut Batch, set: &Set, index: usize) {
    let name = set.name.to_string();
    // Not looked at by our rules, which name their sets, but the kernel asks for one, unique in the batch.
    let id = u32::try_from(index + 1).unwrap_or(u32::MAX);
    let (key_type, key_len, order) = key_shape(&set.elements);
    let elements = keys(&set.elements);
    let size = u32::try_from(set.name.room(elements.len())).unwrap_or(u32::MAX);
    batch.message(Kind::NewSet, format!("add set inet {NFT_TABLE} {name}"), |message| {
        message.string(NFTA_SET_TABLE, NFT_TABLE);
        message.string(NFTA_SET_NAME, &name);
        message.u32(NFTA_SET_FLAGS, 0);
        message.u32(NFTA_SET_KEY_TYPE, key_type);
        message.u32(NFTA_SET_KEY_LEN, key_len);
        message.nested(NFTA_SET_DESC, |desc| desc.u32(NFTA_SET_DESC_SIZE, size));
        message.u32(NFTA_SET_ID, id);
        let [a, b, c, d] = (order as u32).to_ne_bytes();
        message.bytes(NFTA_SET_USERDATA, &[UDATA_KEY_BYTE_ORDER, 4, a, b, c, d]);
    });
    change_elements(batch, Kind::NewSetElem, &name, &elements, Some(id));
}

/// Adds elements to a set that is there, or takes them out of it.
pub(super) fn amend(batch: &mut Batch, kind: Kind, set: &Set) {
    change_elements(batch, kind, &set.name.to_string(), &keys(&set.elements), None);
}

/// `id` is the set's in this batch, where it is made by it.
fn change_elements(batch: &mut Batch, kind: Kind, name: &str, elements: &[Key<'_>], id: Option<u32>) {
    let parts = elements.len().div_ceil(ELEMENTS_PER_MESSAGE);
    let verb = if kind == Kind::DelSetElem { "take from" } else { "fill" };
    for (part, chunk) in elements.chunks(ELEMENTS_PER_MESSAGE).enumerate() {
        let label = format!("{verb} set inet {NFT_TABLE} {name} (part {} of {parts})", part + 1);
        batch.message(kind, label, |message| {
            message.string(NFTA_SET_ELEM_LIST_TABLE, NFT_TABLE);
            message.string(NFTA_SET_ELEM_LIST_SET, name);
            if let Some(id) = id {
                message.u32(NFTA_SET_ELEM_LIST_SET_ID, id);
            }
            message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for (key, note) in chunk {
                    element(list, key, note);
                }
            });
        });
    }
}

fn element(list: &mut Attributes<'_>, key: &[u8], note: &str) {
    list.nested(NFTA_LIST_ELEM, |element| {
        element.nested(NFTA_SET_ELEM_KEY, |inner| inner.bytes(NFTA_DATA_VALUE, key));
        if !note.is_empty() {
            element.bytes(NFTA_SET_ELEM_USERDATA, &comment(UDATA_ELEM_COMMENT, note));
        }
    });
}

/// A comment as libnftnl keeps it: type, length, text, NUL.
pub(super) fn comment(kind: u8, text: &str) -> Vec<u8> {
    let mut end = text.len().min(COMMENT_BYTES - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = vec![kind, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(&text.as_bytes()[..end]);
    data.push(0);
    data
}

/// nft's type, the length in bytes, and the byte order of a set's keys.
const fn key_shape(elements: &Elements) -> (u32, u32, ByteOrder) {
    match elements {
        Elements::Flows(Family::V4, _) => {
            let parts = [datatype::IPV4, datatype::PORT, datatype::IPV4, datatype::PORT];
            (datatype::concat(parts), 16, ByteOrder::Mixed)
        }
        Elements::Flows(Family::V6, _) => {
            let parts = [datatype::IPV6, datatype::PORT, datatype::IPV6, datatype::PORT];
            (datatype::concat(parts), 40, ByteOrder::Mixed)
        }
        Elements::Addresses(Family::V4, _) => (datatype::IPV4, 4, ByteOrder::Network),
        Elements::Addresses(Family::V6, _) => (datatype::IPV6, 16, ByteOrder::Network),
        Elements::Ports(_) => (datatype::PORT, 2, ByteOrder::Network),
        Elements::Cgroups(_) => (datatype::CGROUP, 8, ByteOrder::Host),
    }
}

/// Every element's key, with its note.
fn keys(elements: &Elements) -> Vec<Key<'_>> {
    match elements {
        Elements::Flows(_, flows) => {
            let both = flows
                .iter()
                .flat_map(|flow| [flow_key(flow.local, flow.remote), flow_key(flow.remote, flow.local)]);
            let mut keys: Vec<_> = both.map(|key| (key, "")).collect();
            // Both ends of a connection may be the pod's own: its two directions are then listed twice.
            keys.sort_unstable();
            keys.dedup();
            keys
        }
        Elements::Addresses(_, addresses) => {
            addresses.iter().map(|(address, note)| (octets(*address), note.as_str())).collect()
        }
        Elements::Ports(ports) => ports.iter().map(|port| (port.to_be_bytes().to_vec(), "")).collect(),
        Elements::Cgroups(cgroups) => {
            let mut keys: Vec<_> =
                cgroups.iter().map(|cgroup| (cgroup.id.to_ne_bytes().to_vec(), "")).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        }
    }
}

/// Source, source port, destination, destination port, each padded to four bytes.
fn flow_key(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    for (address, port) in [from, to] {
        key.extend_from_slice(&octets(address));
        key.extend_from_slice(&port.to_be_bytes());
        key.extend_from_slice(&[0, 0]);
    }
    key
}

/// Reads an element of the sets `kept4` and `kept6` back: the source as the local end. Each connection is in its set
/// in both directions, so the flow that is meant is either this one or its mirror image.
#[must_use]
pub fn flow_of_key(key: &[u8]) -> Option<Flow> {
    let end = |part: &[u8]| {
        let (address, port) = part.split_at(part.len() - 4);
        let address = match address.len() {
            4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
            16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
            _ => return None,
        };
        Some((address, u16::from_be_bytes([port[0], port[1]])))
    };
    if key.len() != 16 && key.len() != 40 {
        return None;
    }
    let (from, to) = key.split_at(key.len() / 2);
    Some(Flow { local: end(from)?, remote: end(to)? })
}
