//! One pod that is served: its listeners, its identity and its connections.

use super::directories::Directories;
use super::events::Events;
use super::hbone::Pool;
use super::identity::{Authority, Identity};
use super::netns::{Entrance, Netns};
use super::relay::Transferred;
use super::sockets::{self, BindError, Listeners, SocketOptions};
use super::workloads::{Workload, WorkloadInfo};
use super::{dns, inbound, outbound};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What all pods have in common.
#[derive(Clone)]
pub struct Shared {
    /// The thread that makes sockets.
    pub entrance: Entrance,
    /// The workloads file.
    pub directories: Directories,
    /// The CA.
    pub authority: Authority,
    /// Where to say what happens.
    pub events: Events,
    /// ztunnel's `NODE_NAME`.
    pub node: String,
    /// How sockets are made.
    pub sockets: SocketOptions,
}

/// A running proxy. It is cut when dropped.
pub struct Proxy {
    pod: Arc<Pod>,
    stop: watch::Sender<Stop>,
}

/// What the connections of one pod share.
pub struct Pod {
    /// What all pods share.
    pub shared: Shared,
    /// Its uid.
    pub uid: String,
    /// Who it is.
    pub info: WorkloadInfo,
    /// Where it is.
    pub netns: Netns,
    /// Its connections to other ztunnels.
    pub pool: Pool,
    identity: Mutex<Option<Identity>>,
    open: Mutex<BTreeMap<u64, Value>>,
    next: AtomicU64,
    stopped: watch::Receiver<Stop>,
}

/// How far a proxy is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Running,
    /// No new connections; the open ones go on.
    Draining,
    /// Everything ends at once.
    Cut,
}

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the pod, by 15001.
    Outbound,
    /// To the pod by mTLS, on 15008.
    InboundHbone,
    /// To the pod in plaintext, by 15006.
    InboundPassthrough,
    /// A question to 15053.
    Dns,
}

/// An open connection: said and listed from its making to its drop.
pub struct Connection {
    pod: Arc<Pod>,
    id: u64,
    said: Value,
    since: Instant,
    /// What it carried.
    pub count: Transferred,
    error: Option<String>,
}

impl Proxy {
    /// Opens the pod's listeners and serves them.
    ///
    /// # Errors
    /// When a listener cannot be bound; then none is left.
    pub async fn start(
        shared: Shared,
        uid: String,
        info: WorkloadInfo,
        netns: Netns,
    ) -> Result<Self, BindError> {
        let listeners = Listeners::open(&shared.entrance, &netns, shared.sockets).await?;
        let (stop, stopped) = watch::channel(Stop::Running);
        let pod = Arc::new(Pod {
            shared,
            uid,
            info,
            netns,
            pool: Pool::default(),
            identity: Mutex::default(),
            open: Mutex::default(),
            next: AtomicU64::default(),
            stopped,
        });
        pod.accept(listeners.hbone, inbound::hbone);
        pod.accept(listeners.inbound, inbound::passthrough);
        pod.accept(listeners.outbound, outbound::outbound);
        for listener in listeners.dns_tcp {
            pod.accept(listener, dns::over_tcp);
        }
        for socket in listeners.dns_udp {
            let serving = dns::over_udp(pod.clone(), socket);
            pod.spawn_until(Stop::Draining, serving);
        }
        Ok(Self { pod, stop })
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Stops listening and lets open connections go on.
    pub fn drain(&self) {
        self.stop
            .send_if_modified(|stop| std::mem::replace(stop, Stop::Draining.max(*stop)) == Stop::Running);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.send_replace(Stop::Cut);
    }
}

impl Pod {
    /// The pod's workload and certificate, waited for as ztunnel waits (5 s).
    ///
    /// # Errors
    /// In words.
    pub async fn identify(&self) -> Result<(Arc<Workload>, Identity), String> {
        let workload = self.shared.directories.workload(&self.info, &self.shared.node).await?;
        let wanted = workload.identity();
        let mut held = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = held.as_ref().filter(|identity| identity.name() == wanted) {
            return Ok((workload, identity.clone()));
        }
        let identity = self.shared.authority.issue(&wanted).map_err(|error| error.to_string())?;
        *held = Some(identity.clone());
        Ok((workload, identity))
    }

    /// Connects from within the pod; from `source` where addresses are kept.
    ///
    /// # Errors
    /// In words, naming the destination.
    pub async fn connect(&self, source: IpAddr, to: SocketAddr) -> Result<TcpStream, String> {
        let source = self.shared.sockets.transparent.then_some(source);
        sockets::connect(&self.shared.entrance, &self.netns, source, to)
            .await
            .map_err(|error| format!("cannot connect to {to}: {error}"))
    }

    /// Runs `task` until it ends, or the pod is cut.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_until(Stop::Cut, task);
    }

    /// Opens the record of a connection, and says so.
    #[must_use]
    pub fn connection(
        self: &Arc<Self>,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        more: Value,
    ) -> Connection {
        let mut said = json!({
            "event": "conn", "uid": self.uid, "direction": direction.as_str(),
            "src": source.to_string(), "dst": destination.to_string(), "mtls": false,
        });
        merge(&mut said, more);
        self.shared.events.say(said.clone());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, said.clone());
        let (count, since) = (Transferred::default(), Instant::now());
        Connection { pod: self.clone(), id, said, since, count, error: None }
    }

    /// The open connections, by direction, as in ztunnel's `/config_dump`.
    #[must_use]
    pub fn connections(&self) -> Value {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all = |outbound: bool| -> Vec<Value> {
            let is_outbound = |c: &Value| c["direction"] == Direction::Outbound.as_str();
            let pick = open.values().filter(|c| c["direction"] != "dns" && is_outbound(c) == outbound);
            pick.map(|c| json!({"src": c["src"], "originalDst": c["dst"], "protocol": if c["mtls"] == true {"HBONE"} else {"TCP"}}))
                .collect()
        };
        json!({"inbound": all(false), "outbound": all(true)})
    }

    /// How many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn accept<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        listener: TcpListener,
        serve: fn(Arc<Self>, TcpStream, SocketAddr) -> F,
    ) {
        let pod = self.clone();
        self.spawn_until(Stop::Draining, async move {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        // It only costs latency where it cannot be set.
                        let _ = stream.set_nodelay(true);
                        pod.spawn(serve(pod.clone(), stream, sockets::canonical(peer)));
                    }
                    Err(error) => {
                        pod.shared.events.say(json!({
                            "event": "accept-error", "uid": pod.uid, "error": error.to_string(),
                        }));
                        // Out of descriptors, most likely: let connections end before the next try.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }

    fn spawn_until(&self, end: Stop, task: impl Future<Output = ()> + Send + 'static) {
        let mut stopped = self.stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                // An error means that the proxy is gone, which is a cut.
                _ = stopped.wait_for(|stop| *stop >= end) => {}
            }
        });
    }
}

impl Direction {
    /// Its name in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::InboundHbone => "inbound-hbone",
            Self::InboundPassthrough => "inbound-passthrough",
            Self::Dns => "dns",
        }
    }
}

impl Connection {
    /// Notes how the connection ended, for its last event.
    pub fn ended(&mut self, result: Result<(), String>) {
        self.error = result.err();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pod.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        let mut said = self.said.clone();
        merge(
            &mut said,
            json!({
                "event": "conn-end",
                "sent": self.count.sent.load(Ordering::Relaxed),
                "received": self.count.received.load(Ordering::Relaxed),
                "ms": u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "error": self.error,
            }),
        );
        self.pod.shared.events.say(said);
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}
