//! Rules as `iptables-restore --noflush` text.

use crate::ids::Family;
use crate::netfilter::Ruleset;
use crate::op::RestoreScript;

/// Not there yet.
#[must_use]
pub fn install(_rules: &Ruleset, _families: &[Family]) -> Vec<RestoreScript> {
    Vec::new()
}

/// Not there yet.
#[must_use]
pub fn refill(_rules: &Ruleset, _families: &[Family]) -> Vec<RestoreScript> {
    Vec::new()
}
