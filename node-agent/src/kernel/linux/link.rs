//! Bringing `lo` up.

use super::netlink::{Conversation, Request};
use crate::kernel::KernelError;

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
