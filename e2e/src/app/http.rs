//! Just enough HTTP/1.1 for probes, `curl` and the tests: one request a connection, answered from its first line.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// How long a client may take over its request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request head, in bytes.
const MAX_HEAD: u64 = 16 * 1024;

/// A request, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`
    pub method: String,
    /// `/healthz`
    pub path: String,
    /// Who asks, as the kernel says.
    pub peer: SocketAddr,
    /// Whom they reached.
    pub local: SocketAddr,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, as 200.
    pub status: u16,
    /// Text or JSON.
    pub body: String,
}

/// What answers.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

impl Response {
    /// With a status of its own.
    #[must_use]
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    /// 200, with JSON.
    #[must_use]
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self::new(200, body + "\n"),
            Err(error) => Self::new(500, format!("{error}\n")),
        }
    }
}

/// Answers one request on a connection and closes it.
///
/// # Errors
/// When the client goes away, or takes too long.
pub async fn answer(stream: TcpStream, peer: SocketAddr, handler: Handler) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, converse(stream, peer, &handler)).await?
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, handler: &Handler) -> io::Result<()> {
    let local = stream.local_addr()?;
    let mut lines = BufReader::new((&mut stream).take(MAX_HEAD)).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let response = match first.split(' ').collect::<Vec<_>>()[..] {
        [method, path, version] if version.starts_with("HTTP/1.") => {
            handler(&Request { method: method.to_owned(), path: path.to_owned(), peer, local })
        }
        _ => Response::new(400, "this is HTTP/1.1\n"),
    };
    let Response { status, body } = response;
    let head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        reason(status),
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}

/// Asks for `path` on an open connection. The answer's status and body.
///
/// # Errors
/// When the connection breaks, or it is no HTTP.
pub async fn ask(stream: &mut TcpStream, method: &str, path: &str) -> io::Result<Response> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let parsed = || {
        let status = text.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        Some(Response::new(status, text.split_once("\r\n\r\n")?.1))
    };
    parsed().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}")))
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        503 => "Service Unavailable",
        _ => "Error",
    }
}
