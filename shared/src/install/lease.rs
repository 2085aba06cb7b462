//! The lease: the proof that Sluice is installed on this node, renewed by the installer as long as its pod is here.
//!
//! An entry that an uninstall could not take out must not hold pods back for ever. So the plugin, with no agent to ask,
//! lets a pod go when the lease was given up, or has not been renewed for its horizon. It is the installer that renews,
//! not the agent: an agent that crashes again and again is no uninstall, and its pods stay closed.
//!
//! Time is counted in seconds since boot, so a wall clock that jumps, or a node that was off for a week, proves
//! nothing: after a boot, a whole horizon must pass first.

use super::INSTALL_VERSION;
use serde::{Deserialize, Serialize};

/// The length of the file, in bytes: always the same, so that a renewal in place needs no room on a full disk.
pub const LEASE_LENGTH: usize = 256;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// [`INSTALL_VERSION`]
    pub version: u32,
    /// The boot of the last renewal, as `/proc/sys/kernel/random/boot_id` has it.
    pub boot: String,
    /// When it was renewed, in seconds of that boot (CLOCK_MONOTONIC).
    pub renewed: u64,
    /// How long it holds without a renewal, in seconds.
    pub horizon: u64,
    /// Whether it was given up: the product is being uninstalled.
    #[serde(default)]
    pub released: bool,
}

/// Whether a lease still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// It does.
    Held,
    /// It was given up.
    Released,
    /// It was not renewed for so many seconds of this boot, which is more than its horizon.
    Lapsed(u64),
}

impl Lease {
    /// The file's bytes, [`LEASE_LENGTH`] of them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.resize(bytes.len().max(LEASE_LENGTH), b' ');
        bytes
    }

    /// Reads the file's bytes; `None` when they are no lease of ours, which then counts as held.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let lease: Self = serde_json::from_slice(bytes).ok()?;
        (lease.version == INSTALL_VERSION).then_some(lease)
    }

    /// How long ago it was renewed, in seconds of the boot `boot`; before that boot counts as at its beginning.
    ///
    /// Another name of the boot proves nothing by itself: LXC gives a node a boot_id of its own, by a file over the
    /// kernel's, and the installer's container has a /proc of its own that shows the kernel's. The clock is the same for
    /// both. So a renewal is of an earlier boot only if this one's clock has not come to it yet.
    #[must_use]
    pub fn age(&self, boot: &str, now: u64) -> u64 {
        let earlier = self.boot != boot && self.renewed > now;
        now.saturating_sub(if earlier { 0 } else { self.renewed })
    }

    /// How it stands at `now`, in seconds of the boot `boot`.
    #[must_use]
    pub fn holding(&self, boot: &str, now: u64) -> Holding {
        if self.released {
            return Holding::Released;
        }
        match self.age(boot, now) {
            gone if gone > self.horizon => Holding::Lapsed(gone),
            _ => Holding::Held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let boot = "b2d0a5de-8a4e-4a3b-9d3e-0c4f5f3f9a11".to_owned();
        Lease { version: INSTALL_VERSION, boot, renewed: 500, horizon: 60, released: false }
    }

    #[test]
    fn it_lapses_by_the_time_of_this_boot_alone() {
        let lease = lease();
        let table = [
            (lease.boot.as_str(), 510, Holding::Held),
            (&lease.boot, 560, Holding::Held),
            (&lease.boot, 561, Holding::Lapsed(61)),
            (&lease.boot, 3, Holding::Held),
            ("another", 60, Holding::Held),
            ("another", 61, Holding::Lapsed(61)),
            ("another", 499, Holding::Lapsed(499)),
            // As LXC shows one and the same boot to the installer and to the plugin.
            ("another", 510, Holding::Held),
            ("another", 561, Holding::Lapsed(61)),
        ];
        for (boot, now, holding) in table {
            assert_eq!(lease.holding(boot, now), holding, "{boot} {now}");
        }
        assert_eq!(Lease { released: true, ..lease }.holding("x", 0), Holding::Released);
    }

    #[test]
    fn it_has_one_length_and_is_read_back() {
        for lease in [lease(), Lease { released: true, renewed: u64::MAX, horizon: u64::MAX, ..lease() }] {
            assert_eq!(lease.to_bytes().len(), LEASE_LENGTH);
            assert_eq!(Lease::parse(&lease.to_bytes()), Some(lease));
        }
        for garbage in [&b""[..], b"{", b"{\"version\":2}", &[0; LEASE_LENGTH]] {
            assert_eq!(Lease::parse(garbage), None);
        }
    }
}
