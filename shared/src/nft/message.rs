//! Netlink framing: headers in the machine's byte order, nf_tables attributes in network byte order.

use crate::op::NftBatch;

const NLMSG_HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFPROTO_INET: u8 = 1;
/// `NFNL_BATCH_GENID`
const BATCH_GENERATION: u16 = 1;

/// What a message asks for: its number in `enum nf_tables_msg_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    DelChain = 5,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    NewSetElem = 12,
    DelSetElem = 14,
}

/// A transaction in the making.
pub(super) struct Batch {
    bytes: Vec<u8>,
    labels: Vec<String>,
    /// Where the message that was added last begins.
    last: usize,
}

/// A run of attributes: a message's, or nested in another.
pub(super) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Batch {
    pub(super) fn begin() -> Self {
        Self::begin_at(None)
    }

    /// One that the kernel refuses (`ERESTART`) at any other generation than this one, if it is given.
    pub(super) fn begin_at(generation: Option<u32>) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(8192), labels: Vec::new(), last: 0 };
        batch.frame(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, "begin".to_owned(), |message| {
            if let Some(generation) = generation {
                message.u32(BATCH_GENERATION, generation);
            }
        });
        batch
    }

    /// Adds one message to the transaction.
    pub(super) fn message(&mut self, kind: Kind, label: String, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.message_in(NFPROTO_INET, kind, label, fill);
    }

    /// As [`Self::message`], about a table of this family.
    pub(super) fn message_in(
        &mut self,
        family: u8,
        kind: Kind,
        label: String,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let flags = match kind {
            Kind::DelTable | Kind::DelChain | Kind::DelRule | Kind::DelSetElem => 0,
            Kind::NewRule => NLM_F_CREATE | NLM_F_APPEND,
            Kind::NewTable | Kind::NewChain | Kind::NewSet | Kind::NewSetElem => NLM_F_CREATE,
        };
        self.frame(NFNL_SUBSYS_NFTABLES << 8 | kind as u16, flags, family, 0, label, fill);
    }

    pub(super) fn end(mut self) -> NftBatch {
        let flags = self.last + 6;
        let asked = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        self.frame(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, "commit".to_owned(), |_| ());
        NftBatch { bytes: self.bytes, labels: self.labels }
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn frame(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        label: String,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        debug_assert_eq!(self.bytes.len(), start + NLMSG_HEADER);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        fill(&mut Attributes { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.labels.push(label);
        self.last = start;
    }
}

impl Attributes<'_> {
    /// A 32-bit number, in network byte order as nf_tables has them.
    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its final NUL.
    pub(super) fn string(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// Attributes within an attribute.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.open(kind | NLA_F_NESTED);
        fill(&mut Attributes { bytes: self.bytes });
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Writes the length (16 bits: whoever nests lists splits them first) and pads to four bytes.
    fn close(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "a netlink attribute of {length} bytes");
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
