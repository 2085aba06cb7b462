//! The lab: nodes, pods and an outside world as network namespaces on one machine, with real CNI plugins, real
//! packets and the real binaries as black boxes.
//!
//! Everything lives inside one private outer namespace ([`lab::outer`]), so that nothing of it reaches the machine's
//! own network and nothing of it is left, also after a crash. Imports `sluice-shared` only.

pub mod lab;
