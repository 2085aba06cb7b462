//! How long conntrack remembers TCP connections of which one direction is closed.

use super::netlink::{Conversation, Request};
use crate::kernel::{HostProc, KernelError};
use netlink_sys::protocols::NETLINK_NETFILTER;
use sluice_shared::op::Presence;

// include/uapi/linux/netfilter/nfnetlink_cttimeout.h
const IPCTNL_MSG_TIMEOUT_DEFAULT_SET: i32 = 3;
const CTA_TIMEOUT_L3PROTO: u16 = 2;
const CTA_TIMEOUT_L4PROTO: u16 = 3;
const CTA_TIMEOUT_DATA: u16 = 4;
const CTA_TIMEOUT_TCP_FIN_WAIT: u16 = 4;
const CTA_TIMEOUT_TCP_CLOSE_WAIT: u16 = 5;
const NLA_F_NESTED: u16 = 1 << 15;

/// A day, in seconds. Not for ever: a peer that vanishes in mid-close leaves an entry behind that nothing else ends, and
/// the table has an end. kube-proxy gives open connections as long.
const A_DAY: u32 = 24 * 60 * 60;
/// The kernel's own defaults, in seconds (net/netfilter/nf_conntrack_proto_tcp.c).
const FIN_WAIT: u32 = 120;
const CLOSE_WAIT: u32 = 60;

/// Sets how long the calling thread's namespace remembers, or puts the kernel's own defaults back.
///
/// By netlink, since `/proc/sys` is read-only in a container that is not privileged; by the `sys` of the host's procfs
/// where the kernel has no such call. Through any mount it shows the settings of the caller's own network namespace.
pub(super) fn remember(presence: Presence, proc: &HostProc) -> Result<(), KernelError> {
    let (fin_wait, close_wait) = match presence {
        Presence::Present => (A_DAY, A_DAY),
        Presence::Absent => (FIN_WAIT, CLOSE_WAIT),
    };
    let refused = match Conversation::open(NETLINK_NETFILTER)?.acknowledged(request(fin_wait, close_wait)) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let set = |name, seconds: u32| {
        std::fs::write(
            proc.mount().join(format!("sys/net/netfilter/nf_conntrack_tcp_timeout_{name}")),
            seconds.to_string(),
        )
    };
    if let Err(error) = set("fin_wait", fin_wait).and_then(|()| set("close_wait", close_wait)) {
        // Not a reason to leave a pod out of the mesh.
        tracing::warn!(
            %error,
            netlink = %refused.source,
            "cannot make conntrack remember half-closed connections: proxied ones that are silent for longer than a \
             minute lose what comes after; the kernel option NF_CT_NETLINK_TIMEOUT, or a hostProc that is not mounted read-only, helps"
        );
    }
    Ok(())
}

fn request(fin_wait: u32, close_wait: u32) -> Request {
    let seconds =
        |kind: u16, value: u32| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_be_bytes()].concat();
    let data = [seconds(CTA_TIMEOUT_TCP_FIN_WAIT, fin_wait), seconds(CTA_TIMEOUT_TCP_CLOSE_WAIT, close_wait)]
        .concat();
    let kind = (libc::NFNL_SUBSYS_CTNETLINK_TIMEOUT << 8 | IPCTNL_MSG_TIMEOUT_DEFAULT_SET) as u16;
    Request::new(kind, 0)
        .fixed(&[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, 0, 0])
        .attribute(CTA_TIMEOUT_L3PROTO, &(libc::AF_INET as u16).to_be_bytes())
        .attribute(CTA_TIMEOUT_L4PROTO, &[libc::IPPROTO_TCP as u8])
        .attribute(CTA_TIMEOUT_DATA | NLA_F_NESTED, &data)
}
