//! Readiness and the config dump, by just enough HTTP for `curl` and a probe.

use super::table::Table;
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How long a client may take over its request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves `GET /healthz/ready` and `GET /config_dump` at `address`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, table: Arc<Table>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let table = table.clone();
            // A client that gives up is of no interest.
            tokio::spawn(async move { drop(tokio::time::timeout(PATIENCE, answer(stream, &table)).await) });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, table: &Table) -> io::Result<()> {
    let mut lines = BufReader::new(&mut stream).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let (status, body) = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/healthz/ready", ..] => match table.ready() {
            Ok(()) => ("200 OK", "ready\n".to_owned()),
            Err(why) => ("500 Internal Server Error", format!("{why}\n")),
        },
        ["GET", "/config_dump", ..] => ("200 OK", format!("{:#}\n", json!({"workloadState": table.dump()}))),
        _ => ("404 Not Found", "GET /healthz/ready or /config_dump\n".to_owned()),
    };
    let length = body.len();
    let head = format!("HTTP/1.0 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}
