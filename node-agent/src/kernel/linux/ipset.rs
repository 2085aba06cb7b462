//! ipsets, asked about and destroyed by name.

use super::netlink::{Conversation, Refused, Request};
use crate::kernel::KernelError;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::thread;
use std::time::{Duration, Instant};

// include/uapi/linux/netfilter/ipset/ip_set.h
const IPSET_CMD_DESTROY: i32 = 3;
const IPSET_CMD_HEADER: i32 = 12;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ERR_BUSY: i32 = 4100;
/// How long nf_tables may take to free rules.
const FREED_WITHIN: Duration = Duration::from_secs(2);
/// `IPSET_PROTOCOL_MIN`: what every kernel with ipset understands.
const PROTOCOL: u8 = 6;

/// Whether the calling thread's namespace has a set of this name; none has where the kernel has no ipset.
pub(super) fn is_there(name: &str) -> Result<bool, KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    match conversation.one(request(IPSET_CMD_HEADER, name)) {
        Ok(_) => Ok(true),
        Err(refused) if is_absent(&refused) => Ok(false),
        Err(refused) => Err(refused.during(format!("look for the ipset {name}"))),
    }
}

/// Destroys a set; one that is gone already is success. The kernel refuses it while a rule names it, and nf_tables takes
/// a moment to free the rules that a transaction has deleted.
pub(super) fn destroy(name: &str) -> Result<(), KernelError> {
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    let begun = Instant::now();
    loop {
        match conversation.acknowledged(request(IPSET_CMD_DESTROY, name)) {
            Err(refused) if refused.errno() == Some(IPSET_ERR_BUSY) && begun.elapsed() < FREED_WITHIN => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(refused) if refused.errno() == Some(IPSET_ERR_BUSY) => {
                let refused = Refused { words: "a rule names it".into(), ..refused };
                return Err(refused.during(format!("destroy the ipset {name}")));
            }
            Err(refused) if !is_absent(&refused) => {
                return Err(refused.during(format!("destroy the ipset {name}")));
            }
            _ => return Ok(()),
        }
    }
}

/// `EINVAL` is what nfnetlink says when no subsystem has that number.
fn is_absent(refused: &Refused) -> bool {
    matches!(refused.errno(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP))
}

fn request(command: i32, name: &str) -> Request {
    let kind = (libc::NFNL_SUBSYS_IPSET << 8 | command) as u16;
    Request::new(kind, 0)
        .fixed(&[libc::NFPROTO_IPV4 as u8, libc::NFNETLINK_V0 as u8, 0, 0])
        .attribute(IPSET_ATTR_PROTOCOL, &[PROTOCOL])
        .string(IPSET_ATTR_SETNAME, name)
}
