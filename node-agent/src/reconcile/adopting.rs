//! Where a pod's namespace is, when its rules are to be written or taken away: where ADD, the journal or the source says,
//! else where the finder finds it ([`crate::adopt`]).

use super::pod::PodTask;
use super::{Message, Whereabouts, share_an_address};
use crate::adopt::{Found, Stale, Wanted, Way};
use crate::journal::Sandbox;
use crate::kernel::Netns;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::PodRef;
use sluice_shared::wire::{Attachment, AttachmentId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The interface that runtimes name in CNI calls for a pod's own network.
const POD_INTERFACE: &str = "eth0";
/// How long another pod may take to let go of a namespace that the runtime says is not its.
const YIELD_WITHIN: Duration = Duration::from_secs(1);

impl PodTask {
    /// Opens the pod's namespace, and makes sure that it is the pod's: by the inode that was vouched for, or, where only
    /// the source names a path, by the pod's address in it. One that nobody knows is looked for.
    pub(super) async fn find_namespace(&mut self) -> Result<Arc<Netns>, String> {
        if self.ips().is_empty() {
            return Err("it has no address yet".into());
        }
        let is_named = self.facts.as_ref().is_some_and(|facts| facts.netns.is_some());
        match self.whereabouts() {
            None => self.adopt().await,
            Some(Whereabouts { path, netns: None }) => self.open_named(path).await,
            Some(Whereabouts { netns: Some(_), .. }) => match self.open_remembered().await {
                Ok(netns) => Ok(netns),
                // The source's own path may lead elsewhere next time: it is looked at afresh.
                Err(why) if is_named => {
                    self.forget_sandbox_of_source();
                    Err(why)
                }
                Err(why) => self.adopt().await.map_err(|error| format!("{why}; {error}")),
            },
        }
    }

    async fn open_remembered(&self) -> Result<Arc<Netns>, String> {
        let Some(sandbox) = &self.sandbox else { return Err("its namespace is not known".into()) };
        self.open_again(sandbox).await.map(Arc::new).map_err(|error| error.to_string())
    }

    /// Opens a sandbox's namespace by the path that led there, if what is there is still the pod's.
    pub(super) async fn open_again(&self, sandbox: &Sandbox) -> Result<Netns, Stale> {
        let (owner, neighbours) = (self.owner_of(sandbox), self.neighbours());
        self.cx.finder.open_again(&sandbox.path, sandbox.netns, &owner, &neighbours).await
    }

    async fn open_named(&mut self, path: PathBuf) -> Result<Arc<Netns>, String> {
        let netns = Arc::new(self.cx.open(&path).await.map_err(|error| error.to_string())?);
        self.refuse_released(&netns, &path)?;
        let there = Arc::clone(&netns);
        let found =
            self.cx.kernel.run(move |kernel| kernel.addresses(&there)).await.map_err(|e| e.to_string())?;
        let ips = self.ips();
        if !share_an_address(&found, &ips) {
            return Err(format!("{} has none of the pod's addresses {ips:?}: not the pod's", path.display()));
        }
        self.claim(&netns, &path, false).await?;
        self.sandbox = Some(Sandbox { adopted: false, ips: Vec::new(), ..self.sandbox_at(path, &netns) });
        Ok(netns)
    }

    /// Looks for the namespace of a running pod, and makes it the pod's.
    async fn adopt(&mut self) -> Result<Arc<Netns>, String> {
        if !self.told_all {
            return Err(
                "its network namespace is not known, and is looked for when the source has shown every pod"
                    .into(),
            );
        }
        let Some(facts) = self.known_facts() else {
            return Err("its network namespace is not known, and neither is its name".into());
        };
        let wanted = Wanted { uid: self.entry.uid.clone(), pod: facts.pod_ref(), ips: self.ips() };
        let found =
            self.cx.finder.find(&wanted, &self.neighbours()).await.map_err(|error| error.to_string())?;
        let Found { netns, path, way, sandbox: container, aside } = found;
        let netns = Arc::new(netns);
        self.refuse_released(&netns, &path)?;
        if self.deleted && way != Way::Runtime {
            return Err(format!(
                "its sandbox was deleted, and only its address speaks for {}: the next ADD, or the runtime, tells",
                path.display()
            ));
        }
        if self.netns_id().is_some_and(|known| known != netns.id()) {
            self.release("its namespace is another one now").await;
            if self.known_facts().is_none() {
                return Err("the source no longer shows it".into());
            }
        }
        self.claim(&netns, &path, way == Way::Runtime).await?;
        let known = self.sandbox.take().filter(|sandbox| sandbox.netns == netns.id());
        let attachment = container.map(attachment_of);
        let attachment = known.as_ref().and_then(|known| known.attachment.clone()).or(attachment);
        let redirected = known.is_some_and(|known| known.redirected);
        tracing::info!(pod = %wanted.pod, uid = %wanted.uid, path = %path.display(), %way,
            aside = aside.join("; "), "found the network namespace of a running pod");
        self.sandbox = Some(Sandbox { attachment, redirected, ..self.sandbox_at(path, &netns) });
        self.asked = Some(Instant::now());
        self.path_seen = true;
        self.deleted = false;
        Ok(netns)
    }

    /// DEL has let go of it; that it is not gone yet does not bring it back.
    fn refuse_released(&self, netns: &Netns, path: &Path) -> Result<(), String> {
        if self.released == Some(netns.id()) {
            return Err(format!("{} is what DEL let go of", path.display()));
        }
        Ok(())
    }

    /// Takes a namespace that no other pod holds. It is shown as held before the others are looked at, so that of two
    /// that come at the same time at most one gets it. With the runtime's word the others are told to let go.
    async fn claim(
        &mut self,
        netns: &Arc<Netns>,
        path: &Path,
        has_the_runtimes_word: bool,
    ) -> Result<(), String> {
        let id = netns.id();
        let before = self.entry.showing().status.netns.replace(id);
        let others = |task: &Self| {
            let holders = task.cx.registry.holders(id);
            holders.into_iter().filter(|uid| *uid != task.entry.uid).collect::<Vec<_>>()
        };
        if has_the_runtimes_word {
            for other in others(self) {
                let (done, wait) = oneshot::channel();
                if self.cx.registry.send_existing(&other, Message::Yield(id, done)) {
                    let _ = tokio::time::timeout(YIELD_WITHIN, wait).await;
                }
            }
        }
        match others(self).first() {
            None => Ok(()),
            Some(other) => {
                self.entry.showing().status.netns = before;
                Err(format!("{} is held by the pod with uid {other}", path.display()))
            }
        }
    }

    fn sandbox_at(&self, path: PathBuf, netns: &Netns) -> Sandbox {
        let facts = self.known_facts();
        Sandbox {
            uid: self.entry.uid.clone(),
            pod: facts.as_ref().map_or_else(|| PodRef::new("", ""), PodFacts::pod_ref),
            service_account: facts.map(|facts| facts.service_account),
            attachment: None,
            path,
            netns: netns.id(),
            ips: self.ips(),
            adopted: true,
            redirected: false,
        }
    }

    /// A path that only the source named may name another namespace next time; one that was vouched for may not.
    fn forget_sandbox_of_source(&mut self) {
        if self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_vouched_for()) {
            self.sandbox = None;
        }
    }

    /// Whether a remembered namespace, which its path no longer leads to, is found in another way. `None` when it is
    /// not, or when the pod has another one now.
    pub(super) async fn seek(&self, sandbox: &Sandbox) -> Option<Found> {
        let Sandbox { uid, pod, ips, .. } = sandbox;
        let wanted = Wanted { uid: uid.clone(), pod: pod.clone(), ips: ips.clone() };
        let found = self.cx.finder.find(&wanted, &self.neighbours()).await;
        found.inspect_err(|error| tracing::debug!(%pod, %uid, %error, "not found elsewhere")).ok()
    }

    /// Whether an adopted sandbox whose path is gone lives on: a path that led through a process ends with that process,
    /// and the pod may have others. Where that cannot be told, the source's word counts.
    pub(super) async fn lives_on(&mut self) -> bool {
        let of_a_process =
            |sandbox: &&Sandbox| sandbox.adopted && self.cx.finder.is_of_a_process(&sandbox.path);
        let Some(sandbox) = self.sandbox.as_ref().filter(of_a_process).cloned() else { return false };
        match self.seek(&sandbox).await {
            Some(found) if found.netns.id() == sandbox.netns => {
                self.sandbox = Some(Sandbox { path: found.path, ..sandbox });
                self.remember(self.was_redirected());
                true
            }
            Some(_) => false,
            None => {
                self.facts.as_ref().is_some_and(|facts| !self.facts_are_last && !facts.phase.is_terminal())
            }
        }
    }

    /// Whether a DEL is not about this sandbox, of which no attachment is known: it names another namespace, or none, and
    /// the sandbox's is still where it was.
    pub(super) async fn lives_apart_from(&self, deleted: &Attachment) -> bool {
        let Some(sandbox) = self.sandbox.as_ref().filter(|sandbox| sandbox.adopted) else { return false };
        if !deleted.netns.is_empty()
            && let Ok(netns) = self.cx.open(Path::new(&deleted.netns)).await
        {
            return netns.id() != sandbox.netns;
        }
        self.open_again(sandbox).await.is_ok()
    }

    /// The source shows other addresses than an adopted sandbox has: it is another sandbox's pod now, and no ADD said so.
    pub(super) async fn leave_replaced_sandbox(&mut self) {
        let Some(facts) = &self.facts else { return };
        let replaced = self.sandbox.as_ref().is_some_and(|sandbox| {
            let told = !facts.ips.is_empty() && !sandbox.ips.is_empty();
            sandbox.adopted && told && !share_an_address(&sandbox.ips, &facts.ips)
        });
        if replaced {
            self.release("its addresses have changed: another sandbox took its place").await;
        }
    }
}

/// The attachment of the pod's own network, in a sandbox that the runtime names.
pub(super) fn attachment_of(container_id: String) -> AttachmentId {
    AttachmentId { container_id, ifname: POD_INTERFACE.into() }
}
