//! The application in the test cluster's pods: it serves over TCP, UDP, HTTP and gRPC, asks, keeps connections open and
//! counts what becomes of them. It knows nothing of the mesh but what a server sees: whether the client's own socket or
//! somebody else's is at the other end.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | every listener of one server, and its graceful end |
//! | [`http`], [`grpc`] | just enough of each for probes and for people |
//! | [`health`] | the health that they tell, and that can be switched |
//! | [`ask`] | one question, over any of them |
//! | [`client`], [`totals`] | load that counts |

pub mod ask;
pub mod client;
pub mod grpc;
pub mod health;
pub mod http;
pub mod server;
pub mod totals;

#[cfg(test)]
mod tests;
