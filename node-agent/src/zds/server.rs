//! ztunnel's socket: who may connect and how often, and the handle by which the agent adds and deletes pods.

use super::conn::Lockstep;
use super::link::{self, Shared};
use super::{AddError, Connection, Hooks, Peer, PodState, Workload};
use crate::kernel::{HostProc, hostproc};
use crate::seqpacket::{Conn, ListenError, Listener, Spot};
use sluice_shared::ids::PodUid;
use std::future::Future;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{error, warn};

/// How long to wait after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long to wait before a socket that another agent still has is tried again.
const BIND_PAUSE: Duration = Duration::from_millis(200);

/// How the server listens.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where. 107 bytes at most.
    pub socket: PathBuf,
    /// The socket file's mode.
    pub mode: u32,
    /// The mode of its directory, if that has to be made.
    pub directory_mode: u32,
    /// The time for each answer; a ztunnel that takes longer is dropped.
    pub answer_timeout: Duration,
    /// How often a connection is accepted, on average. A ztunnel whose connection is dropped comes back at once,
    /// without a pause of its own.
    pub accept_interval: Duration,
    /// How many may be accepted at once after a quiet time.
    pub accept_burst: u32,
    /// The user that ztunnel runs as; others are turned away.
    pub ztunnel_uid: u32,
    /// Where the process at the other end is looked up.
    pub host_proc: HostProc,
}

/// The listening server. Dropping it closes the socket and every connection; ztunnels go on serving their pods, and
/// connect to the next agent.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    spot: Arc<OnceLock<Spot>>,
}

/// The hand-over to whichever ztunnels are connected. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// A wait for an Add's answer, given up when dropped.
struct Wait<'a> {
    shared: &'a Shared,
    ticket: u64,
    answer: oneshot::Receiver<(Peer, Result<(), String>)>,
}

/// A token bucket.
#[derive(Debug)]
struct Rate {
    interval: Duration,
    burst: u32,
    tokens: u32,
    filled: Instant,
}

impl Config {
    /// What a node wants, at this path: only root, 5 s for an answer, 5 connections a second.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: 0o600,
            directory_mode: 0o755,
            answer_timeout: Duration::from_secs(5),
            accept_interval: Duration::from_millis(200),
            accept_burst: 5,
            ztunnel_uid: 0,
            host_proc: HostProc::default(),
        }
    }
}

impl Server {
    /// Listens, and serves every ztunnel that connects until it is closed. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be listened on.
    pub fn start<H: Hooks>(config: Config, hooks: Arc<H>) -> Result<(Handle, Self), ListenError> {
        let listener = Listener::bind(&config.socket, config.mode, config.directory_mode)?;
        let spot = Arc::new(OnceLock::from(listener.spot()));
        let shared = Arc::new(Shared::new());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, config, Arc::clone(&shared), hooks, stopped));
        Ok((Handle { shared }, Self { task, stop, spot }))
    }

    /// As [`Self::start`], but listens only when `free` is done: another agent has the socket until then. One that is
    /// taken all the same is tried again.
    pub fn start_after<H: Hooks>(
        config: Config,
        hooks: Arc<H>,
        free: impl Future<Output = ()> + Send + 'static,
    ) -> (Handle, Self) {
        let (spot, shared) = (Arc::new(OnceLock::new()), Arc::new(Shared::new()));
        let (stop, mut stopped) = watch::channel(false);
        let (found, pods) = (Arc::clone(&spot), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let listening = async {
                free.await;
                loop {
                    match Listener::bind(&config.socket, config.mode, config.directory_mode) {
                        Ok(listener) => return listener,
                        Err(error) => warn!("ztunnel's socket cannot be listened on yet: {error}"),
                    }
                    tokio::time::sleep(BIND_PAUSE).await;
                }
            };
            let listener = tokio::select! {
                _ = stopped.changed() => return,
                listener = listening => listener,
            };
            let _ = found.set(listener.spot());
            accept(listener, config, pods, hooks, stopped).await;
        });
        (Handle { shared }, Self { task, stop, spot })
    }

    /// Where ztunnel reaches it, once it listens.
    #[must_use]
    pub fn spot(&self) -> Arc<OnceLock<Spot>> {
        Arc::clone(&self.spot)
    }

    /// Closes the socket and every connection, and returns when that is done.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await {
            error!("the ZDS server ended badly: {error}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handle {
    /// Hands a pod over: to the newest ready ztunnel, and to every newer one when its snapshot is through. The first
    /// answer decides. If nobody is ready, or the one that was asked dies, it waits for the next until the deadline.
    ///
    /// Dropping the future ends the waiting, not the hand-over; [`Handle::del`] ends that.
    ///
    /// # Errors
    /// See [`AddError`]. After each of them but `Withdrawn` the pod may still be handed over later, by a retry or by a
    /// snapshot, which [`Hooks::answered`] tells.
    pub async fn add(&self, workload: Workload, deadline: Instant) -> Result<Peer, AddError> {
        if workload.netns.is_none() {
            return Err(AddError::Refused("the pod's network namespace is not known".into()));
        }
        let begun = Instant::now();
        let ticket = self.shared.ledger().add(workload);
        let mut wait = Wait { shared: &self.shared, ticket: ticket.id, answer: ticket.answer };
        match tokio::time::timeout_at(deadline, &mut wait.answer).await {
            Ok(Ok((peer, Ok(())))) => Ok(peer),
            Ok(Ok((_, Err(reason)))) => Err(AddError::Refused(reason)),
            Ok(Err(_)) => Err(AddError::Withdrawn),
            Err(_) if wait.shared.ledger().forget(ticket.id) => Err(AddError::NoAnswer(begun.elapsed())),
            Err(_) if *self.any_ready().borrow() => Err(AddError::Busy(begun.elapsed())),
            Err(_) => Err(AddError::NoZtunnel(begun.elapsed())),
        }
    }

    /// Takes a pod from every ztunnel. It is done at once, whether or not the future is awaited; the future ends when
    /// each has answered or is gone, at once when none is connected.
    pub fn del(&self, uid: &PodUid) -> impl Future<Output = ()> + Send + use<> {
        let answers = self.shared.ledger().del(uid);
        async move {
            for answer in answers {
                // Closing is the answer; nothing is ever sent.
                drop(answer.await);
            }
        }
    }

    /// What the connected ztunnels have said of a pod.
    #[must_use]
    pub fn state(&self, uid: &PodUid) -> PodState {
        self.shared.ledger().state(uid)
    }

    /// Who is connected, newest first.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.ledger().connections()
    }

    /// Whether any ztunnel has acknowledged its snapshot.
    #[must_use]
    pub fn any_ready(&self) -> watch::Receiver<bool> {
        self.shared.any_ready()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.shared.ledger().forget(self.ticket);
    }
}

impl Rate {
    fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst: burst.max(1), tokens: burst.max(1), filled: Instant::now() }
    }

    /// Waits until there is a token. Cancel-safe: it takes none.
    async fn ready(&mut self) {
        self.fill();
        if self.tokens == 0 {
            tokio::time::sleep_until(self.filled + self.interval).await;
            self.fill();
        }
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }

    fn fill(&mut self) {
        while self.tokens < self.burst && self.filled.elapsed() >= self.interval {
            self.tokens += 1;
            self.filled += self.interval;
        }
        if self.tokens == self.burst {
            self.filled = Instant::now();
        }
    }
}

async fn accept<H: Hooks>(
    mut listener: Listener,
    config: Config,
    shared: Arc<Shared>,
    hooks: Arc<H>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut links = JoinSet::new();
    let mut rate = Rate::new(config.accept_interval, config.accept_burst);
    loop {
        let next = async {
            rate.ready().await;
            listener.accept().await
        };
        let conn = tokio::select! {
            _ = stopped.changed() => break,
            Some(ended) = links.join_next() => {
                if let Err(error) = ended {
                    error!("a ztunnel's connection ended badly: {error}");
                }
                continue;
            }
            conn = next => conn,
        };
        rate.take();
        match conn.and_then(|conn| admit(conn, &config)) {
            Ok(Some((pid, lockstep))) => {
                links.spawn(link::run(Arc::clone(&shared), Arc::clone(&hooks), pid, lockstep));
            }
            Ok(None) => {}
            Err(error) => {
                warn!("cannot accept on {}: {error}; trying again", listener.path().display());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    links.shutdown().await;
}

/// Lets a ztunnel in, and nobody else: what it is told lets it act as any pod of the node.
fn admit(conn: Conn, config: &Config) -> std::io::Result<Option<(i32, Lockstep)>> {
    let peer = conn.peer_cred()?;
    if peer.uid != config.ztunnel_uid {
        warn!(
            pid = peer.pid,
            uid = peer.uid,
            "turned away a connection on ztunnel's socket: it is for uid {}",
            config.ztunnel_uid
        );
        return Ok(None);
    }
    let pid = config.host_proc.peer(conn.as_fd()).unwrap_or_else(|error| {
        warn!("cannot tell which process is on ztunnel's socket: {error}");
        hostproc::UNKNOWN
    });
    Ok(Some((pid, Lockstep::new(conn, config.answer_timeout))))
}
