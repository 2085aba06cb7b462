//! The end-to-end room: what the tests and the demo are made of. It drives the real binaries as black boxes, and
//! imports `sluice-shared` only.
//!
//! [`lab`] is nodes, pods and an outside world as network namespaces on one machine, with real CNI plugins and real
//! packets, inside one private outer namespace, so that nothing of it is left, also after a crash. [`ztunnel`] is what
//! stands in for ztunnel there. [`cluster`] is Kubernetes itself on one machine, in the same private world, and [`app`]
//! what runs in its pods. [`matrix`] is one lab for each primary CNI.

pub mod app;
pub mod cluster;
pub mod lab;
pub mod matrix;
pub mod ztunnel;
