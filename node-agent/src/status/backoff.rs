//! When a write that failed is tried again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// The first wait after a failure; it doubles up to the given longest.
const SHORTEST: Duration = Duration::from_millis(200);

/// Failures in a row, and when they allow the next try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// It failed again: the next try is after a wait that is twice the last, at most `longest`, less up to half of it by
    /// chance, so that the agents of many nodes do not come back all at once.
    pub fn failed(&mut self, longest: Duration, now: Instant) {
        let doubled = SHORTEST.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.until = Some(now + doubled.mul_f64(1.0 - chance() / 2.0));
    }

    /// The next try is after this long at the earliest, and a bit later by chance.
    pub fn wait(&mut self, at_least: Duration, now: Instant) {
        let asked = now + at_least.mul_f64(1.0 + chance() / 4.0);
        self.until = self.until.max(Some(asked));
    }

    /// It went well.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// When the next try may be, if not now.
    #[must_use]
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Whether the last try failed.
    #[must_use]
    pub const fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

/// A number from 0 to 1.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(());
    f64::from((random >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_success() {
        let now = Instant::now();
        let longest = Duration::from_secs(5);
        let mut backoff = Backoff::default();
        for round in 0..40_u32 {
            backoff.failed(longest, now);
            let wait = backoff.until(now).unwrap() - now;
            let full = SHORTEST.saturating_mul(1 << round.min(16)).min(longest);
            assert!(wait <= full && wait * 2 >= full, "{round}: {wait:?} of {full:?}");
        }
        backoff.succeeded();
        assert_eq!((backoff.until(now), backoff.is_failing()), (None, false));
    }

    #[test]
    fn what_the_server_asks_for_is_kept() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.failed(Duration::from_secs(5), now);
        backoff.wait(Duration::from_secs(7), now);
        assert!(backoff.until(now).unwrap() >= now + Duration::from_secs(7));
        assert_eq!(backoff.until(now + Duration::from_secs(9)), None);
    }
}
