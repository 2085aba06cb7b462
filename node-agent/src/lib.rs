//! The node agent: the doing. What it does is decided and planned in `sluice-shared`.

pub mod admin;
pub mod adopt;
pub mod app;
pub mod backoff;
pub mod config;
pub mod dial;
pub mod doctor;
pub mod durable;
pub mod health;
pub mod installed;
pub mod journal;
pub mod kernel;
pub mod limits;
pub mod metrics;
pub mod names;
pub mod predecessor;
pub mod reconcile;
pub mod seqpacket;
pub mod source;
pub mod status;
pub mod telemetry;
pub mod visible;
pub mod vitals;
pub mod workloads;
pub mod yaml;
pub mod zds;
