//! What the agent asks of an API server and tells it, with one that behaves, misbehaves and goes away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

mod ending;
mod fake;
mod fixture;
mod installation;
mod lookup;
mod relist;
#[allow(dead_code, reason = "the tests of adoption use the rest")]
#[path = "../kernel/adopt/runtime.rs"]
mod runtime;
mod source;
mod status;
mod taints;
mod version;
