//! `source: kubernetes`, as the reconciler hears it, against an API server that behaves, misbehaves and goes away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

mod fake;
mod fixture;
mod lookup;
mod source;
mod status;
