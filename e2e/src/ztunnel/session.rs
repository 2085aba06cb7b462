//! The connection to the node agent: one hello, then one answer a request, for as long as the agent is there.

use super::events::Events;
use super::messages::{self, MAX_REQUEST, Packet};
use super::table::{Refused, Table};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

/// The first pause after a failed connect; it doubles.
const CONNECT_DELAY: Duration = Duration::from_millis(20);
/// The first pause after a hello that could not be written; it doubles.
const HELLO_DELAY: Duration = Duration::from_millis(5);
/// Neither grows beyond this. A session that ends after its hello costs no pause at all.
const LAST_DELAY: Duration = Duration::from_secs(15);
/// How long an answer, or the hello, may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often pending pods are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Room for exactly one descriptor, as ztunnel computes it: CMSG_SPACE, which by its alignment holds two.
const FD_SPACE: usize = 24;

/// ztunnel's side of ZDS.
pub struct Session {
    /// The agent's socket.
    pub socket: PathBuf,
    /// What is served.
    pub table: Arc<Table>,
    /// Where to say what happens.
    pub events: Events,
    /// After how many requests to stop answering, for tests of a hung ztunnel.
    pub hang_after: Option<u64>,
}

/// The agent broke the protocol in a way that ends ztunnel.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolError(String);

enum End {
    /// The agent did not take the hello.
    NoHello(io::Error),
    /// The agent closed, or the connection was dropped: connect again.
    Reconnect(String),
    Fatal(ProtocolError),
}

impl Session {
    /// Connects and serves, again and again. Returns only when the agent broke the protocol in a way that ends ztunnel.
    pub async fn run(self) -> ProtocolError {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut connect_delay, mut hello_delay, mut answered) = (CONNECT_DELAY, HELLO_DELAY, 0);
        loop {
            let agent = match UnixSeqpacket::connect(&self.socket).await {
                Ok(agent) => agent,
                Err(error) => {
                    self.events.say(json!({"event": "no-agent", "error": error.to_string()}));
                    self.pause(&mut connect_delay, &mut retry).await;
                    continue;
                }
            };
            connect_delay = CONNECT_DELAY;
            self.table.session_began();
            self.events.say(json!({"event": "connected"}));
            let end = self.serve(&agent, &mut retry, &mut answered).await;
            drop(agent);
            self.table.session_ended();
            match end {
                End::Fatal(error) => return error,
                End::Reconnect(why) => {
                    hello_delay = HELLO_DELAY;
                    self.events.say(json!({"event": "disconnected", "why": why}));
                }
                End::NoHello(error) => {
                    let why = format!("cannot write the hello: {error}");
                    self.events.say(json!({"event": "disconnected", "why": why}));
                    self.pause(&mut hello_delay, &mut retry).await;
                }
            }
        }
    }

    /// Waits for `delay`, and doubles it. What is pending is tried again meanwhile.
    async fn pause(&self, delay: &mut Duration, retry: &mut Interval) {
        let until = Instant::now() + *delay;
        while tokio::time::timeout_at(until, retry.tick()).await.is_ok() {
            self.table.retry_pending().await;
        }
        *delay = LAST_DELAY.min(*delay * 2);
    }

    async fn serve(&self, agent: &UnixSeqpacket, retry: &mut Interval, answered: &mut u64) -> End {
        if has_request(agent).await {
            self.events.fault("the agent spoke before it had our hello");
        }
        if let Err(error) = write(agent, &messages::hello()).await {
            return End::NoHello(error);
        }
        loop {
            let packet = tokio::select! {
                packet = receive(agent) => packet,
                _ = retry.tick() => {
                    self.table.retry_pending().await;
                    continue;
                }
            };
            let packet = match packet {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end_of_stream(agent),
                Err(error) => return End::Reconnect(format!("cannot read: {error}")),
            };
            if self.hang_after.is_some_and(|limit| *answered >= limit) {
                self.events.say(json!({"event": "hanging", "answered": *answered}));
                std::future::pending::<()>().await;
            }
            let result = match packet.request() {
                Ok(request) => self.table.process(request).await,
                Err(error) => {
                    let said = format!("failure to read message : {error}");
                    self.events.fault(said.clone());
                    // The connection ends either way; the agent may not read it any more.
                    let _ = write(agent, &messages::response(&said)).await;
                    return End::Reconnect(said);
                }
            };
            if let Err(end) = self.answer(agent, result).await {
                return end;
            }
            *answered += 1;
        }
    }

    async fn answer(&self, agent: &UnixSeqpacket, result: Result<(), Refused>) -> Result<(), End> {
        // Acks carry no ids: an agent that does not wait for one cannot know what it answers.
        if has_request(agent).await {
            self.events.fault("the agent sent a request before the one before was answered");
        }
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if !error.is_empty() {
            self.events.say(json!({"event": "nack", "error": error}));
        }
        let written = write(agent, &messages::response(&error)).await;
        match (result, written) {
            (Err(Refused::Protocol(_)), _) => Err(End::Fatal(ProtocolError(error))),
            (_, Err(error)) => Err(End::Reconnect(format!("cannot answer: {error}"))),
            (_, Ok(())) => Ok(()),
        }
    }

    /// An empty packet reads like the end of the stream; only the poll flags tell them apart.
    fn end_of_stream(&self, agent: &UnixSeqpacket) -> End {
        let fd = agent.as_async_fd().as_fd();
        let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
        let hung_up = poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0].revents().is_some_and(|flags| flags.contains(PollFlags::POLLHUP));
        if !hung_up {
            self.events
                .fault("the agent sent an empty packet, which ztunnel takes for the end of the stream");
        }
        End::Reconnect("the agent closed the connection".into())
    }
}

/// The next packet of the agent's; none at the end of the stream.
///
/// # Errors
/// `recvmsg`'s.
pub async fn receive(agent: &UnixSeqpacket) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_REQUEST];
    let mut space = [0; FD_SPACE];
    let (info, ancillary) = agent.recv_with_ancillary(&mut bytes, &mut space).await?;
    let mut fds = Vec::new();
    for message in ancillary.into_messages() {
        if let OwnedAncillaryMessage::FileDescriptors(received) = message {
            fds.extend(received);
        }
    }
    if info.bytes_read() == 0 {
        return Ok(None);
    }
    bytes.truncate(info.bytes_read());
    Ok(Some(Packet { bytes, truncated: info.truncated(), fds, fds_truncated: info.ancillary_truncated() }))
}

async fn write(agent: &UnixSeqpacket, packet: &[u8]) -> io::Result<()> {
    tokio::time::timeout(WRITE_TIMEOUT, agent.send(packet)).await??;
    Ok(())
}

/// Whether a request lies there. The end of the stream is none.
async fn has_request(agent: &UnixSeqpacket) -> bool {
    peek(agent).await.is_some_and(|bytes| bytes > 0)
}

async fn peek(agent: &UnixSeqpacket) -> Option<usize> {
    let mut byte = [0];
    poll_fn(|cx| match agent.poll_peek(cx, &mut byte) {
        Poll::Ready(Ok(info)) => Poll::Ready(Some(info.bytes_read())),
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
    })
    .await
}
