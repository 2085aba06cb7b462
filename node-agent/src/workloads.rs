//! The pods that the agent knows, and what others may see of each: `sluicectl`, ztunnel's snapshot, the drift watch.
//!
//! Each pod has one task that alone changes anything about it (`reconcile::pod`); here are only its mailbox and what
//! it last showed. The lock is held for a look-up or a send, never across an await.

use crate::admin::WhyError;
use crate::adopt::Neighbours;
use crate::reconcile::{Mailbox, Message};
use crate::zds;
use sluice_shared::admin::{PodStatus, State};
use sluice_shared::enroll::{Overrides, Reason};
use sluice_shared::ids::{NetnsId, PodUid};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Every pod's mailbox and last showing, by uid.
#[derive(Default)]
pub struct Registry {
    pods: Mutex<HashMap<PodUid, Arc<Entry>>>,
}

/// One pod, as seen from outside its task.
pub struct Entry {
    /// Whose.
    pub uid: PodUid,
    /// What its task has not taken yet.
    pub mailbox: Mailbox,
    /// The addresses that the source shows for it, whether or not its task has got as far.
    claims: Mutex<Vec<IpAddr>>,
    showing: Mutex<Showing>,
}

/// What a pod's task lets others see.
#[derive(Clone)]
pub struct Showing {
    /// For `sluicectl` and the metrics.
    pub status: PodStatus,
    /// What ztunnel is to serve: part of every snapshot while it is here.
    pub handed: Option<zds::Workload>,
}

impl Registry {
    /// Sends to a pod's task, which `spawn` starts if there is none.
    pub fn send(&self, uid: &PodUid, message: Message, spawn: impl FnOnce(Arc<Entry>)) {
        let mut pods = self.lock();
        if let Some(entry) = pods.get(uid) {
            // The task removes itself under this lock, and only with an empty mailbox: it is there to receive.
            entry.mailbox.post(message);
            return;
        }
        let entry = Arc::new(Entry {
            uid: uid.clone(),
            mailbox: Mailbox::default(),
            claims: Mutex::default(),
            showing: Mutex::new(Showing { status: unknown(uid), handed: None }),
        });
        entry.mailbox.post(message);
        pods.insert(uid.clone(), Arc::clone(&entry));
        spawn(entry);
    }

    /// Sends to a pod's task if there is one, and says whether there is. A message to nobody is dropped.
    pub fn send_existing(&self, uid: &PodUid, message: Message) -> bool {
        self.lock().get(uid).is_some_and(|entry| entry.mailbox.post(message))
    }

    /// Sends to every pod's task a message of its own.
    pub fn broadcast(&self, message: impl FnMut() -> Message) {
        self.broadcast_to(|_| true, message);
    }

    /// Sends to the task of every pod that looks like this.
    pub fn broadcast_to(&self, wanted: impl Fn(&PodStatus) -> bool, mut message: impl FnMut() -> Message) {
        for entry in self.lock().values() {
            if wanted(&entry.showing().status) {
                entry.mailbox.post(message());
            }
        }
    }

    /// Has the pods that hold this namespace look at it; all pods, for `None`.
    pub fn look(&self, netns: Option<NetnsId>) {
        for entry in self.lock().values() {
            if netns.is_none() || entry.showing().status.netns == netns {
                entry.mailbox.post(Message::Look);
            }
        }
    }

    /// Takes a pod out, unless somebody has written to it meanwhile, and forgets it before it can be put in again. Says
    /// whether it is out.
    pub fn retire(&self, entry: &Entry, forget: impl FnOnce()) -> bool {
        let mut pods = self.lock();
        let idle = entry.mailbox.is_empty();
        if idle {
            pods.remove(&entry.uid);
            forget();
        }
        idle
    }

    /// Every pod's last showing, sorted by namespace and name.
    #[must_use]
    pub fn showings(&self) -> Vec<Showing> {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        let mut showings: Vec<_> = entries.iter().map(|entry| entry.showing().clone()).collect();
        showings.sort_by(|a, b| {
            let key = |s: &Showing| (s.status.namespace.clone(), s.status.name.clone(), s.status.uid.clone());
            key(a).cmp(&key(b))
        });
        showings
    }

    /// A pod's last showing, if it is known.
    #[must_use]
    pub fn showing(&self, uid: &PodUid) -> Option<Showing> {
        let entry = self.lock().get(uid).cloned()?;
        let showing = entry.showing().clone();
        Some(showing)
    }

    /// The pods that hold this namespace: more than one only in passing.
    #[must_use]
    pub fn holders(&self, netns: NetnsId) -> Vec<PodUid> {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        entries
            .iter()
            .filter(|entry| entry.showing().status.netns == Some(netns))
            .map(|entry| entry.uid.clone())
            .collect()
    }

    /// Takes note of the addresses that the source shows for a pod: none for one that is done with the network, as another
    /// may have them by now. Other pods that have one of them are told to doubt what their address alone has shown.
    pub fn set_claims(&self, uid: &PodUid, addresses: &[IpAddr]) {
        let pods = self.lock();
        let Some(entry) = pods.get(uid) else { return };
        let before = std::mem::replace(&mut *entry.claims(), addresses.to_vec());
        let new: Vec<IpAddr> =
            addresses.iter().filter(|ip| !before.contains(ip)).map(IpAddr::to_canonical).collect();
        if new.is_empty() {
            return;
        }
        for other in pods.values().filter(|other| other.uid != *uid) {
            let is_new = |ip: &IpAddr| new.contains(&ip.to_canonical());
            if other.claims().iter().any(is_new) || other.showing().status.ips.iter().any(is_new) {
                other.mailbox.post(Message::Doubt);
            }
        }
    }

    /// What is known of the other pods.
    #[must_use]
    pub fn neighbours(&self, uid: &PodUid) -> Neighbours {
        let entries: Vec<_> = self.lock().values().filter(|entry| entry.uid != *uid).cloned().collect();
        let mut neighbours = Neighbours::default();
        for entry in entries {
            let mut addresses = entry.claims().clone();
            let showing = entry.showing();
            if showing.status.outside != Some(Reason::Terminal) {
                addresses.extend(&showing.status.ips);
            }
            let addresses = addresses.iter().map(|ip| (ip.to_canonical(), entry.uid.clone()));
            neighbours.addresses.extend(addresses);
            neighbours.known.insert(entry.uid.clone());
        }
        neighbours
    }

    /// Finds a pod by `namespace/name`, by a name that only one pod has, or by uid.
    ///
    /// # Errors
    /// Says that there is none, or which ones there are.
    pub fn find(&self, query: &str) -> Result<PodUid, WhyError> {
        let showings = self.showings();
        let named = |s: &&Showing| {
            let status = &s.status;
            status.uid.as_str() == query
                || status.name == query
                || query.split_once('/') == Some((status.namespace.as_str(), status.name.as_str()))
        };
        let found: Vec<_> = showings.iter().filter(named).collect();
        match found.as_slice() {
            [] => Err(WhyError::Unknown(query.to_owned())),
            [one] => Ok(one.status.uid.clone()),
            several => {
                let candidates = several
                    .iter()
                    .map(|s| format!("{}/{} (uid {})", s.status.namespace, s.status.name, s.status.uid))
                    .collect();
                Err(WhyError::Ambiguous { pod: query.to_owned(), candidates })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Entry>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn claims(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the pod last showed.
    pub fn showing(&self) -> MutexGuard<'_, Showing> {
        self.showing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is shown of a pod before its task has looked.
fn unknown(uid: &PodUid) -> PodStatus {
    PodStatus {
        uid: uid.clone(),
        namespace: String::new(),
        name: String::new(),
        ips: Vec::new(),
        state: State::Outside,
        reason: Reason::Unknown.to_string(),
        because: None,
        outside: Some(Reason::Unknown),
        overrides: Overrides::default(),
        netns: None,
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}
