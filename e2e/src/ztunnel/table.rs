//! The pods that are served, and what each request does to them: ztunnel's state machine.

use super::events::Events;
use super::messages::Request;
use super::netns::Netns;
use super::pod::{Proxy, Shared};
use super::workloads::WorkloadInfo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Every pod, with what the current session has said. One task changes it; anybody may look.
pub struct Table {
    shared: Shared,
    nack_uid: Option<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Entry>,
    /// What this session's Add and Keep named.
    named: BTreeSet<String>,
    snapshot: bool,
    connected: bool,
    ready: bool,
}

struct Entry {
    info: WorkloadInfo,
    netns: Netns,
    /// `None` while its listeners cannot be bound.
    proxy: Option<Proxy>,
}

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The listeners cannot be bound. The pod stays pending and is tried again.
    #[error("failure to start proxy : {0}")]
    Start(String),
    /// The agent broke the protocol: the process ends.
    #[error("failure to process message : ProtocolError({0})")]
    Protocol(&'static str),
}

impl Table {
    /// An empty table; Add for `nack_uid` is always refused.
    #[must_use]
    pub fn new(shared: Shared, nack_uid: Option<String>) -> Self {
        Self { shared, nack_uid, state: Mutex::default() }
    }

    /// A session begins: what is running goes on, what is pending must be added again.
    pub fn session_began(&self) {
        self.with(|state| {
            state.pods.retain(|_, entry| entry.proxy.is_some());
            state.named.clear();
            state.snapshot = false;
            state.connected = true;
        });
    }

    /// The session is over; the pods are served on.
    pub fn session_ended(&self) {
        self.with(|state| (state.connected, state.ready) = (false, false));
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn process(&self, request: Request) -> Result<(), Refused> {
        match request {
            Request::Add { uid, info: None, netns: _ } => {
                self.events().fault(format!("Add of {uid:?} has no workload_info"));
                Err(Refused::Protocol("workload info is missing"))
            }
            Request::Add { uid, info: Some(info), netns } => self.add(uid, info, netns).await,
            Request::Keep(uid) => self.keep(uid),
            Request::Del(uid) => {
                self.del(&uid);
                Ok(())
            }
            Request::SnapshotSent => self.snapshot_sent(),
        }
    }

    /// Tries once more to start what is pending. ztunnel tells nobody of its success either.
    pub async fn retry_pending(&self) {
        let pending: Vec<_> = self.with(|state| {
            let waiting = state.pods.iter().filter(|(_, entry)| entry.proxy.is_none());
            waiting.map(|(uid, entry)| (uid.clone(), entry.info.clone(), entry.netns.clone())).collect()
        });
        for (uid, info, netns) in pending {
            // Its next answer is the next Add's; an error has been told already.
            let _ = self.start(uid, info, netns).await;
        }
        self.check_ready();
    }

    /// Whether ztunnel's readiness probe would succeed, and if not, why.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn ready(&self) -> Result<(), &'static str> {
        self.with(|state| match (state.ready, state.connected) {
            (true, _) => Ok(()),
            (false, true) => Err("not ready, pending: workload proxy manager (waiting for the snapshot)"),
            (false, false) => Err("not ready, pending: workload proxy manager (no node agent)"),
        })
    }

    /// ztunnel's `workloadState`.
    #[must_use]
    pub fn dump(&self) -> Value {
        self.with(|state| {
            let one = |entry: &Entry| {
                let WorkloadInfo { name, namespace, service_account } = &entry.info;
                json!({
                    "state": if entry.proxy.is_some() { "Up" } else { "Pending" },
                    "info": {"name": name, "namespace": namespace, "serviceAccount": service_account},
                    "netns": entry.netns.id().inode,
                    "connections": entry.proxy.as_ref().map(|proxy| proxy.pod().connections()),
                })
            };
            state.pods.iter().map(|(uid, entry)| (uid.clone(), one(entry))).collect()
        })
    }

    /// Stops every listener and lets the connections go on.
    pub fn drain(&self) {
        self.with(|state| {
            state.pods.values().filter_map(|entry| entry.proxy.as_ref()).for_each(Proxy::drain);
        });
    }

    /// How many connections are open in all pods.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        let open = |entry: &Entry| entry.proxy.as_ref().map_or(0, |proxy| proxy.pod().open_connections());
        self.with(|state| state.pods.values().map(open).sum())
    }

    async fn add(&self, uid: String, info: WorkloadInfo, netns: Netns) -> Result<(), Refused> {
        self.look_for_faults(&uid, &info, &netns);
        let served = self.with(|state| {
            state.named.insert(uid.clone());
            let entry = state.pods.get(&uid).filter(|entry| entry.netns.id() == netns.id());
            entry.is_some_and(|entry| entry.proxy.is_some())
        });
        if served {
            self.say("add", &uid, &netns, &json!({"known": true}));
            return Ok(());
        }
        // Another namespace is another sandbox: the proxy of the old one is cut.
        self.with(|state| drop(state.pods.remove(&uid)));
        self.start(uid, info, netns).await
    }

    async fn start(&self, uid: String, info: WorkloadInfo, netns: Netns) -> Result<(), Refused> {
        let started = if self.nack_uid.as_ref() == Some(&uid) {
            Err("refused on request (--nack-uid)".to_owned())
        } else {
            let start = Proxy::start(self.shared.clone(), uid.clone(), info.clone(), netns.clone()).await;
            start.map_err(|error| {
                if error.source.kind() == std::io::ErrorKind::InvalidInput {
                    self.events().fault(format!("the descriptor of Add {uid:?} is no network namespace"));
                }
                error.to_string()
            })
        };
        match &started {
            Ok(_) => self.say("add", &uid, &netns, &json!({})),
            Err(error) => self.say("pending", &uid, &netns, &json!({"error": error})),
        }
        let (proxy, result) = match started {
            Ok(proxy) => (Some(proxy), Ok(())),
            Err(error) => (None, Err(Refused::Start(error))),
        };
        self.with(|state| drop(state.pods.insert(uid, Entry { info, netns, proxy })));
        result
    }

    fn keep(&self, uid: String) -> Result<(), Refused> {
        if self.with(|state| state.snapshot) {
            self.events().fault(format!("Keep of {uid:?} after SnapshotSent"));
            return Err(Refused::Protocol("pods can't be kept after the snapshot was sent"));
        }
        self.check_uid("Keep", &uid);
        self.events().say(json!({"event": "keep", "uid": uid}));
        self.with(|state| state.named.insert(uid));
        Ok(())
    }

    fn del(&self, uid: &str) {
        self.check_uid("Del", uid);
        let known = self.with(|state| {
            state.named.remove(uid);
            // Before the snapshot's end it is only no longer named, and so goes then.
            if state.snapshot { state.pods.remove(uid).is_some() } else { state.pods.contains_key(uid) }
        });
        self.events().say(json!({"event": "del", "uid": uid, "known": known}));
    }

    fn snapshot_sent(&self) -> Result<(), Refused> {
        if self.with(|state| state.snapshot) {
            self.events().fault("SnapshotSent a second time in one session");
            return Err(Refused::Protocol("snapshot was already sent"));
        }
        let (gone, served, missing) = self.with(|state| {
            state.snapshot = true;
            let State { pods, named, .. } = state;
            let gone: Vec<String> = pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
            pods.retain(|uid, _| named.contains(uid));
            let missing: Vec<String> = named.iter().filter(|uid| !pods.contains_key(*uid)).cloned().collect();
            (gone, pods.len(), missing)
        });
        for uid in &gone {
            self.events().say(json!({"event": "reconciled-away", "uid": uid}));
        }
        // Keep promises no proxy; whoever reads the events should see the pods that have none.
        self.events().say(
            json!({"event": "snapshot", "pods": served, "removed": gone.len(), "keptUnserved": missing}),
        );
        self.check_ready();
        Ok(())
    }

    /// Ready once the snapshot is done and nothing is pending; a pod that fails later does not change that.
    fn check_ready(&self) {
        let now_ready = self.with(|state| {
            let complete =
                state.connected && state.snapshot && state.pods.values().all(|e| e.proxy.is_some());
            let before = state.ready;
            state.ready |= complete;
            state.ready && !before
        });
        if now_ready {
            self.events().say(json!({"event": "ready"}));
        }
    }

    fn look_for_faults(&self, uid: &str, info: &WorkloadInfo, netns: &Netns) {
        self.check_uid("Add", uid);
        let WorkloadInfo { name, namespace, service_account } = info;
        if [name, namespace, service_account].iter().any(|text| text.is_empty()) {
            self.events()
                .fault(format!("Add of {uid:?} has an empty name, namespace or service account: {info:?}"));
        }
        let (other, changed) = self.with(|state| {
            // What only an earlier session named goes at the snapshot's end; nobody can make it go before.
            let counts = |other: &&String| state.snapshot || state.named.contains(*other);
            let same = state.pods.iter().filter(|(other, e)| *other != uid && e.netns.id() == netns.id());
            let other = same.map(|(other, _)| other).find(counts).cloned();
            let known = state.pods.get(uid).filter(|entry| entry.info != *info);
            (other, known.map(|entry| entry.info.clone()))
        });
        if Netns::own().is_ok_and(|own| own.id() == netns.id()) {
            self.events().fault(format!("Add of {uid:?} into ztunnel's own namespace, which is no pod's"));
        }
        if let Some(other) = other {
            self.events()
                .fault(format!("Add of {uid:?} into {}, where {other:?} is still served", netns.id()));
        }
        if let Some(before) = changed {
            self.events().fault(format!("Add of {uid:?} as {info:?}, which is known as {before:?}"));
        }
    }

    fn check_uid(&self, request: &str, uid: &str) {
        if uid.is_empty() {
            self.events().fault(format!("{request} has an empty uid"));
        }
    }

    fn say(&self, event: &str, uid: &str, netns: &Netns, more: &Value) {
        let mut said = json!({"event": event, "uid": uid, "inode": netns.id().inode});
        if let (Some(said), Some(more)) = (said.as_object_mut(), more.as_object()) {
            said.extend(more.clone());
        }
        self.events().say(said);
    }

    fn events(&self) -> &Events {
        &self.shared.events
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
