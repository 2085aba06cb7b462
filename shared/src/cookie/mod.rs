//! The probe strategy `cookie`: the opening SYNs of the kubelet's own connections to a pod carry a secret of that pod's as
//! a TCP option, and one rule in the pod lets exactly those pass the redirect. The host needs no rule.
//!
//! A program on the kubelet's cgroup ([`program`]) writes the option; it looks the pod's address up in a map from
//! [`key`] to [`Cookie::option`], so that whoever has no cookie gets no option.

mod assembler;
mod program;

pub use program::{Slot, program};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of an experimental option (RFC 4727).
const EXPERIMENT: u8 = 254;
/// Says whose experiment it is (RFC 6994): `SL`.
const EXPERIMENT_ID: [u8; 2] = *b"SL";

/// How long the option is, in bytes: kind, length, experiment and cookie. A multiple of four, or the kernel would pad it.
pub const OPTION_BYTES: usize = 12;
/// How long a key of the map is, in bytes: an IPv6 address.
pub const KEY_BYTES: usize = 16;
/// How many addresses the map takes; a node has a few hundred pods.
pub const MAX_ADDRESSES: u32 = 8192;

/// A pod's secret: 64 bits from the kernel's random source. It is shown nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie([u8; 8]);

impl Cookie {
    /// A cookie of these bytes, which must be random.
    #[must_use]
    pub const fn new(secret: [u8; 8]) -> Self {
        Self(secret)
    }

    /// The whole option, as it is in a TCP header.
    #[must_use]
    pub fn option(self) -> [u8; OPTION_BYTES] {
        let mut option = [0; OPTION_BYTES];
        option[0] = EXPERIMENT;
        option[1] = OPTION_BYTES as u8;
        option[2..4].copy_from_slice(&EXPERIMENT_ID);
        option[4..].copy_from_slice(&self.0);
        option
    }

    /// The cookie in an option; `None` when it is another option.
    #[must_use]
    pub fn from_option(option: &[u8]) -> Option<Self> {
        let secret = Self(option.get(4..)?.try_into().ok()?);
        (secret.option() == option).then_some(secret)
    }

    /// The kind of its option, by which nf_tables finds it.
    #[must_use]
    pub const fn kind() -> u8 {
        EXPERIMENT
    }
}

/// What is printed is logged, and what is logged is read by others.
impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(…)")
    }
}

/// An address as a key of the map: as IPv6, IPv4 mapped into it, in network byte order.
#[must_use]
pub const fn key(address: IpAddr) -> [u8; KEY_BYTES] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a key.
#[must_use]
pub fn address(key: [u8; KEY_BYTES]) -> IpAddr {
    let v6 = Ipv6Addr::from(key);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
}
