//! Logs: to stderr, as text for people or one JSON object a line.

use crate::config::LogFormat;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is wrong.
    #[error("logLevel: {0}")]
    Filter(#[from] ParseError),
    /// It is set up already.
    #[error("logging is set up already")]
    Again,
}

/// Sends every event of this process that passes `filter` to stderr.
///
/// # Errors
/// When the filter cannot be parsed, or logging was set up before.
pub fn start(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter)?;
    let events = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => events.try_init(),
        LogFormat::Json => events.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| TelemetryError::Again)
}
