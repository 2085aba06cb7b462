//! A server with a listener for each way of asking, and a graceful end.

use super::grpc;
use super::health::Health;
use super::http::{self, Handler, Request, Response};
use crate::lab::traffic::echo;
use anyhow::{Context, Result};
use serde_json::json;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The longest datagram that is echoed, in bytes.
const MAX_DATAGRAM: usize = 64 * 1024;

/// What is served. A port that is `None` is not; port 0 is one of the kernel's choice.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who the server says it is.
    pub name: String,
    /// `GET /`, `GET /healthz`, `POST /healthz/pass`, `POST /healthz/fail`.
    pub http: Option<u16>,
    /// Each line is answered with `<name> <peer> <the line>`.
    pub tcp: Option<u16>,
    /// As `tcp`, a datagram a line.
    pub udp: Option<u16>,
    /// gRPC's health service.
    pub grpc: Option<u16>,
    /// How long the application takes to become well.
    pub well_after: Duration,
    /// How long open connections may go on at the end.
    pub drain: Duration,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it is reached, by kind: `http`, `tcp`, `udp`, `grpc`.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Binds every port and serves.
    ///
    /// # Errors
    /// When a port is taken.
    pub async fn start(plan: Plan) -> Result<Self> {
        let health = Health::after(plan.well_after);
        let (stop, stopped) = watch::channel(false);
        let mut server = Self { addresses: Vec::new(), stop, tasks: JoinSet::new() };
        let name: Arc<str> = plan.name.into();
        let drain = plan.drain;
        if let Some(listener) = server.listen("http", plan.http).await? {
            let handler = handler(&name, &health);
            server.tasks.spawn(accept(listener, stopped.clone(), drain, move |stream, peer| {
                http::answer(stream, peer, Arc::clone(&handler))
            }));
        }
        if let Some(listener) = server.listen("grpc", plan.grpc).await? {
            server.tasks.spawn(accept(listener, stopped.clone(), drain, move |stream, _| {
                grpc::serve(stream, health.clone())
            }));
        }
        if let Some(listener) = server.listen("tcp", plan.tcp).await? {
            let name = Arc::clone(&name);
            server.tasks.spawn(accept(listener, stopped.clone(), drain, move |stream, peer| {
                let name = Arc::clone(&name);
                async move { echo::answer(stream, peer, &name).await }
            }));
        }
        if let Some(port) = plan.udp {
            let socket = bind(port, UdpSocket::bind).await.with_context(|| format!("UDP port {port}"))?;
            server.addresses.push(("udp", socket.local_addr()?));
            server.tasks.spawn(echo_datagrams(socket, name, stopped));
        }
        Ok(server)
    }

    /// Takes no more connections, gives those that are open [`Plan::drain`] to end, and returns.
    pub async fn finish(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }

    async fn listen(&mut self, kind: &'static str, port: Option<u16>) -> Result<Option<TcpListener>> {
        let Some(port) = port else { return Ok(None) };
        let listener = listen(port).await.with_context(|| format!("port {port} for {kind}"))?;
        self.addresses.push((kind, listener.local_addr()?));
        Ok(Some(listener))
    }
}

/// Listens on every address of both families.
///
/// # Errors
/// When the port is taken.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    bind(port, TcpListener::bind).await
}

/// Where there is no IPv6, IPv4 alone has to do.
async fn bind<S, F>(port: u16, bind: impl Fn(SocketAddr) -> F) -> std::io::Result<S>
where
    F: Future<Output = std::io::Result<S>>,
{
    let both: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    match bind(SocketAddr::new(both, port)).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await
        }
        bound => bound,
    }
}

/// Hands each connection to `answer`, until stopped; then waits for those that are open, for `drain` at most.
pub async fn accept<F, E>(
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
    drain: Duration,
    answer: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = told(&mut stopped) => break,
            accepted = listener.accept() => match accepted {
                // How a connection ends is for the client to say.
                Ok((stream, peer)) => {
                    let answered = answer(stream, canonical(peer));
                    open.spawn(async move { drop(answered.await) });
                }
                // Out of descriptors, most likely: they come back when connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(drain, async { while open.join_next().await.is_some() {} }).await;
}

/// Waits for the end. A sender that is gone means the end too.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// An IPv4 client of a socket for both families, as itself.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn handler(name: &Arc<str>, health: &Health) -> Handler {
    let (name, health) = (Arc::clone(name), health.clone());
    Arc::new(move |request: &Request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => Response::json(&json!({
            "name": &*name, "ip": canonical(request.local).ip(), "peer": request.peer,
        })),
        ("GET", "/healthz") if health.is_well() => Response::new(200, "ok\n"),
        ("GET", "/healthz") => Response::new(503, "not well\n"),
        ("POST", "/healthz/pass") => switch(&health, true),
        ("POST", "/healthz/fail") => switch(&health, false),
        _ => Response::new(404, "GET / or /healthz, POST /healthz/pass or /healthz/fail\n"),
    })
}

fn switch(health: &Health, well: bool) -> Response {
    health.switch(well);
    Response::new(200, if well { "well from now on\n" } else { "not well from now on\n" })
}

async fn echo_datagrams(socket: UdpSocket, name: Arc<str>, mut stopped: watch::Receiver<bool>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            () = told(&mut stopped) => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error here is an earlier answer that found nobody.
        let Ok((length, peer)) = received else { continue };
        let said = String::from_utf8_lossy(&buffer[..length]);
        let answer = format!("{name} {} {said}", canonical(peer));
        let _ = socket.send_to(answer.as_bytes(), peer).await;
    }
}
