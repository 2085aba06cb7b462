//! The agent's side of the tests: hooks that record, pods whose namespaces are watched for leaks, a server to talk to.

use crate::ztunnel::Ztunnel;
use nix::sys::stat::fstat;
use sluice_agent::kernel::Netns;
use sluice_agent::zds::{AddError, Config, Connection, Handle, Hooks, Peer, Server, Workload};
use sluice_shared::ids::{NetnsId, PodUid};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// The time for an answer where one is waited for in vain: long enough for a loaded machine to give the others.
pub const ANSWER: Duration = Duration::from_secs(2);
/// A deadline that no test reaches unless something hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// What the server told the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Connected(u64),
    Answered(u64, String, Result<(), String>),
    Ready(u64),
    Disconnected(u64),
}

/// The agent's hooks, recorded.
pub struct Agent {
    wanted: Mutex<BTreeMap<PodUid, Workload>>,
    told: mpsc::UnboundedSender<Told>,
    /// A permit lets one `connected` return.
    pub prepared: Semaphore,
    /// Connections of those that the agent knows to be no ztunnels.
    pub impostors: Mutex<BTreeSet<u64>>,
    /// Runs once, after the next list is made and before it is returned.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// A server under test.
pub struct Node {
    pub path: PathBuf,
    pub agent: Arc<Agent>,
    pub handle: Handle,
    pub server: Server,
    told: mpsc::UnboundedReceiver<Told>,
    _dir: tempfile::TempDir,
}

/// A namespace's other end: it is at its end of file only once no copy of the descriptor is left anywhere.
pub struct Watched(PipeReader);

impl Node {
    /// One whose ztunnels may take as long as they like to answer.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// One that drops a ztunnel which does not answer within [`ANSWER`].
    pub fn impatient() -> Self {
        Self::with(|config| config.answer_timeout = ANSWER)
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztunnel.sock");
        let mut config = Config::new(&path);
        config.ztunnel_uid = nix::unistd::geteuid().as_raw();
        config.answer_timeout = LONG;
        config.accept_interval = Duration::from_millis(1);
        change(&mut config);
        let (told, receiver) = mpsc::unbounded_channel();
        let agent = Arc::new(Agent {
            wanted: Mutex::default(),
            told,
            prepared: Semaphore::new(Semaphore::MAX_PERMITS),
            impostors: Mutex::default(),
            meanwhile: Mutex::default(),
        });
        let (handle, server) = Server::start(config, Arc::clone(&agent)).unwrap();
        Self { path, agent, handle, server, told: receiver, _dir: dir }
    }

    /// Makes a pod part of what the agent wants, without handing it over.
    pub fn want(&self, uid: &str) -> Watched {
        let (workload, watched) = pod(uid);
        self.agent.want(workload);
        watched
    }

    /// A ztunnel that has its snapshot.
    pub async fn ready_ztunnel(&mut self) -> (Ztunnel, u64) {
        let mut ztunnel = Ztunnel::connect(&self.path).await;
        ztunnel.snapshot().await;
        let connection = self.until(|told| match told {
            Told::Ready(connection) => Some(*connection),
            _ => None,
        });
        (ztunnel, connection.await)
    }

    /// Hands a pod over as the agent does: wanted first, then added.
    pub fn add(&self, uid: &str, within: Duration) -> tokio::task::JoinHandle<Result<Peer, AddError>> {
        let (workload, _) = pod(uid);
        self.add_workload(workload, within)
    }

    pub fn add_workload(
        &self,
        workload: Workload,
        within: Duration,
    ) -> tokio::task::JoinHandle<Result<Peer, AddError>> {
        self.agent.want(workload.clone());
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.add(workload, Instant::now() + within).await })
    }

    /// What the server told the agent next.
    pub async fn told(&mut self) -> Told {
        tokio::time::timeout(LONG, self.told.recv()).await.expect("the agent is told nothing").unwrap()
    }

    /// Skips what the agent is told until `pick` picks.
    pub async fn until<T>(&mut self, pick: impl Fn(&Told) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(&self.told().await) {
                return picked;
            }
        }
    }

    /// Waits until the newest connection is as wanted.
    pub async fn until_newest(&self, wanted: impl Fn(&Connection) -> bool) {
        let begun = Instant::now();
        while !self.handle.connections().first().is_some_and(&wanted) {
            assert!(begun.elapsed() < LONG, "{:?}", self.handle.connections());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What the agent was told and has not been looked at.
    pub fn told_so_far(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.told.try_recv().ok()).collect()
    }
}

impl Agent {
    pub fn want(&self, workload: Workload) {
        self.wanted.lock().unwrap().insert(workload.uid.clone(), workload);
    }

    pub fn unwant(&self, uid: &str) {
        self.wanted.lock().unwrap().remove(&PodUid::new(uid).unwrap());
    }

    fn tell(&self, told: Told) {
        drop(self.told.send(told));
    }
}

impl Hooks for Agent {
    async fn connected(&self, peer: &Peer) -> Result<(), String> {
        self.tell(Told::Connected(peer.connection));
        self.prepared.acquire().await.unwrap().forget();
        match self.impostors.lock().unwrap().contains(&peer.connection) {
            true => Err("it is none".into()),
            false => Ok(()),
        }
    }

    fn snapshot(&self) -> Vec<Workload> {
        let list = self.wanted.lock().unwrap().values().cloned().collect();
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        list
    }

    fn answered(&self, peer: &Peer, uid: &PodUid, answer: Result<(), String>) {
        self.tell(Told::Answered(peer.connection, uid.to_string(), answer));
    }

    fn ready(&self, peer: &Peer) {
        self.tell(Told::Ready(peer.connection));
    }

    fn disconnected(&self, peer: &Peer) {
        self.tell(Told::Disconnected(peer.connection));
    }
}

impl Watched {
    /// Whether no copy of the descriptor is left: not here, not in flight, not at ztunnel.
    pub fn is_gone(&mut self) -> bool {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&self.0, flags).unwrap();
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

pub fn uid(uid: &str) -> PodUid {
    PodUid::new(uid).unwrap()
}

/// A pod whose namespace is the write end of a pipe.
pub fn pod(name: &str) -> (Workload, Watched) {
    let (reader, writer) = std::io::pipe().unwrap();
    let fd = OwnedFd::from(writer);
    let stat = fstat(&fd).unwrap();
    let netns = Netns::new(fd, NetnsId { dev: stat.st_dev, inode: stat.st_ino });
    let workload = Workload {
        uid: uid(name),
        name: format!("{name}-name"),
        namespace: "shop".into(),
        service_account: "till".into(),
        netns: Some(Arc::new(netns)),
    };
    (workload, Watched(reader))
}
