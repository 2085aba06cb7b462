//! The rules: what they say (goldens), what they do (two small machines that run the encoded bytes and the rendered
//! text), and in which order they are put in force.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its tools too")]

mod agreement;
mod generate;
mod golden;
mod iptables_vm;
mod nft_vm;
mod nft_wire;
mod order;
mod vm;
