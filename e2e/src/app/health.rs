//! Whether a server says that it is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A switch, shared by all that answer probes.
#[derive(Clone, Debug)]
pub struct Health {
    well: Arc<AtomicBool>,
    from: Instant,
}

impl Health {
    /// Well, but not before `delay` has passed: an application that is slow to start.
    #[must_use]
    pub fn after(delay: Duration) -> Self {
        Self { well: Arc::new(AtomicBool::new(true)), from: Instant::now() + delay }
    }

    /// Whether it is well now.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.well.load(Ordering::Acquire) && Instant::now() >= self.from
    }

    /// Makes it well, or not.
    pub fn switch(&self, well: bool) {
        self.well.store(well, Ordering::Release);
    }
}
