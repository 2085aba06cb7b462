//! gRPC's health service (`grpc.health.v1.Health/Check`), which the kubelet's gRPC probes call: both sides of it, over
//! HTTP/2 without TLS.

use super::health::Health;
use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use prost::Message;
use tokio::net::TcpStream;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const CONTENT_TYPE: &str = "application/grpc";
/// gRPC's status codes.
const OK: &str = "0";
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";
/// In front of each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The longest question that is read, in bytes.
const MAX_QUESTION: usize = 4096;

#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(enumeration = "Status", tag = "1")]
    status: i32,
}

/// What a health service says of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Nothing.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not.
    NotServing = 2,
}

/// Answers checks on a connection until the client closes it.
///
/// # Errors
/// When it is no HTTP/2, or breaks.
pub async fn serve(stream: TcpStream, health: Health) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let health = health.clone();
        // The connection has to be driven while the question's body arrives. A client that goes away is of no interest.
        tokio::spawn(async move { drop(answer(request, respond, &health).await) });
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    health: &Health,
) -> Result<()> {
    let known = request.uri().path() == CHECK && request.method() == Method::POST;
    let head = Response::builder().header("content-type", CONTENT_TYPE).body(())?;
    if !known {
        let (mut head, ()) = head.into_parts();
        head.headers.insert("grpc-status", HeaderValue::from_static(UNIMPLEMENTED));
        respond.send_response(Response::from_parts(head, ()), true)?;
        return Ok(());
    }
    let Question { service } = message(request.into_body()).await?;
    let mut body = respond.send_response(head, false)?;
    let mut status = NOT_FOUND;
    if service.is_empty() {
        let says = if health.is_well() { Status::Serving } else { Status::NotServing };
        body.send_data(framed(&Answer { status: says.into() }), false)?;
        status = OK;
    }
    body.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, HeaderValue::from_static(status))]))?;
    Ok(())
}

/// Asks the server at the other end of `stream` how it is.
///
/// # Errors
/// When the connection breaks, or the server says that it has no such service.
pub async fn check(stream: TcpStream) -> Result<Status> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driving = tokio::spawn(connection);
    let answer = ask(sender).await;
    driving.abort();
    answer
}

async fn ask(sender: h2::client::SendRequest<Bytes>) -> Result<Status> {
    let request = Request::post(format!("http://app{CHECK}"))
        .header("content-type", CONTENT_TYPE)
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = sender.ready().await?.send_request(request, false)?;
    body.send_data(framed(&Question::default()), true)?;
    let response = response.await?;
    ensure!(response.status() == StatusCode::OK, "HTTP status {}", response.status());
    if let Some(status) = response.headers().get("grpc-status").filter(|status| *status != OK) {
        bail!("gRPC status {status:?}");
    }
    let Answer { status } = message(response.into_body()).await?;
    Status::try_from(status).context("a status that nobody knows")
}

/// Reads one message, to the end of the stream.
async fn message<M: Message + Default>(mut body: h2::RecvStream) -> Result<M> {
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
        ensure!(bytes.len() <= MAX_QUESTION, "a message of more than {MAX_QUESTION} bytes");
    }
    ensure!(bytes.len() >= PREFIX && bytes[0] == 0, "no uncompressed gRPC message");
    Ok(M::decode(&bytes[PREFIX..])?)
}

fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}
