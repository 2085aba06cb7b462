//! Netlink messages and attributes, read strictly: an odd length or padding that is not zero fails the test.

use sluice_shared::op::NftBatch;
use std::collections::BTreeMap;

/// A netlink message.
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub attributes: BTreeMap<u16, Vec<u8>>,
}

/// Splits a batch into its messages, strictly.
pub fn messages(batch: &NftBatch) -> Vec<Message> {
    let mut rest = &batch.bytes[..];
    let mut list = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(rest[0..4].try_into().unwrap()) as usize;
        assert!(
            length >= 20 && length.is_multiple_of(4) && length <= rest.len(),
            "message of {length} bytes"
        );
        let (message, tail) = rest.split_at(length);
        list.push(Message {
            kind: u16::from_ne_bytes(message[4..6].try_into().unwrap()),
            flags: u16::from_ne_bytes(message[6..8].try_into().unwrap()),
            sequence: u32::from_ne_bytes(message[8..12].try_into().unwrap()),
            attributes: attributes(&message[20..]).into_iter().collect(),
        });
        rest = tail;
    }
    list
}

pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        assert!(length >= 4 && length <= bytes.len(), "attribute {kind} of {length} bytes");
        list.push((kind, bytes[4..length].to_vec()));
        let padded = length.next_multiple_of(4);
        assert!(bytes[length..padded].iter().all(|byte| *byte == 0), "padding");
        bytes = &bytes[padded..];
    }
    list
}

pub fn nested(bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    attributes(bytes).into_iter().collect()
}

pub fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("a 32-bit attribute"))
}

pub fn text(bytes: &[u8]) -> String {
    let (nul, text) = bytes.split_last().expect("a string with its NUL");
    assert_eq!(*nul, 0);
    String::from_utf8(text.to_vec()).unwrap()
}
