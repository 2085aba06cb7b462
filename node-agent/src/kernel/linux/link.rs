//! `lo`: whether it is up, and bringing it up.

use super::netlink::{Conversation, Request};
use super::route::LOOPBACK_INDEX;
use crate::kernel::KernelError;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

/// `RTM_NEWLINK` with a `struct ifinfomsg` that sets `IFF_UP` on the loopback interface (index 1 in every namespace).
pub(super) fn loopback_up(routing: &mut Conversation) -> Result<(), KernelError> {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&1_i32.to_ne_bytes());
    fixed[8..12].copy_from_slice(&up);
    fixed[12..16].copy_from_slice(&up);
    routing
        .acknowledged(Request::new(libc::RTM_NEWLINK, 0).fixed(&fixed))
        .map_err(|refused| refused.during("bring lo up"))
}

/// Whether it is up. Looked for among all interfaces: a strict dump takes no index.
pub(super) fn loopback_is_up(routing: &mut Conversation) -> Result<bool, KernelError> {
    let found = routing.dump(&Request::new(libc::RTM_GETLINK, 0).fixed(&[0; 16]));
    let found = found.map_err(|refused| refused.during("list the interfaces"))?;
    let links = found.iter().filter_map(|message| LinkMessage::parse(&message.payload).ok());
    let mut loopback = links.filter(|link: &LinkMessage| link.header.index == LOOPBACK_INDEX);
    Ok(loopback.any(|link| link.header.flags.contains(LinkFlags::Up)))
}
