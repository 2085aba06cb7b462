//! The program on the kubelet's cgroup (`BPF_PROG_TYPE_SOCK_OPS`). The kernel calls it for the sockets that were made in
//! that cgroup, whatever becomes of their maker:
//!
//! 1. at connect: to an address that has a cookie, it asks to be called when headers are written;
//! 2. for an opening SYN, also one that is sent again: it asks for room in the header;
//! 3. and writes the option there, as it is in the map at that moment;
//! 4. when the connection is there: it asks not to be called any more.
//!
//! It reads addresses and flags, writes twelve bytes, and can neither drop nor redirect anything. It needs Linux 5.10.

use super::OPTION_BYTES;
use super::assembler::{At, Helper, Line, Register, assemble};
use Line::{
    Add, And, Call, Copy, Exit, Jump, JumpIf, JumpUnless, Label, Load, Map, Or, Set, Store, StoreWord,
};
use Register::{R0, R1, R2, R3, R4, R6, R7, R10};

/// Where the kernel is told of the program (`enum sock_ops_op`, include/uapi/linux/bpf.h).
const TCP_CONNECT: i32 = 3;
const ACTIVE_ESTABLISHED: i32 = 4;
const HDR_OPT_LEN: i32 = 14;
const WRITE_HDR_OPT: i32 = 15;
/// `BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG`: to be called for headers.
const CALL_FOR_HEADERS: i32 = 1 << 6;

/// Fields of `struct bpf_sock_ops`, in bytes from its begin; they never move.
const OP: At = At(R6, 0);
const FAMILY: At = At(R6, 20);
const REMOTE_IP4: At = At(R6, 24);
const REMOTE_IP6: [At; 4] = [At(R6, 32), At(R6, 36), At(R6, 40), At(R6, 44)];
const CB_FLAGS: At = At(R6, 84);
const TCP_FLAGS: At = At(R6, 212);

/// The key on the stack.
const KEY: [At; 4] = [At(R10, -16), At(R10, -12), At(R10, -8), At(R10, -4)];
/// `AF_INET`, `AF_INET6`
const INET: i32 = 2;
const INET6: i32 = 10;
/// The flags of a TCP header that tell an opening SYN: syn, and whether ack is beside it.
const SYN: i32 = 0x02;
const SYN_ACK: i32 = 0x12;
/// The third word of an IPv4 address that is mapped into IPv6, as it is in memory.
const MAPPED: i32 = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
const OPTION: i32 = OPTION_BYTES as i32;

const PROGRAM: &[Line] = &[
    Copy(R6, R1),
    Load(R7, OP),
    JumpIf(R7, TCP_CONNECT, "find"),
    JumpIf(R7, ACTIVE_ESTABLISHED, "find"),
    JumpIf(R7, HDR_OPT_LEN, "opening"),
    JumpUnless(R7, WRITE_HDR_OPT, "done"),
    Label("opening"),
    Load(R1, TCP_FLAGS),
    And(R1, SYN_ACK),
    JumpUnless(R1, SYN, "done"),
    Label("find"),
    Load(R1, FAMILY),
    JumpIf(R1, INET6, "ipv6"),
    JumpUnless(R1, INET, "done"),
    StoreWord(KEY[0], 0),
    StoreWord(KEY[1], 0),
    StoreWord(KEY[2], MAPPED),
    Load(R1, REMOTE_IP4),
    Store(KEY[3], R1),
    Jump("look up"),
    Label("ipv6"),
    Load(R1, REMOTE_IP6[0]),
    Store(KEY[0], R1),
    Load(R1, REMOTE_IP6[1]),
    Store(KEY[1], R1),
    Load(R1, REMOTE_IP6[2]),
    Store(KEY[2], R1),
    Load(R1, REMOTE_IP6[3]),
    Store(KEY[3], R1),
    Label("look up"),
    Map(R1),
    Copy(R2, R10),
    Add(R2, -16),
    Call(Helper::MapLookupElem),
    JumpIf(R0, 0, "done"),
    JumpIf(R7, WRITE_HDR_OPT, "write"),
    JumpIf(R7, HDR_OPT_LEN, "reserve"),
    Copy(R1, R6),
    Load(R2, CB_FLAGS),
    JumpIf(R7, ACTIVE_ESTABLISHED, "no more"),
    Or(R2, CALL_FOR_HEADERS),
    Jump("set flags"),
    Label("no more"),
    And(R2, !CALL_FOR_HEADERS),
    Label("set flags"),
    Call(Helper::SockOpsCbFlagsSet),
    Jump("done"),
    Label("reserve"),
    Copy(R1, R6),
    Set(R2, OPTION),
    Set(R3, 0),
    Call(Helper::ReserveHdrOpt),
    Jump("done"),
    Label("write"),
    Copy(R1, R6),
    Copy(R2, R0),
    Set(R3, OPTION),
    Set(R4, 0),
    Call(Helper::StoreHdrOpt),
    Label("done"),
    Set(R0, 1),
    Exit,
];

/// One slot of a program (`struct bpf_insn`), in the machine's byte order.
pub type Slot = [u8; 8];

/// The program, for a map with this descriptor.
#[must_use]
pub fn program(map: i32) -> Vec<Slot> {
    assemble(PROGRAM).into_iter().map(|instruction| instruction.encode(map)).collect()
}

#[cfg(test)]
mod tests;
