//! One connection to a ztunnel, in lockstep: a request goes out only when the one before it is answered.
//!
//! Answers carry no number; only their order says which request they belong to. So any doubt about the order (an
//! answer that is late, or that nobody waits for) ends the connection: [`Lost`] consumes the trust in it, and ztunnel
//! reconnects and is told everything anew.

use super::Workload;
use super::codec::{self, Answer, DecodeError, Request};
use crate::seqpacket::Conn;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Room for one packet of ztunnel's. A refusal with a backtrace has some 1500 bytes.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The lockstep on one connection. After a [`Lost`] it is only good to be dropped.
#[derive(Debug)]
pub struct Lockstep {
    conn: Conn,
    timeout: Duration,
    buf: Box<[u8]>,
}

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// ztunnel closed it.
    #[error("ztunnel closed the connection")]
    Closed,
    /// No answer in time. What comes later would be taken for the answer to the next request.
    #[error("ztunnel did not answer {request} within {} ms", .waited.as_millis())]
    Silent {
        /// What it was asked, or `hello`.
        request: &'static str,
        /// For how long we waited.
        waited: Duration,
    },
    /// Whoever it is, it is no ztunnel.
    #[error("turned away: {0}")]
    TurnedAway(String),
    /// A packet that breaks the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// Which.
        call: &'static str,
        /// The errno.
        source: io::Error,
    },
}

impl Lockstep {
    /// Takes a connection; `timeout` is the time for each answer, the sending included.
    #[must_use]
    pub fn new(conn: Conn, timeout: Duration) -> Self {
        Self { conn, timeout, buf: vec![0; RECEIVE_BUFFER].into_boxed_slice() }
    }

    /// Waits for ztunnel's hello, the first packet of a connection.
    ///
    /// # Errors
    /// When it does not come in time, or is something else.
    pub async fn hello(&mut self) -> Result<(), Lost> {
        let waited = self.timeout;
        let packet = tokio::time::timeout(waited, self.packet())
            .await
            .map_err(|_| Lost::Silent { request: "the connection with a hello", waited })??;
        Ok(codec::decode_hello(packet)?)
    }

    /// Sends one request, with the pod's netns when it is an Add, and waits for its answer. A request that cannot be
    /// sent as it is (too long, an Add without a netns) counts as refused, and nothing is sent.
    ///
    /// # Errors
    /// When there is no answer that is certainly this request's.
    pub async fn exchange(&mut self, request: Request<'_>) -> Result<Answer, Lost> {
        let bytes = match request.encode() {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let fd = match request {
            Request::Add(Workload { netns: Some(netns), .. }) => Some(netns.as_fd()),
            Request::Add(_) => return Ok(Err("the pod's network namespace is not known".into())),
            _ => None,
        };
        // What is there before we ask cannot be the answer.
        if self.conn.is_readable().map_err(|source| Lost::Call { call: "poll", source })? {
            return Err(self.ended().await);
        }
        let waited = self.timeout;
        let both = async {
            self.conn.send(&bytes, fd).await.map_err(|source| match source.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Lost::Closed,
                _ => Lost::Call { call: "send", source },
            })?;
            Ok(codec::decode_response(self.packet().await?)?)
        };
        let request = request.name();
        tokio::time::timeout(waited, both).await.map_err(|_| Lost::Silent { request, waited })?
    }

    /// Ends when the connection does. ztunnel says nothing unasked, so anything readable while no request is
    /// outstanding is the end of the connection or breaks the protocol. Cancel-safe.
    pub async fn ended(&mut self) -> Lost {
        match self.packet().await {
            Ok(packet) => Lost::Protocol(format!("{} bytes came unasked", packet.len())),
            Err(lost) => lost,
        }
    }

    async fn packet(&mut self) -> Result<&[u8], Lost> {
        let received = self.conn.recv(&mut self.buf).await.map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionReset => Lost::Closed,
            _ => Lost::Call { call: "receive", source },
        })?;
        if received.len == 0 {
            return Err(Lost::Closed);
        }
        if received.truncated {
            return Err(Lost::Protocol(format!("a packet of more than {RECEIVE_BUFFER} bytes")));
        }
        if !received.fds.is_empty() || received.ctrl_truncated {
            return Err(Lost::Protocol("descriptors came along, and ztunnel has none to send".into()));
        }
        Ok(&self.buf[..received.len])
    }
}

impl From<DecodeError> for Lost {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}
