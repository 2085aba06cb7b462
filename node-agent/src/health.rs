//! `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! Ready means that an ADD can be served: the source has shown everything there is, and plugin and ztunnel find the
//! agent's sockets. `kubectl rollout status` of the DaemonSet then means the same on every node. A ztunnel that is away
//! does not count: pods of the mesh wait for it, and the others start.
//! Alive means that this server answers.

use crate::metrics::Metrics;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// How many connections are served at once: a scraper, the kubelet, a person or two.
const MAX_CONNECTIONS: usize = 32;
/// How long a caller may take to send a request, and so how long an idle connection is kept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after `accept` has failed: mostly for want of descriptors, which others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the agent can serve an ADD, told by whoever knows. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Health {
    metrics: Metrics,
    /// Why not, or `None`.
    waiting_for: Arc<watch::Sender<Option<String>>>,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    health: Health,
}

impl Health {
    /// Not ready yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        let waiting_for = Arc::new(watch::Sender::new(Some("the agent is starting".to_owned())));
        Self { metrics, waiting_for }
    }

    /// From now on an ADD can be served.
    pub fn ready(&self) {
        if self.waiting_for.send_if_modified(|why| why.take().is_some()) {
            tracing::info!("ready");
        }
    }

    /// From now on an ADD cannot be served; `why` says what is waited for, in one line.
    pub fn not_ready(&self, why: impl Into<String>) {
        let why = Some(why.into());
        if self.waiting_for.send_if_modified(|now| std::mem::replace(now, why.clone()) != why) {
            tracing::warn!(why, "not ready");
        }
    }

    /// Why an ADD cannot be served, or `None`; and whenever that changes.
    #[must_use]
    pub fn waiting_for(&self) -> watch::Receiver<Option<String>> {
        self.waiting_for.subscribe()
    }

    /// The answer to a request, by its method and path.
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN_TEXT, "only GET and HEAD\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/metrics" => response(StatusCode::OK, OPEN_METRICS, self.metrics.render()),
            "/healthz" => response(StatusCode::OK, PLAIN_TEXT, "alive\n"),
            "/readyz" => match self.waiting_for.borrow().as_deref() {
                None => response(StatusCode::OK, PLAIN_TEXT, "ready\n"),
                Some(why) => {
                    let text = format!("not ready: {why}\n");
                    response(StatusCode::SERVICE_UNAVAILABLE, PLAIN_TEXT, text)
                }
            },
            _ => response(StatusCode::NOT_FOUND, PLAIN_TEXT, "there are /metrics, /healthz and /readyz\n"),
        }
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// `bind`'s: the address is in use, or is not this host's.
    pub async fn bind(address: SocketAddr, health: Health) -> io::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("listening on {address}: {error}")))?;
        Ok(Self { listener, health })
    }

    /// Where it listens: the port that the kernel chose, where 0 was asked for.
    ///
    /// # Errors
    /// `getsockname`'s.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let health = self.health.clone();
                    tokio::spawn(async move {
                        serve(stream, health).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an HTTP connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, health: Health) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = health.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The status line and the body of one request to a real server.
    async fn fetch(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_has_its_reason_and_the_rest_is_served_meanwhile() {
        let health = Health::new(Metrics::new());
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), health.clone()).await.unwrap();
        let address = server.local_addr().unwrap();
        let server = tokio::spawn(server.run());
        let get = |path: &'static str| async move { fetch(address, &format!("GET {path}")).await };

        let (status, body) = get("/readyz").await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 503 Service Unavailable", "not ready: the agent is starting\n")
        );
        assert_eq!(get("/healthz").await.0, "HTTP/1.1 200 OK");
        let (status, metrics) = get("/metrics").await;
        assert!(status.ends_with("200 OK") && metrics.ends_with("# EOF\n"), "{status}\n{metrics}");
        health.ready();
        assert_eq!(get("/readyz").await.0, "HTTP/1.1 200 OK");
        health.not_ready("no backend works here");
        assert_eq!(get("/readyz").await.1, "not ready: no backend works here\n");
        assert_eq!(get("/").await.0, "HTTP/1.1 404 Not Found");
        assert_eq!(fetch(address, "POST /healthz").await.0, "HTTP/1.1 405 Method Not Allowed");
        server.abort();
    }
}
