//! A reconciler in a box: a recording kernel below it, a scripted ztunnel beside it.

use super::super::*;
use crate::adopt;
use crate::kernel::fake::{Place, RecordingKernel};
use crate::kernel::{HostProc, TcpSocket};
use crate::predecessor::Predecessor;
use crate::zds;
use sluice_shared::admin::State;
use sluice_shared::facts::PodFacts;
use sluice_shared::facts::StringMap;
use sluice_shared::ids::PodRef;
use sluice_shared::membership::WhenAgentUnavailable;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{self, Flow, MarkGuard, ProbeDoor, Stage};
use sluice_shared::wire::AttachmentId;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_seqpacket::UnixSeqpacket;

pub const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];
/// More than an ADD takes on a machine that is loaded with whatever else.
const ADD_TIMEOUT: Duration = Duration::from_secs(60);
/// For a test whose ADD waits in vain.
pub const ADD_IN_VAIN: Duration = Duration::from_millis(500);

/// A reconciler in a box.
pub struct Boxed {
    pub kernel: RecordingKernel,
    pub cx: Arc<Context>,
    pub events: mpsc::Sender<Event>,
    pub dir: tempfile::TempDir,
    pub zds: zds::Server,
    pub predecessor: watch::Sender<Predecessor>,
}

/// A ztunnel that acknowledges whatever it is told, and notes it: `add u1`, `del u1`, `keep u1`, `snapshot`.
pub struct Ztunnel {
    told: Arc<Mutex<Vec<(Instant, String)>>>,
    pub refuse: Arc<AtomicBool>,
    holds: watch::Sender<bool>,
    pub task: tokio::task::JoinHandle<()>,
}

/// What an agent is started with.
pub struct Setup {
    pub dir: tempfile::TempDir,
    pub kernel: RecordingKernel,
    pub status: Sink,
    pub lookup: Lookup,
    pub predecessor: Predecessor,
    pub add_timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            kernel: RecordingKernel::default(),
            status: Sink::nowhere(),
            lookup: Lookup::Nothing,
            predecessor: Predecessor::Gone,
            add_timeout: ADD_TIMEOUT,
        }
    }
}

pub async fn start() -> Boxed {
    start_with(Setup::default()).await
}

pub async fn start_in(dir: tempfile::TempDir, kernel: RecordingKernel) -> Boxed {
    start_with(Setup { dir, kernel, ..Setup::default() }).await
}

pub async fn start_telling(dir: tempfile::TempDir, kernel: RecordingKernel, status: Sink) -> Boxed {
    start_with(Setup { dir, kernel, status, ..Setup::default() }).await
}

/// On a node where istio-cni is, or was: what it has programmed there is in `kernel` before anything looks.
pub async fn start_after(predecessor: Predecessor, kernel: RecordingKernel) -> Boxed {
    start_with(Setup { predecessor, kernel, ..Setup::default() }).await
}

pub async fn start_with(setup: Setup) -> Boxed {
    let Setup { dir, kernel, status, lookup, predecessor, add_timeout } = setup;
    let pool = Arc::new(Pool::new(Arc::new(kernel.clone()), Some(2)).unwrap());
    let registry = Arc::new(Registry::default());
    let journal = Journal::open(&dir.path().join("run")).unwrap();
    journal.complete().unwrap();
    let (predecessor, predecessor_now) = watch::channel(predecessor);
    let metrics = Metrics::new();
    let trust = Arc::new(Trust::anybody(journal.clone(), "a test".into()));
    let (recalled, when_recalled) = watch::channel(false);
    let when_all_recalled = when_recalled.clone();
    let host_proc = HostProc::default();
    let hooks = ZtunnelHooks::new(Arc::clone(&registry), Arc::clone(&trust), when_recalled, host_proc);
    let (ztunnel, server) =
        zds::Server::start(zds::Config::new(dir.path().join("zds.sock")), Arc::new(hooks)).unwrap();
    let (hold, hold_now) = watch::channel(Hold::Drop);
    tokio::spawn(keep_hold(ztunnel.any_ready(), None, hold, Arc::clone(&registry)));
    let cx = Arc::new(Context {
        settings: Settings {
            policy: EnrollPolicy::default(),
            redirect: RedirectConfig { dns_capture: true, ipv6: true },
            backend: Backend::Nftables,
            keep_existing: true,
            drain_timeout: Duration::from_secs(60),
            add_timeout,
        },
        finder: Finder::new(
            adopt::Settings {
                // Off, unless a test listens there.
                cri_sockets: Some(dir.path().join("cri.sock"))
                    .filter(|cri| cri.exists())
                    .into_iter()
                    .collect(),
                netns_dirs: vec![dir.path().join("netns")],
                host_proc: dir.path().join("proc"),
            },
            Arc::clone(&pool),
        ),
        host: HostTable::new(
            Arc::clone(&pool),
            Backend::Nftables,
            metrics.clone(),
            Strategy::closed("a test"),
        ),
        kernel: pool,
        ztunnel,
        registry,
        members: Members::open(&dir.path().join("state"), WhenAgentUnavailable::Auto).unwrap(),
        journal,
        trust,
        hold: hold_now,
        watch: None,
        synced: watch::Sender::new(false),
        status,
        metrics,
        namespaces: Namespaces::default(),
        lookup,
        succession: Arc::new(Succession::new(predecessor_now)),
    });
    tokio::spawn(Succession::announce(Arc::clone(&cx)));
    tokio::spawn(Succession::clear_host(Arc::clone(&cx), when_all_recalled));
    let (events, inbox) = mpsc::channel(16);
    tokio::spawn(Reconciler::new(Arc::clone(&cx)).run(inbox, recalled));
    Boxed { kernel, cx, events, dir, zds: server, predecessor }
}

impl Boxed {
    pub async fn ztunnel(&self) -> Ztunnel {
        let socket = UnixSeqpacket::connect(self.dir.path().join("zds.sock")).await.unwrap();
        socket.send(&[0x08, 0x01]).await.unwrap();
        let (told, refuse) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (notes, refusing) = (Arc::clone(&told), Arc::clone(&refuse));
        let (holds, mut held) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut buf = [0; 1024];
            while let Ok(len @ 1..) = socket.recv(&mut buf).await.map(|info| info.bytes_read()) {
                notes.lock().unwrap().push((Instant::now(), what(&buf[..len])));
                let _ = held.wait_for(|held| !held).await;
                let nack = b"\x0a\x03\x0a\x01n".as_slice();
                let answer = if refusing.load(Ordering::SeqCst) { nack } else { b"\x0a\x00" };
                if socket.send(answer).await.is_err() {
                    return;
                }
            }
        });
        let ztunnel = Ztunnel { told, refuse, holds, task };
        eventually("ztunnel has its snapshot", || ztunnel.told().contains(&"snapshot".to_owned())).await;
        ztunnel
    }

    pub async fn namespace(&self, name: &str, mode: Option<&str>) {
        let labels = StringMap::from_iter(mode.map(|m| ("istio.io/dataplane-mode".into(), m.into())));
        self.events.send(Event::Namespace(NamespaceFacts { name: name.into(), labels })).await.unwrap();
    }

    pub async fn synced(&self) {
        self.events.send(Event::Synced).await.unwrap();
    }

    /// The source shows a running pod in a namespace of its own, on which ztunnel listens as soon as it is asked.
    pub async fn running_pod(&self, uid: &str) -> NetnsId {
        let path = format!("/run/netns/{uid}");
        let id = self.kernel.netns_at(&path);
        self.kernel.set_addresses(id, vec!["10.0.0.2".parse().unwrap()]);
        self.kernel.set_listening(id, PORTS);
        self.events.send(Event::Pod(Box::new(pod(uid, Some(path))))).await.unwrap();
        id
    }

    /// A runtime makes a sandbox: its namespace is played by a file of that name.
    pub fn sandbox(&self, name: &str) -> NetnsId {
        let meta = std::fs::File::create(self.dir.path().join(name)).unwrap().metadata().unwrap();
        let id = NetnsId { dev: meta.dev(), inode: meta.ino() };
        self.kernel.put(format!("/run/netns/{name}"), id);
        self.kernel.set_addresses(id, vec!["10.0.0.2".parse().unwrap()]);
        self.kernel.set_listening(id, PORTS);
        id
    }

    pub async fn add(&self, uid: &str, sandbox: &str) -> Reply {
        let netns = std::fs::File::open(self.dir.path().join(sandbox)).unwrap();
        self.cni(Verb::Add(attachment(uid)), Some(netns.into())).await
    }

    pub async fn cni(&self, verb: Verb, netns: Option<OwnedFd>) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Cni(CniCall { verb, netns, reply })).await.unwrap();
        answer.await.unwrap()
    }

    pub fn state(&self, uid: &str) -> Option<(State, String)> {
        let showings = self.cx.registry.showings();
        showings
            .iter()
            .find(|s| s.status.uid.as_str() == uid)
            .map(|s| (s.status.state, s.status.reason.clone()))
    }

    pub async fn becomes(&self, uid: &str, state: State) {
        eventually(&format!("{uid} becomes {state}"), || self.state(uid).is_some_and(|(s, _)| s == state))
            .await;
    }

    pub fn ran(&self, id: NetnsId) -> Vec<Vec<KernelOp>> {
        self.kernel
            .log()
            .into_iter()
            .filter(|(place, _)| *place == Place::Pod(id))
            .map(|(_, ops)| ops)
            .collect()
    }
}

impl Ztunnel {
    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }

    /// When it was told this for the first time.
    pub fn told_at(&self, what: &str) -> Option<Instant> {
        self.told.lock().unwrap().iter().find(|(_, told)| told == what).map(|(at, _)| *at)
    }

    /// Whether it keeps its answers to itself.
    pub fn hold_answers(&self, holds: bool) {
        self.holds.send_replace(holds);
    }
}

pub fn pod(uid: &str, netns: Option<String>) -> PodFacts {
    PodFacts {
        uid: PodUid::new(uid).unwrap(),
        name: format!("pod-{uid}"),
        namespace: "demo".into(),
        service_account: "sa".into(),
        labels: StringMap::new(),
        annotations: StringMap::new(),
        host_network: false,
        phase: Default::default(),
        ips: vec!["10.0.0.2".parse().unwrap()],
        probe_ports: vec![],
        netns,
    }
}

pub fn attachment(uid: &str) -> Attachment {
    Attachment {
        id: AttachmentId { container_id: format!("c-{uid}"), ifname: "eth0".into() },
        netns: format!("/run/netns/{uid}"),
        pod: Some(PodRef::new("demo", format!("pod-{uid}"))),
        uid: Some(PodUid::new(uid).unwrap()),
        ips: vec!["10.0.0.2".parse().unwrap()],
    }
}

pub fn what(packet: &[u8]) -> String {
    let text = |at: usize| {
        let len = packet[at] as usize;
        String::from_utf8_lossy(&packet[at + 1..at + 1 + len]).into_owned()
    };
    match packet[0] {
        0x0a => format!("add {}", text(3)),
        0x12 => format!("del {}", text(3)),
        0x2a => format!("keep {}", text(3)),
        _ => "snapshot".into(),
    }
}

/// Longer than any pause of the agent's between two tries, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn planned(stage: Stage) -> plan::RedirectPlan {
    plan::redirect(
        &Default::default(),
        &RedirectConfig { dns_capture: true, ipv6: true },
        stage,
        ProbeDoor::Closed,
        MarkGuard::Off,
        Hold::Drop,
    )
}

/// A pod that runs, is in the mesh and is captured.
pub async fn with_a_captured_pod() -> (Boxed, Ztunnel, NetnsId) {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    (agent, ztunnel, id)
}

/// A connection of the pod's that ztunnel has nothing to do with.
pub fn direct() -> Flow {
    Flow { local: ("10.0.0.2".parse().unwrap(), 4000), remote: ("10.9.9.9".parse().unwrap(), 80) }
}

/// ztunnel's half of one that it proxies.
pub fn proxied() -> TcpSocket {
    let flow =
        Flow { local: ("127.0.0.1".parse().unwrap(), 15001), remote: ("10.0.0.2".parse().unwrap(), 4000) };
    TcpSocket { flow, state: 1, mark: 0x539, cgroup: None }
}
