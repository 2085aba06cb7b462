//! How long to wait before the API server is asked again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// The first wait; it doubles.
const MIN: Duration = Duration::from_millis(500);
/// The longest.
const MAX: Duration = Duration::from_secs(30);
/// After so long without a failure the first wait comes first again.
const FORGET: Duration = Duration::from_secs(120);

/// Waits that grow, each of them between half and all of what it could be: a thousand nodes whose API server comes back
/// must not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    last: Option<Instant>,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: MIN, last: None }
    }

    /// The wait after one more failure. `at_least` is what the server asked for.
    pub(crate) fn after_failure(&mut self, now: Instant, at_least: Option<Duration>) -> Duration {
        if self.last.is_none_or(|last| now.duration_since(last) > FORGET) {
            self.next = MIN;
        }
        let wait = spread(self.next).max(at_least.unwrap_or_default().min(FORGET));
        self.next = (self.next * 2).min(MAX);
        self.last = Some(now + wait);
        wait
    }
}

/// Between half of it and all of it, by chance.
pub(crate) fn spread(whole: Duration) -> Duration {
    // The standard library's hasher is keyed by chance.
    let chance = RandomState::new().hash_one(0_u8) % 1024;
    whole.mul_f64(0.5 + chance as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_good_time() {
        let (mut backoff, now) = (Backoff::new(), Instant::now());
        let waits: Vec<_> = (0..12).map(|_| backoff.after_failure(now, None)).collect();
        assert!((MIN / 2..=MIN).contains(&waits[0]), "{waits:?}");
        assert!((MAX / 2..=MAX).contains(&waits[11]), "{waits:?}");
        assert_eq!(backoff.after_failure(now, Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert!(backoff.after_failure(now + FORGET, None) > MIN);
        assert!(backoff.after_failure(now + FORGET * 3, None) <= MIN);
    }
}
