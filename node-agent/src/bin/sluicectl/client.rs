//! One question to the agent, and its answer.

use sluice_agent::dial;
use sluice_shared::admin::{AdminReply, AdminRequest};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the agent may take: longer than its own limit, so that it can say what it waited for.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take until it accepts.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer taken, in bytes: some thousand pods.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or may be asked.
    #[error("the agent cannot be reached: {0}")]
    Connect(io::Error),
    /// It was reached, and then failed.
    #[error("the agent did not answer: {0}")]
    Transfer(io::Error),
    /// What came is no answer.
    #[error("the agent's answer cannot be read: {0}; is it of another release?")]
    Malformed(serde_json::Error),
}

impl ClientError {
    /// What to look at.
    pub fn hints(&self) -> Option<&'static str> {
        let kind = match self {
            Self::Connect(error) => error.kind(),
            Self::Transfer(_) => {
                return Some("The agent is there and does not answer: its log says what it is busy with.");
            }
            Self::Malformed(_) => return None,
        };
        Some(match kind {
            io::ErrorKind::PermissionDenied => {
                "Only root may ask the agent: run this as root on the node, or in the agent's container."
            }
            io::ErrorKind::ConnectionRefused => {
                "The socket is there and nobody listens: the agent has ended without cleaning up, or is about to start.\n\
                 Look at the agent's pod and at the log of its last run (kubectl logs --previous).\n\
                 Captured pods stay captured meanwhile; new pods of namespaces in the mesh wait for the agent."
            }
            io::ErrorKind::TimedOut => {
                "The agent's process is there and hangs: look at its log, and at the node's (CPU, memory, disk)."
            }
            _ => {
                "Is this the node, or the agent's container on it? The socket exists only there, while the agent runs.\n\
                 Is the agent's pod running on this node? Does its `adminSocket` name another path (then: --socket PATH)?\n\
                 Captured pods stay captured without the agent; new pods of namespaces in the mesh wait for it."
            }
        })
    }
}

/// Asks.
pub fn ask(socket: &Path, request: &AdminRequest) -> Result<AdminReply, ClientError> {
    let mut stream = dial::unix(socket, ACCEPTED_WITHIN).map_err(ClientError::Connect)?;
    let answer = exchange(&mut stream, request).map_err(ClientError::Transfer)?;
    serde_json::from_slice(&answer).map_err(ClientError::Malformed)
}

fn exchange(stream: &mut UnixStream, request: &AdminRequest) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(answer)
}
