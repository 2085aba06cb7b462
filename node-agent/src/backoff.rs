//! How long to wait before the API server is asked again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// After so long without a failure the first wait comes first again.
const FORGET: Duration = Duration::from_secs(120);
/// The longest that a server is left alone because it says so. What `Retry-After` says is anybody's text: a proxy's page
/// for maintenance must not silence the agent for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

/// Failures in a row, and when they allow the next try.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    shortest: Duration,
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Nothing has failed yet. After the first failure the wait is this one; it doubles.
    #[must_use]
    pub const fn new(shortest: Duration) -> Self {
        Self { shortest, failures: 0, until: None }
    }

    /// It failed again: says how long to wait, and keeps it. That is twice the last wait, `longest` at most, less up to half
    /// of it by chance: the agents of a thousand nodes must not come back all at once. What the server `asked` for is kept,
    /// up to two minutes, and a bit more by chance.
    pub fn failed(&mut self, longest: Duration, asked: Option<Duration>, now: Instant) -> Duration {
        if self.until.is_some_and(|until| now.saturating_duration_since(until) > FORGET) {
            self.failures = 0;
        }
        let doubled = self.shortest.saturating_mul(1 << self.failures.min(16)).min(longest);
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED).mul_f64(1.0 + chance() / 4.0);
        let wait = spread(doubled).max(asked);
        self.failures = self.failures.saturating_add(1);
        self.until = self.until.max(Some(now + wait));
        wait
    }

    /// It went well.
    pub fn succeeded(&mut self) {
        *self = Self::new(self.shortest);
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

/// Between half of it and all of it, by chance.
#[must_use]
pub fn spread(whole: Duration) -> Duration {
    whole.mul_f64(1.0 - chance() / 2.0)
}

/// A number from 0 to 1. The standard library's hasher is keyed by chance.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(());
    f64::from((random >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_success() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(SHORTEST);
        for round in 0..40_u32 {
            let wait = backoff.failed(LONGEST, None, now);
            let full = SHORTEST.saturating_mul(1 << round.min(16)).min(LONGEST);
            assert!(wait <= full && wait * 2 >= full, "{round}: {wait:?} of {full:?}");
            assert_eq!(backoff.until(now), Some(now + wait));
            now += wait;
        }
        backoff.succeeded();
        assert_eq!((backoff.until(now), backoff.is_failing()), (None, false));
        assert!(backoff.failed(LONGEST, None, now) <= SHORTEST);
    }

    #[test]
    fn they_begin_anew_after_a_good_time() {
        let now = Instant::now();
        let mut backoff = Backoff::new(SHORTEST);
        let mut failed = |at: Instant| backoff.failed(LONGEST, None, at);
        for _ in 0..10 {
            failed(now);
        }
        assert!(failed(now + FORGET) > SHORTEST);
        assert!(failed(now + FORGET * 3) <= SHORTEST);
    }

    #[test]
    fn what_the_server_asks_for_is_kept_within_reason() {
        let now = Instant::now();
        for (asked, kept) in [(7, 7), (119, 119), (121, 120), (86_400, 120), (u64::MAX, 120)] {
            let mut backoff = Backoff::new(SHORTEST);
            let wait = backoff.failed(LONGEST, Some(Duration::from_secs(asked)), now);
            let kept = Duration::from_secs(kept);
            assert!(wait >= kept && wait <= kept.mul_f64(1.25), "{asked}: {wait:?}");
            assert_eq!(backoff.until(now + wait), None);
        }
        let mut backoff = Backoff::new(SHORTEST);
        let asked = backoff.failed(LONGEST, Some(Duration::from_secs(7)), now);
        backoff.failed(LONGEST, None, now);
        assert_eq!(backoff.until(now), Some(now + asked), "another request's failure does not shorten it");
    }
}
