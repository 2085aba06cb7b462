//! Traffic between places: [`echo`] answers, [`dial`] asks, [`load`] does so all the time and counts, [`dns`] resolves.

pub mod dial;
pub mod dns;
pub mod echo;
pub mod load;

/// The ports that clients bind to when they want to be recognised: below the range from which the kernel, and so
/// ztunnel, takes ports by itself. A server that sees another port than the client's own talks to a proxy.
pub const CLIENT_PORTS: std::ops::Range<u16> = 16_000..32_000;

/// As [`CLIENT_PORTS`], for connections that are made one by one beside a load.
pub const SINGLE_CLIENT_PORTS: std::ops::Range<u16> = 10_000..15_000;
