//! Ids by which the agent's own namespace knows others (`RTM_NEWNSID`): what notifications are told apart by.

use super::super::netlink::{Conversation, Request, attribute};
use crate::kernel::{KernelError, Netns};
use netlink_sys::protocols::NETLINK_ROUTE;
use sluice_shared::ids::NetnsId;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

// include/uapi/linux/net_namespace.h
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// "Any": the kernel chooses.
const ANY_NSID: i32 = -1;
/// `struct rtgenmsg`, padded
const RTGENMSG: usize = 4;

/// The ids in use, and the socket in the agent's own namespace by which they are asked for.
pub(super) struct NamespaceIds {
    conversation: Mutex<Conversation>,
    followed: Mutex<HashMap<i32, NetnsId>>,
}

impl NamespaceIds {
    /// In the calling thread's namespace.
    pub(super) fn open() -> Result<Self, KernelError> {
        Ok(Self { conversation: Mutex::new(Conversation::open(NETLINK_ROUTE)?), followed: Mutex::default() })
    }

    /// Gives the namespace an id, or takes the one it has.
    pub(super) fn follow(&self, netns: &Netns) -> Result<(), KernelError> {
        let call = || format!("ask for an id of {}", netns.id());
        let fd = netns.as_fd().as_raw_fd().to_ne_bytes();
        let mut conversation = lock(&self.conversation);
        let new = Request::new(libc::RTM_NEWNSID, 0)
            .fixed(&[0; RTGENMSG])
            .attribute(NETNSA_NSID, &ANY_NSID.to_ne_bytes())
            .attribute(NETNSA_FD, &fd);
        match conversation.acknowledged(new) {
            // Somebody (another tool, or we earlier) gave it one. Ids cannot be taken back.
            Err(refused) if refused.errno() == Some(libc::EEXIST) => {}
            outcome => outcome.map_err(|refused| refused.during(call()))?,
        }
        let ask = Request::new(libc::RTM_GETNSID, 0).fixed(&[0; RTGENMSG]).attribute(NETNSA_FD, &fd);
        let answer = conversation.one(ask).map_err(|refused| refused.during(call()))?;
        let nsid = answer
            .payload
            .get(RTGENMSG..)
            .and_then(|attributes| attribute(attributes, NETNSA_NSID))
            .and_then(|value| value.try_into().ok())
            .map_or(ANY_NSID, i32::from_ne_bytes);
        // An id that a dead namespace had may now be this one's: the new owner wins.
        lock(&self.followed).insert(nsid, netns.id());
        Ok(())
    }

    pub(super) fn unfollow(&self, id: NetnsId) {
        lock(&self.followed).retain(|_, followed| *followed != id);
    }

    /// The followed namespace of this id.
    pub(super) fn netns(&self, nsid: i32) -> Option<NetnsId> {
        lock(&self.followed).get(&nsid).copied()
    }
}

impl std::fmt::Debug for NamespaceIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceIds").field("followed", &lock(&self.followed).len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
