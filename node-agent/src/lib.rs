//! The node agent: the doing. What it does is decided and planned in `sluice-shared`.

pub mod kernel;
pub mod seqpacket;
pub mod source;
pub mod zds;
