//! One question, over any of the ways that a [`super::server`] answers.

use super::grpc::{self, Status};
use super::http;
use crate::lab::traffic::dial::{Answer, Dial, parse};
use anyhow::{Context, Result, anyhow, ensure};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The longest datagram that is taken for an answer, in bytes.
const MAX_DATAGRAM: usize = 64 * 1024;

/// How the question is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A line to the TCP echo server.
    Line(String),
    /// A datagram to the UDP echo server.
    Datagram(String),
    /// A method and a path: any status but 200 is an error.
    Http(String, String),
    /// gRPC's health check: anything but `SERVING` is an error.
    Grpc,
}

/// What came back.
#[derive(Clone, Debug)]
pub enum Reply {
    /// From an echo server: who answered, and whom they saw.
    Echo(Answer),
    /// From the others, in words.
    Text(String),
}

/// The addresses of `target` (`host:port`), as the resolver gives them now.
///
/// # Errors
/// When there are none.
pub async fn resolve(target: &str) -> Result<Vec<SocketAddr>> {
    let found: Vec<_> =
        tokio::net::lookup_host(target).await.with_context(|| format!("resolve {target}"))?.collect();
    ensure!(!found.is_empty(), "{target} has no address");
    Ok(found)
}

/// Puts one question to `to` on a connection of its own.
///
/// # Errors
/// What went wrong, and on the way to whom.
pub async fn ask(to: SocketAddr, question: &Question, patience: Duration) -> Result<Reply> {
    let reply = async {
        match question {
            Question::Line(line) => {
                let dial = Dial { patience, ..Dial::to(to) }.recognised();
                let mut stream = BufReader::new(dial.connect_async().await.context("connect")?);
                same(exchange(&mut stream, line).await?, line)
            }
            Question::Datagram(line) => same(datagram(to, line).await?, line),
            Question::Http(method, path) => {
                let mut stream = TcpStream::connect(to).await.context("connect")?;
                let response = http::ask(&mut stream, method, path).await?;
                let body = response.body.trim_end().to_owned();
                ensure!(response.status == 200, "status {}: {body}", response.status);
                Ok(Reply::Text(body))
            }
            Question::Grpc => {
                let status = grpc::check(TcpStream::connect(to).await.context("connect")?).await?;
                ensure!(status == Status::Serving, "{status:?}");
                Ok(Reply::Text("Serving".to_owned()))
            }
        }
    };
    let reply = timeout(patience, reply).await.map_err(|_| anyhow!("no answer within {patience:?}"));
    reply.flatten().with_context(|| format!("ask {to}"))
}

/// Says one line to an echo server on an open connection, and takes the answer. Whether it is the same line that came
/// back is for the caller to see.
///
/// # Errors
/// When the connection breaks, or somebody else answers than an echo server.
pub async fn exchange(stream: &mut BufReader<TcpStream>, line: &str) -> Result<Answer> {
    let local = stream.get_ref().local_addr()?;
    stream.get_mut().write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    ensure!(!answer.is_empty(), "closed without an answer");
    understood(&answer, local)
}

async fn datagram(to: SocketAddr, line: &str) -> Result<Answer> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(line.as_bytes()).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    let length = socket.recv(&mut buffer).await?;
    understood(&String::from_utf8_lossy(&buffer[..length]), socket.local_addr()?)
}

fn understood(answer: &str, local: SocketAddr) -> Result<Answer> {
    parse(answer, local).with_context(|| format!("no echo server's answer: {answer:?}"))
}

fn same(answer: Answer, line: &str) -> Result<Reply> {
    ensure!(answer.said == line, "{line:?} came back as {:?}", answer.said);
    Ok(Reply::Echo(answer))
}
