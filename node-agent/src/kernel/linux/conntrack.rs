//! Forgetting connections. A stale entry would let a connection that reuses its tuple bypass the rules.

use super::netlink::{Conversation, Kept, Refused, Request, attribute};
use crate::kernel::KernelError;
use netlink_sys::protocols::NETLINK_NETFILTER;
use sluice_shared::contract::{MARK_PROXIED, PORT_DNS_PROXY, PORT_INBOUND, PORT_OUTBOUND};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: i32 = 1;
const IPCTNL_MSG_CT_DELETE: i32 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
/// `IPS_SRC_NAT | IPS_DST_NAT` (nf_conntrack_common.h)
const TRANSLATED: u32 = 1 << 4 | 1 << 5;
/// `struct nfgenmsg`
const NFGENMSG: usize = 4;

/// Forgets every connection of the calling thread's namespace; where somebody else translates addresses there
/// (`keep_translated`), only those that nobody but us translated, since the others would be cut.
pub(super) fn flush(keep_translated: bool) -> Result<(), KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    let outcome = if keep_translated {
        forget(&mut conversation, |entry| !translated_by_others(entry))
    } else {
        conversation.acknowledged(request(IPCTNL_MSG_CT_DELETE, 0))
    };
    outcome.map_err(|refused| refused.during("flush the connection tracking table"))
}

/// Forgets the TCP connections that nobody translates and that did not come through ztunnel.
pub(super) fn forget_direct() -> Result<(), KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    forget(&mut conversation, |entry| {
        let tcp =
            attribute_of_tuple(entry, CTA_TUPLE_ORIG, CTA_PROTO_NUM) == Some(&[libc::IPPROTO_TCP as u8]);
        let mark = entry_attribute(entry, CTA_MARK).and_then(|value| value.try_into().ok());
        let proxied = MARK_PROXIED.matches(mark.map_or(0, u32::from_be_bytes));
        tcp && !is_translated(entry) && !proxied
    })
    .map_err(|refused| refused.during("forget connections that bypassed the rules"))
}

fn forget(conversation: &mut Conversation, which: impl Fn(&Kept) -> bool) -> Result<(), Refused> {
    for entry in conversation.dump(&request(IPCTNL_MSG_CT_GET, 0))?.iter().filter(|entry| which(entry)) {
        let Some(tuple) = entry_attribute(entry, CTA_TUPLE_ORIG) else { continue };
        let family = entry.payload.first().copied().unwrap_or_default();
        let mut deletion =
            request(IPCTNL_MSG_CT_DELETE, family).attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, tuple);
        // The id makes sure that it is this entry and not one that has taken its place.
        for kind in [CTA_ZONE, CTA_ID] {
            if let Some(value) = entry_attribute(entry, kind) {
                deletion = deletion.attribute(kind, value);
            }
        }
        match conversation.acknowledged(deletion) {
            Err(refused) if refused.errno() != Some(libc::ENOENT) => return Err(refused),
            _ => {}
        }
    }
    Ok(())
}

fn is_translated(entry: &Kept) -> bool {
    let status = entry_attribute(entry, CTA_STATUS).and_then(|value| value.try_into().ok());
    status.map_or(0, u32::from_be_bytes) & TRANSLATED != 0
}

/// Whether the addresses are translated, and not by a redirect to ztunnel (replies then come from one of its ports).
fn translated_by_others(entry: &Kept) -> bool {
    let reply_port = attribute_of_tuple(entry, CTA_TUPLE_REPLY, CTA_PROTO_SRC_PORT)
        .and_then(|port| port.try_into().ok())
        .map(u16::from_be_bytes);
    let ours = matches!(reply_port, Some(PORT_OUTBOUND | PORT_INBOUND | PORT_DNS_PROXY));
    is_translated(entry) && !ours
}

fn attribute_of_tuple(entry: &Kept, tuple: u16, kind: u16) -> Option<&[u8]> {
    attribute(attribute(entry_attribute(entry, tuple)?, CTA_TUPLE_PROTO)?, kind)
}

fn request(kind: i32, family: u8) -> Request {
    let kind = (libc::NFNL_SUBSYS_CTNETLINK << 8 | kind) as u16;
    Request::new(kind, 0).fixed(&[family, libc::NFNETLINK_V0 as u8, 0, 0])
}

fn entry_attribute(entry: &Kept, kind: u16) -> Option<&[u8]> {
    attribute(entry.payload.get(NFGENMSG..)?, kind)
}
