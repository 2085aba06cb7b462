//! nf_tables expressions: the instructions that a rule is made of, over registers.

use super::message::Attributes;
use crate::ids::Family;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// The verdict register.
const NFT_REG_VERDICT: u32 = 0;
/// Jump to a chain and come back (`enum nft_verdicts`).
const NFT_JUMP: i32 = -3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the port is given.
const NAT_PORT_GIVEN: u32 = 0x2;
/// Among TCP options, not IPv6's extension headers (`enum nft_exthdr_op`).
const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
/// The kernel answers with a reset, whatever the code.
const NFT_REJECT_TCP_RST: u32 = 1;

/// A register. The first is as wide as any value; the 32-bit ones are for the parts of a concatenation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(u32);

impl Register {
    /// `NFT_REG_1`, 16 bytes.
    pub(super) const FIRST: Self = Self(1);

    /// The 32-bit register that is `words` words after the start of [`Register::FIRST`].
    pub(super) const fn word(words: u32) -> Self {
        // NFT_REG32_00 is 8. nft itself names the first word by the wide register.
        if words == 0 { Self::FIRST } else { Self(8 + words) }
    }
}

/// What a packet says of itself (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaKey {
    Mark = 3,
    Iif = 4,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// What its connection says (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CtKey {
    Mark = 3,
    Labels = 13,
    Zone = 17,
}

/// What its socket says (`enum nft_socket_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketKey {
    Transparent,
    Mark,
    /// The ancestor of this level of the socket's cgroup.
    Cgroup(u32),
}

/// Which header (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// `enum nft_cmp_ops`, as far as we compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cmp {
    Equal = 0,
    NotEqual = 1,
}

/// One instruction. Where no register is named it is [`Register::FIRST`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    Meta(MetaKey),
    SetMeta(MetaKey),
    Ct(CtKey),
    SetCt(CtKey),
    Payload {
        header: Header,
        offset: u32,
        length: u32,
        into: Register,
    },
    /// The first `length` bytes of the first TCP option of a kind; without one that long the rule does not match.
    TcpOption {
        kind: u8,
        length: u32,
    },
    Socket(SocketKey),
    Bitwise {
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Cmp(Cmp, Vec<u8>),
    Lookup(String),
    Immediate(Vec<u8>),
    Verdict(i32),
    Jump(String),
    Redirect,
    Snat(Family),
    RejectReset,
}

impl Expr {
    pub(super) const ACCEPT: Self = Self::Verdict(1);
    pub(super) const DROP: Self = Self::Verdict(0);

    /// Writes the instruction as one element of a rule's list.
    pub(super) fn encode(&self, list: &mut Attributes<'_>) {
        list.nested(NFTA_LIST_ELEM, |element| {
            element.string(NFTA_EXPR_NAME, self.name());
            element.nested(NFTA_EXPR_DATA, |data| self.data(data));
        });
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Meta(_) | Self::SetMeta(_) => "meta",
            Self::Ct(_) | Self::SetCt(_) => "ct",
            Self::Payload { .. } => "payload",
            Self::TcpOption { .. } => "exthdr",
            Self::Socket(_) => "socket",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp(..) => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Immediate(_) | Self::Verdict(_) | Self::Jump(_) => "immediate",
            Self::Redirect => "redir",
            Self::Snat(_) => "nat",
            Self::RejectReset => "reject",
        }
    }

    /// The instruction's own attributes; the numbers are those of its `enum nft_*_attributes`.
    fn data(&self, data: &mut Attributes<'_>) {
        let first = Register::FIRST.0;
        match self {
            Self::Meta(key) => {
                data.u32(2, *key as u32);
                data.u32(1, first);
            }
            Self::SetMeta(key) => {
                data.u32(2, *key as u32);
                data.u32(3, first);
            }
            Self::Ct(key) => {
                data.u32(2, *key as u32);
                data.u32(1, first);
            }
            Self::SetCt(key) => {
                data.u32(2, *key as u32);
                data.u32(4, first);
            }
            Self::Payload { header, offset, length, into } => {
                data.u32(1, into.0);
                data.u32(2, *header as u32);
                data.u32(3, *offset);
                data.u32(4, *length);
            }
            Self::TcpOption { kind, length } => {
                data.u32(1, first);
                data.bytes(2, &[*kind]);
                data.u32(3, 0);
                data.u32(4, *length);
                data.u32(6, NFT_EXTHDR_OP_TCPOPT);
            }
            Self::Socket(key) => socket(data, *key),
            Self::Bitwise { mask, xor } => {
                data.u32(1, first);
                data.u32(2, first);
                data.u32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                value(data, 4, mask);
                value(data, 5, xor);
            }
            Self::Cmp(op, operand) => {
                data.u32(1, first);
                data.u32(2, *op as u32);
                value(data, 3, operand);
            }
            Self::Lookup(set) => {
                data.string(1, set);
                data.u32(2, first);
            }
            Self::Immediate(operand) => {
                data.u32(1, first);
                value(data, 2, operand);
            }
            Self::Verdict(code) => verdict(data, *code, None),
            Self::Jump(chain) => verdict(data, NFT_JUMP, Some(chain)),
            Self::Redirect => {
                data.u32(1, first);
                data.u32(3, NAT_PORT_GIVEN);
            }
            Self::Snat(family) => {
                data.u32(1, 0);
                data.u32(2, u32::from(nf_proto(*family)));
                data.u32(3, first);
            }
            Self::RejectReset => {
                data.u32(1, NFT_REJECT_TCP_RST);
                data.bytes(2, &[0]);
            }
        }
    }
}

fn socket(data: &mut Attributes<'_>, key: SocketKey) {
    let number = match key {
        SocketKey::Transparent => 0,
        SocketKey::Mark => 1,
        SocketKey::Cgroup(_) => 3,
    };
    data.u32(1, number);
    data.u32(2, Register::FIRST.0);
    if let SocketKey::Cgroup(level) = key {
        data.u32(3, level);
    }
}

/// `NFTA_DATA_VALUE` within an attribute.
fn value(data: &mut Attributes<'_>, kind: u16, bytes: &[u8]) {
    data.nested(kind, |inner| inner.bytes(NFTA_DATA_VALUE, bytes));
}

fn verdict(data: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    data.u32(1, NFT_REG_VERDICT);
    data.nested(2, |inner| {
        inner.nested(NFTA_DATA_VERDICT, |verdict| {
            verdict.u32(NFTA_VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.string(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
pub(super) const fn nf_proto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
