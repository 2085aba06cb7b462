//! What a target of iptables' does, by its name and its data. Both packet filters carry the same data.

use sluice_shared::ids::{Family, Mark};
use sluice_shared::istio::Does;

// include/uapi/linux/netfilter/nf_nat.h
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
// include/uapi/linux/netfilter/xt_connmark.h
const XT_CONNMARK_SET: u8 = 0;
const XT_CONNMARK_RESTORE: u8 = 2;

/// What it does.
pub(super) fn does(family: Family, name: &str, revision: u8, info: &[u8]) -> Does {
    match name {
        "REDIRECT" => redirect(family, info),
        "CONNMARK" => connmark(revision, info),
        "CT" => zone(info),
        "SNAT" => Does::Snat,
        _ => Does::Else,
    }
}

/// `struct nf_nat_ipv4_multi_range_compat`, `struct nf_nat_range`
fn redirect(family: Family, info: &[u8]) -> Does {
    let (flags, ports) = match family {
        Family::V4 => (4, 16),
        Family::V6 => (0, 36),
    };
    let port = |at| info.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match (number(info, flags), port(ports), port(ports + 2)) {
        (Some(NF_NAT_RANGE_PROTO_SPECIFIED), Some(from), Some(to)) if from == to => Does::Redirect(from),
        _ => Does::Else,
    }
}

/// `struct xt_connmark_tginfo1`, and `…tginfo2`, which can shift too: three numbers, then the mode.
fn connmark(revision: u8, info: &[u8]) -> Does {
    let (Some(mark), Some(mask), Some(packet)) = (number(info, 0), number(info, 4), number(info, 8)) else {
        return Does::Else;
    };
    let (mode, shift) = match revision {
        0 => return Does::Else,
        1 => (info.get(12), 0),
        _ => (info.get(14), info.get(13).copied().unwrap_or(1)),
    };
    match mode {
        Some(&XT_CONNMARK_SET) if shift == 0 => Does::SetConnmark(Mark { value: mark, mask }),
        Some(&XT_CONNMARK_RESTORE) if shift == 0 && mask == u32::MAX && packet == u32::MAX => {
            Does::RestoreMark
        }
        _ => Does::Else,
    }
}

/// `struct xt_ct_target_info`: flags, zone, events, helper.
fn zone(info: &[u8]) -> Does {
    let short = |at: usize| info.get(at..at + 2).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let nothing_else = info.get(4..13).is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
    match (short(0), short(2)) {
        (Some(0), Some(zone)) if nothing_else => Does::CtZone(zone),
        _ => Does::Else,
    }
}

fn number(info: &[u8], at: usize) -> Option<u32> {
    info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}
