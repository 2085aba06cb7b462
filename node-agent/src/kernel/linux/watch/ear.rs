//! One listening socket, and what its notifications say.

use super::super::netlink::{Message, attribute, messages};
use crate::kernel::KernelError;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt};
use sluice_shared::contract::ROUTE_TABLE;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h)
const GROUP_NFTABLES: u32 = 7;
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE` (rtnetlink.h)
const GROUPS_ROUTING: [u32; 4] = [7, 8, 11, 19];
/// The notifications of one rule set of a hundred pods fit; memory is taken only while they wait.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// The largest notification is a rule with its expressions.
const DATAGRAM: usize = 64 * 1024;
/// Where `struct rtmsg` has its table, and where its attributes begin.
const RTMSG_TABLE: usize = 4;
const RTMSG: usize = 12;
const RTA_TABLE: u16 = 15;

/// What a notification says, with the id of its namespace; the own one has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// An nf_tables transaction was committed.
    Rules(Option<i32>),
    /// A policy rule, or a route in our table, came or went.
    Routing(Option<i32>),
    /// Notifications were lost.
    Lost,
}

/// A socket that hears all namespaces.
#[derive(Debug)]
pub(super) struct Ear {
    socket: Socket,
    understand: fn(Message<'_>, Option<i32>) -> Option<Heard>,
}

impl Ear {
    /// Hears nf_tables.
    pub(super) fn for_rules() -> Result<Self, KernelError> {
        Self::open(NETLINK_NETFILTER, &[GROUP_NFTABLES], about_rules)
    }

    /// Hears policy rules and routes.
    pub(super) fn for_routing() -> Result<Self, KernelError> {
        Self::open(NETLINK_ROUTE, &GROUPS_ROUTING, about_routing)
    }

    fn open(
        protocol: isize,
        groups: &[u32],
        understand: fn(Message<'_>, Option<i32>) -> Option<Heard>,
    ) -> Result<Self, KernelError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
            socket.set_listen_all_namespaces(true)?;
            socket.set_non_blocking(true)?;
            groups.iter().try_for_each(|group| socket.add_membership(*group))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| KernelError::Call {
            call: format!("listen to all namespaces (netlink protocol {protocol})"),
            source,
            detail: "the agent needs CAP_NET_ADMIN and CAP_NET_BROADCAST".into(),
        })?;
        Ok(Self { socket, understand })
    }

    /// For a tokio runtime.
    pub(super) fn into_async(self) -> Result<AsyncFd<Self>, KernelError> {
        #[expect(unsafe_code, reason = "tokio asks its caller to vouch for the descriptor")]
        // SAFETY: the descriptor is the socket's own: it is the same at each call, and open as long as the socket.
        let registered = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        registered.map_err(|refused| KernelError::Call {
            call: "wait for notifications".into(),
            source: refused.into(),
            detail: String::new(),
        })
    }

    /// Takes everything that waits, then gives `WouldBlock`.
    pub(super) fn drain(&self, note: &mut impl FnMut(Heard)) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            match self.receive(&mut buffer) {
                Ok((length, nsid)) => {
                    for message in messages(&buffer[..length]) {
                        (self.understand)(message, nsid).into_iter().for_each(&mut *note);
                    }
                }
                Err(nix::Error::ENOBUFS) => note(Heard::Lost),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for a notification; others are thrown away.
    pub(super) fn hears_within(&self, time: Duration, wanted: impl Fn(Heard) -> bool) -> bool {
        let begun = Instant::now();
        let mut found = false;
        while !found {
            let left = time.saturating_sub(begun.elapsed());
            let Ok(timeout) = PollTimeout::try_from(left) else { return false };
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if left.is_zero() || !matches!(poll(&mut waiting, timeout), Ok(1..)) {
                return false;
            }
            let _ = self.drain(&mut |heard| found |= wanted(heard));
        }
        true
    }

    fn receive(&self, buffer: &mut [u8]) -> nix::Result<(usize, Option<i32>)> {
        let mut space = nix::cmsg_space!(i32);
        let mut pieces = [IoSliceMut::new(buffer)];
        let received = recvmsg::<NetlinkAddr>(
            self.socket.as_raw_fd(),
            &mut pieces,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let nsid = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(unknown)
                if unknown.cmsg_header.cmsg_level == libc::SOL_NETLINK
                    && unknown.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
            {
                unknown.data_bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
            }
            _ => None,
        });
        Ok((received.bytes, nsid))
    }
}

impl AsRawFd for Ear {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Every commit ends with one notification of the new generation.
fn about_rules(message: Message<'_>, nsid: Option<i32>) -> Option<Heard> {
    let new_generation = libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWGEN;
    (i32::from(message.kind) == new_generation).then_some(Heard::Rules(nsid))
}

/// Any policy rule, since one before ours may lead elsewhere; of routes only those in our table.
fn about_routing(message: Message<'_>, nsid: Option<i32>) -> Option<Heard> {
    let concerns_us = match message.kind {
        libc::RTM_NEWRULE | libc::RTM_DELRULE => true,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let attributes = message.payload.get(RTMSG..).unwrap_or_default();
            let table = attribute(attributes, RTA_TABLE).and_then(|value| value.try_into().ok());
            let table = table.map(u32::from_ne_bytes);
            table.or_else(|| message.payload.get(RTMSG_TABLE).map(|table| u32::from(*table)))
                == Some(ROUTE_TABLE)
        }
        _ => false,
    };
    concerns_us.then_some(Heard::Routing(nsid))
}
