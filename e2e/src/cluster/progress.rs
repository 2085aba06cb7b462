//! What happens, on the terminal, with the time since the beginning.

use std::time::Instant;

/// A clock that says things. Clones share their beginning.
#[derive(Clone, Debug)]
pub struct Progress {
    begun: Instant,
}

impl Progress {
    /// Begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    /// Says what is done by now.
    pub fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.begun.elapsed().as_secs_f32());
    }
}
