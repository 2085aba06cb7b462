//! The chart, rendered by real helm and judged by the API server's own code. `make chart-test` runs it: helm and
//! apicheck are built through the Go module proxy, which other tests do without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

mod aliases;
mod helm;
mod notes;
mod platforms;
mod programs;
mod refusals;
mod sound;
mod upgrades;
