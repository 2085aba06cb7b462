//! Bytes both ways between an application's socket and its peer, each direction closed on its own.

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// What a connection carried, counted while it lives.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Bytes from the side that opened the connection.
    pub sent: AtomicU64,
    /// Bytes to it.
    pub received: AtomicU64,
}

/// Relays between two sockets until both directions have ended.
///
/// # Errors
/// The first error of either side; both sockets are then reset, so that neither application takes it for an end.
pub async fn sockets(opener: &mut TcpStream, peer: &mut TcpStream, count: &Transferred) -> io::Result<()> {
    let result = {
        let (opener_in, opener_out) = opener.split();
        let (peer_in, peer_out) = peer.split();
        tokio::try_join!(
            one_way(opener_in, peer_out, &count.sent),
            one_way(peer_in, opener_out, &count.received)
        )
    };
    if result.is_err() {
        super::sockets::reset_on_close(opener);
        super::sockets::reset_on_close(peer);
    }
    result.map(|_| ())
}

/// Relays between a socket and an HTTP/2 stream; `out_of_socket` and `into_socket` count what the socket gave and got.
///
/// # Errors
/// The first error of either side; the socket and the stream are then reset.
pub async fn stream(
    socket: &mut TcpStream,
    mut send: SendStream<Bytes>,
    receive: RecvStream,
    out_of_socket: &AtomicU64,
    into_socket: &AtomicU64,
) -> io::Result<()> {
    let result = {
        let (socket_in, socket_out) = socket.split();
        tokio::try_join!(
            to_stream(socket_in, &mut send, out_of_socket),
            from_stream(receive, socket_out, into_socket)
        )
    };
    if result.is_err() {
        send.send_reset(h2::Reason::CANCEL);
        super::sockets::reset_on_close(socket);
    }
    result.map(|_| ())
}

async fn one_way(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return shut_down(to).await;
        }
        to.write_all(&buffer[..n]).await?;
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn to_stream(mut from: ReadHalf<'_>, to: &mut SendStream<Bytes>, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        tokio::select! {
            read = from.read_buf(&mut buffer) => if read? == 0 {
                return to.send_data(Bytes::new(), true).map_err(io::Error::other);
            },
            // An idle direction must hear that its stream was given up.
            reason = poll_fn(|cx| to.poll_reset(cx)) => return Err(reset_error(reason)),
        }
        while !buffer.is_empty() {
            to.reserve_capacity(buffer.len());
            let granted = poll_fn(|cx| to.poll_capacity(cx)).await;
            let granted = granted.ok_or(io::ErrorKind::ConnectionReset)?.map_err(io::Error::other)?;
            let piece = buffer.split_to(granted.min(buffer.len())).freeze();
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            to.send_data(piece, false).map_err(io::Error::other)?;
        }
    }
}

async fn from_stream(mut from: RecvStream, mut to: WriteHalf<'_>, count: &AtomicU64) -> io::Result<()> {
    while let Some(piece) = from.data().await {
        let piece = piece.map_err(io::Error::other)?;
        to.write_all(&piece).await?;
        count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        from.flow_control().release_capacity(piece.len()).map_err(io::Error::other)?;
    }
    shut_down(to).await
}

async fn shut_down(mut to: WriteHalf<'_>) -> io::Result<()> {
    match to.shutdown().await {
        // The peer has closed already; its direction says how.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

fn reset_error(reason: Result<h2::Reason, h2::Error>) -> io::Error {
    let said = reason.map_or_else(|error| error.to_string(), |reason| reason.to_string());
    io::Error::new(io::ErrorKind::ConnectionReset, said)
}
