//! A namespace that was found without the runtime's word, by an address or by processes: what the source shows of addresses
//! may be old. It is held until something speaks against it, and the runtime is asked for its word meanwhile.

use super::Message;
use super::pod::PodTask;
use crate::adopt::{Miss, Neighbours, Wanted};
use crate::journal::Sandbox;
use sluice_shared::ids::PodUid;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often the runtime is asked about it: one that was slow when the node booted answers later.
const ASK_EVERY: Duration = Duration::from_secs(30);

impl PodTask {
    /// What is known of the other pods.
    pub(super) fn neighbours(&self) -> Neighbours {
        Neighbours { complete: self.told_all, ..self.cx.registry.neighbours(&self.entry.uid) }
    }

    /// Whose a remembered sandbox is, with its addresses as far as they are known.
    pub(super) fn owner_of(&self, sandbox: &Sandbox) -> Wanted {
        let ips = if sandbox.ips.is_empty() { self.ips() } else { sandbox.ips.clone() };
        Wanted { uid: sandbox.uid.clone(), pod: sandbox.pod.clone(), ips }
    }

    /// The pod's sandbox, if neither ADD nor the runtime has said that it is the pod's.
    fn unconfirmed(&self) -> Option<&Sandbox> {
        self.sandbox.as_ref().filter(|sandbox| sandbox.adopted && sandbox.attachment.is_none())
    }

    /// Has the runtime asked, beside whatever the pod's task does: it may be slow.
    pub(super) fn seek_confirmation(&mut self) {
        let Some(sandbox) = self.unconfirmed().filter(|_| self.cx.finder.has_runtime()) else { return };
        if self.asked.is_some_and(|at| at.elapsed() < ASK_EVERY) {
            return;
        }
        let (cx, wanted, neighbours) = (Arc::clone(&self.cx), self.owner_of(sandbox), self.neighbours());
        self.asked = Some(Instant::now());
        tokio::spawn(async move {
            if !matches!(cx.finder.ask_runtime(&wanted, &neighbours).await, Err(Miss::Unknown(_))) {
                cx.registry.send_existing(&wanted.uid, Message::Doubt);
            }
        });
    }

    /// Lets go of a namespace that the runtime denies, or that may be another pod's as well, and looks for the pod's anew.
    pub(super) async fn doubt(&mut self) {
        let Some(sandbox) = self.unconfirmed().cloned() else { return };
        let (wanted, neighbours) = (self.owner_of(&sandbox), self.neighbours());
        let why = match self.cx.finder.ask_runtime(&wanted, &neighbours).await {
            Ok(found) if found.netns.id() == sandbox.netns => return self.confirmed(found.sandbox),
            Ok(found) => format!("the runtime says that its namespace is {}", found.path.display()),
            Err(Miss::No(why)) => format!("the runtime: {why}"),
            Err(Miss::Unknown(_)) => match shares_an_address(&wanted, &neighbours) {
                Some(other) => format!("the pod with uid {other} shows its address, too"),
                None => return,
            },
        };
        tracing::warn!(pod = %sandbox.pod, uid = %sandbox.uid, path = %sandbox.path.display(), why,
            "a network namespace that was taken for this pod's may be another's: it is let go of");
        self.release(&format!("it may be another pod's: {why}")).await;
        // It was no DEL: should it turn out to be the pod's, it is taken back.
        self.released = None;
        self.settle().await;
    }

    fn confirmed(&mut self, container: Option<String>) {
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.attachment = container.map(super::adopting::attachment_of);
        }
        if self.was_redirected() {
            self.remember(true);
        }
    }
}

/// Another pod with an address of this one's.
fn shares_an_address<'a>(wanted: &Wanted, neighbours: &'a Neighbours) -> Option<&'a PodUid> {
    wanted.ips.iter().find_map(|ip| neighbours.addresses.get(&ip.to_canonical()))
}
