//! The CNI spec as types: netconf, `CNI_ARGS`, results and errors. Pure: text in, values out.
//!
//! What we pass on (`prevResult`) is never parsed into types of ours and written again: it stays the bytes that the
//! runtime gave. Source: <https://github.com/containernetworking/cni/blob/main/SPEC.md>, 0.3.0 to 1.1.0.

mod args;
mod netconf;
mod result;
#[cfg(test)]
mod tests;
mod version;

pub use args::{ArgsError, PodArgs};
pub use netconf::{DEFAULT_TIMEOUT, ExemptPod, LogLevel, MAX_TIMEOUT, NetConf, NetConfError, Settings};
pub use result::{Addresses, CniError, VersionInfo, addresses, empty_result};
pub use version::SpecVersion;

/// Error codes, as the result's `code`. Below 100 they are the spec's, from 100 on ours (docs/errors.md).
pub mod code {
    /// The netconf asks for a spec version that we do not speak, or a verb that its version does not have.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A required environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// Something could not be decoded.
    pub const DECODE_FAILURE: u32 = 6;
    /// The netconf is wrong.
    pub const INVALID_NETCONF: u32 = 7;
    /// Not now: try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The agent refused the pod's rules or the kernel did.
    pub const REDIRECT_FAILED: u32 = 100;
    /// What was handed over is not the pod's network namespace.
    pub const WRONG_NETNS: u32 = 101;
    /// CHECK: the pod is not captured as it should be.
    pub const NOT_CAPTURED: u32 = 102;
    /// The agent does not speak our message version.
    pub const WIRE_VERSION: u32 = 103;
    /// The plugin itself failed (a panic).
    pub const INTERNAL: u32 = 104;
}
