//! The end-to-end room: what the tests and the demo are made of. It drives the real binaries as black boxes, and
//! imports `sluice-shared` only.

pub mod ztunnel;
