//! From events to captured pods, in one direction: event → decide → plan → lower → kernel → ztunnel → status → reply.
//!
//! Each pod has one task ([`pod`]) that does one step at a time; pods do not wait for each other. This file is the
//! switchboard: it keeps what all pods share and passes every event on to the pods that it concerns.

mod add;
mod admit;
mod adopting;
mod calls;
mod doubt;
mod handover;
mod host;
mod join;
mod leave;
mod mailbox;
mod members;
mod message;
mod pod;
mod sandbox;
mod showing;
mod sockets;
mod succession;
mod verify;
mod view;
mod ztunnel;

#[cfg(test)]
mod tests;

pub use host::{HostTable, Strategy, Witness};
pub use mailbox::Mailbox;
pub use members::Members;
pub use message::{Message, Told};
pub use succession::Succession;
pub use view::NodeView;
pub use ztunnel::{Trust, ZtunnelHooks, keep_hold};

use crate::adopt::Finder;
use crate::journal::Journal;
use crate::kernel::{Netns, Pool};
use crate::metrics::Metrics;
use crate::source::{CniCall, Event, Lookup};
use crate::status::Sink;
use crate::workloads::Registry;
use crate::zds;
use sluice_shared::admin::PodStatus;
use sluice_shared::cni::code;
use sluice_shared::enroll::EnrollPolicy;
use sluice_shared::facts::NamespaceFacts;
use sluice_shared::ids::{NetnsId, PodUid};
use sluice_shared::lower::Backend;
use sluice_shared::membership::Fallback;
use sluice_shared::plan::{Hold, RedirectConfig};
use sluice_shared::wire::{Attachment, Reply, SERVING, Verb};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// What the configuration says, as far as it concerns pods.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is in the mesh.
    pub policy: EnrollPolicy,
    /// The node's part of every plan.
    pub redirect: RedirectConfig,
    /// How rules get into the kernel here.
    pub backend: Backend,
    /// Whether connections that are older than a pod's enrolment are left alone.
    pub keep_existing: bool,
    /// How long a leaving pod waits for its proxied connections.
    pub drain_timeout: Duration,
    /// How long an ADD may take; below the plugin's own limit.
    pub add_timeout: Duration,
}

/// What all pods share.
pub struct Context {
    /// From the configuration.
    pub settings: Settings,
    /// The way to the kernel.
    pub kernel: Arc<Pool>,
    /// The way to ztunnel.
    pub ztunnel: zds::Handle,
    /// Every pod's mailbox and last showing.
    pub registry: Arc<Registry>,
    /// Where namespaces are found that no ADD has shown.
    pub finder: Finder,
    /// What this boot remembers.
    pub journal: Journal,
    /// What the plugin goes by when no agent answers.
    pub members: Members,
    /// The host's table, for the probe strategy `snat`.
    pub host: HostTable,
    /// Whose marks are trusted.
    pub trust: Arc<Trust>,
    /// Whether SYNs to absent listeners are held or refused.
    pub hold: watch::Receiver<Hold>,
    /// Follows pods' namespaces for changes.
    pub watch: Option<crate::kernel::WatchHandle>,
    /// Whether the source has said everything that was there at the start.
    pub synced: watch::Sender<bool>,
    /// Tells the cluster how pods stand.
    pub status: Sink,
    /// Counted for operators.
    pub metrics: Metrics,
    /// What the source shows of namespaces.
    pub namespaces: Namespaces,
    /// How it stands with the istio-cni that was here before.
    pub succession: Arc<Succession>,
    /// Where a pod can be asked for that the source has not shown yet.
    pub lookup: Lookup,
}

/// What the source shows of namespaces: written by the switchboard, read by every pod.
#[derive(Default)]
pub struct Namespaces {
    shown: RwLock<HashMap<String, NamespaceFacts>>,
    changed: watch::Sender<()>,
}

/// Passes events on.
pub struct Reconciler {
    cx: Arc<Context>,
    /// The pods that the source shows.
    shown: HashSet<PodUid>,
    /// ADDs that wait for the source's first complete list.
    early: Vec<(Attachment, OwnedFd, oneshot::Sender<Reply>)>,
}

impl Context {
    /// What is known of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<NamespaceFacts> {
        self.namespaces.get(name)
    }

    /// Whether what the source shows is enough to judge a pod of this namespace, once the source has shown everything that
    /// was there at the start. To a file what it does not name is not there; to an API server it may be on its way.
    fn can_judge(&self, namespace: &str, pod_is_shown: bool) -> bool {
        match self.lookup {
            Lookup::Nothing => true,
            Lookup::Api(_) => {
                self.settings.policy.exclude_namespaces.contains(namespace)
                    || pod_is_shown && self.namespace(namespace).is_some()
            }
        }
    }

    /// Sends to a pod's task, starting one if the pod is new.
    pub fn tell(self: &Arc<Self>, uid: &PodUid, message: Message) {
        self.registry.send(uid, message, |entry| {
            tokio::spawn(pod::PodTask::new(Arc::clone(self), entry).run());
        });
    }

    /// Opens a namespace by path, on a thread that may.
    async fn open(&self, path: &Path) -> Result<Netns, crate::kernel::KernelError> {
        let path = path.to_owned();
        self.kernel.run(move |kernel| kernel.open(&path)).await
    }
}

impl Namespaces {
    fn get(&self, name: &str) -> Option<NamespaceFacts> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until the source shows a namespace, until the deadline at most. Says whether it does.
    async fn wait_for(&self, name: &str, deadline: Instant) -> bool {
        let mut changed = self.changed.subscribe();
        while self.get(name).is_none() {
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        true
    }

    fn set(&self, name: &str, facts: Option<NamespaceFacts>) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        match facts {
            Some(facts) => shown.insert(name.to_owned(), facts),
            None => shown.remove(name),
        };
        drop(shown);
        self.changed.send_replace(());
    }
}

impl Reconciler {
    /// A reconciler for what `cx` joins.
    #[must_use]
    pub fn new(cx: Arc<Context>) -> Self {
        Self { cx, shown: HashSet::new(), early: Vec::new() }
    }

    /// Acts on events until the sources are gone. `recalled` is told when the journal's pods have been looked at.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, recalled: watch::Sender<bool>) {
        self.recall(recalled);
        while let Some(event) = events.recv().await {
            self.take(event);
        }
    }

    /// Starts a task for every pod that this boot has seen.
    fn recall(&self, recalled: watch::Sender<bool>) {
        let sandboxes = self.cx.journal.pods().unwrap_or_else(|error| {
            tracing::error!(%error, "the journal cannot be read; pods are found again by their next event");
            Vec::new()
        });
        tracing::info!(pods = sandboxes.len(), "journal read");
        let (mut waits, cx) = (Vec::new(), Arc::clone(&self.cx));
        for sandbox in sandboxes {
            let (done, wait) = oneshot::channel();
            waits.push(wait);
            self.cx.tell(&sandbox.uid.clone(), Message::Remembered(sandbox, done));
        }
        tokio::spawn(async move {
            for wait in waits {
                let _ = wait.await;
            }
            if !cx.journal.is_complete() {
                look_at_all(&cx).await;
            }
            recalled.send_replace(true);
        });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Pod(pod) => {
                let claims = if pod.phase.is_terminal() { Vec::new() } else { pod.ips.clone() };
                let (uid, shown) = (pod.uid.clone(), pod.clone());
                self.cx.tell(&uid, Message::Facts(Some(pod)));
                // Not by the pod's task, which may pass over what its object has had in between.
                self.cx.status.shown(&shown);
                self.cx.registry.set_claims(&uid, &claims);
                self.shown.insert(uid);
            }
            Event::PodGone(uid) => {
                self.cx.registry.set_claims(&uid, &[]);
                self.shown.remove(&uid);
                self.cx.registry.send_existing(&uid, Message::Facts(None));
                self.cx.status.gone(&uid);
            }
            Event::Namespace(namespace) => self.namespace(&namespace.name, Some(&namespace)),
            Event::NamespaceGone(name) => self.namespace(&name, None),
            Event::Synced => {
                self.cx.members.synced();
                self.cx.synced.send_replace(true);
                self.cx.registry.broadcast(|| Message::Synced);
                for (attachment, netns, reply) in std::mem::take(&mut self.early) {
                    // Whoever no longer waits has given its sandbox up; the runtime tries again with another.
                    if !reply.is_closed() {
                        self.add(attachment, netns, reply);
                    }
                }
            }
            Event::Cni(call) => self.cni(call),
        }
    }

    fn namespace(&mut self, name: &str, facts: Option<&NamespaceFacts>) {
        self.cx.namespaces.set(name, facts.cloned());
        self.cx.members.namespace(name, facts, &self.cx.settings.policy);
        // A pod whose task has not shown anything yet may be of this namespace, too.
        let concerned = |pod: &PodStatus| pod.namespace == name || pod.namespace.is_empty();
        self.cx.registry.broadcast_to(concerned, || Message::Resettle(Vec::new()));
    }

    fn cni(&mut self, call: CniCall) {
        let CniCall { verb, netns, reply } = call;
        match verb {
            Verb::Add(attachment) => match netns {
                Some(netns) => self.add(attachment, netns, reply),
                None => answer_error(reply, code::WRONG_NETNS, "ADD came without a network namespace".into()),
            },
            Verb::Del(attachment) => match self.uid_of(&attachment) {
                Some(uid) => self.cx.tell(&uid, Message::Del { attachment, reply }),
                None => answer_ok(reply, "not a pod"),
            },
            Verb::Check(attachment) => match self.uid_of(&attachment) {
                Some(uid) => self.cx.tell(&uid, Message::Check { attachment, reply }),
                None => answer_ok(reply, "outside: not a pod"),
            },
            Verb::Gc { valid } => {
                let valid = Arc::new(BTreeSet::from_iter(valid));
                self.cx.registry.broadcast(|| Message::Retain(Arc::clone(&valid)));
                answer_ok(reply, "attachments compared");
            }
            // An error would make the node NotReady: see docs/decisions/0001-status-never-blocks.md.
            Verb::Status if *self.cx.synced.borrow() => answer_ok(reply, SERVING),
            Verb::Status => answer_ok(reply, "starting: the source has not shown this node's pods yet"),
            Verb::Log { .. } => answer_ok(reply, "logged"),
        }
    }

    /// Before the source has spoken, an ADD is treated as the plugin would with no agent: a pod that may be in the mesh
    /// waits (the plugin's own limit ends the wait), any other starts at once and is adopted if it turns out to be.
    fn add(&mut self, attachment: Attachment, netns: OwnedFd, reply: oneshot::Sender<Reply>) {
        let Some(uid) = self.uid_of(&attachment) else {
            answer_ok(reply, "outside: no Kubernetes pod");
            return;
        };
        let namespace = attachment.pod.as_ref().map_or("", |pod| pod.namespace.as_str());
        let must_wait = matches!(self.cx.members.without_source(namespace), Fallback::Wait(_));
        if must_wait && !*self.cx.synced.borrow() {
            self.early.retain(|(_, _, reply)| !reply.is_closed());
            self.early.push((attachment, netns, reply));
            return;
        }
        let deadline = Instant::now() + self.cx.settings.add_timeout;
        if *self.cx.synced.borrow() && !self.cx.can_judge(namespace, self.shown.contains(&uid)) {
            let shown = self.shown.contains(&uid);
            tokio::spawn(admit::admit(Arc::clone(&self.cx), uid, shown, attachment, netns, deadline, reply));
            return;
        }
        self.cx.tell(&uid, Message::Add { attachment, netns, told: Told::Shown, deadline, reply });
    }

    /// The pod that an attachment belongs to. Old runtimes do not say the uid: then it is looked up by name among the
    /// pods that the source has shown, else made from the container id, which names one sandbox of one pod.
    fn uid_of(&self, attachment: &Attachment) -> Option<PodUid> {
        if let Some(uid) = &attachment.uid {
            return Some(uid.clone());
        }
        let pod = attachment.pod.as_ref()?;
        let by_name = self.cx.registry.find(&pod.to_string()).ok();
        by_name.or_else(|| PodUid::new(format!("sandbox-{:.50}", attachment.id.container_id)).ok())
    }
}

/// On the first start of a boot the journal is empty, but pods may run, and ztunnel may serve them for an agent that was
/// here before: they are all looked at once, or ztunnel would let go of them at the end of our first snapshot.
async fn look_at_all(cx: &Context) {
    if cx.synced.subscribe().wait_for(|synced| *synced).await.is_err() {
        return;
    }
    let mut waits = Vec::new();
    cx.registry.broadcast(|| {
        let (done, wait) = oneshot::channel();
        waits.push(wait);
        Message::Resettle(vec![done])
    });
    for wait in waits {
        let _ = wait.await;
    }
    if let Err(error) = cx.journal.complete() {
        tracing::warn!(%error, "pods are all looked at again when the agent restarts");
    }
}

fn answer_ok(reply: oneshot::Sender<Reply>, outcome: &str) {
    let _ = reply.send(Reply::Ok { outcome: outcome.to_owned() });
}

fn answer_error(reply: oneshot::Sender<Reply>, code: u32, msg: String) {
    let _ = reply.send(Reply::Error { code, msg, details: String::new() });
}

/// Whether two lists share an address: the proof that a namespace is the pod's.
fn share_an_address(found: &[IpAddr], claimed: &[IpAddr]) -> bool {
    found.iter().any(|ip| claimed.iter().any(|claim| claim.to_canonical() == ip.to_canonical()))
}

/// Where a pod's namespace was said to be.
#[derive(Clone, Debug)]
struct Whereabouts {
    path: PathBuf,
    /// The namespace that was there when ADD vouched for it; `None` when only the source names the path.
    netns: Option<NetnsId>,
}
