//! The drift watch: one nf_tables socket and one routing socket that hear every followed namespace.
//!
//! `NETLINK_LISTEN_ALL_NSID` delivers the notifications of every namespace that has an id in the agent's own, with the
//! id beside each. Without CAP_NET_BROADCAST such a socket is silent and says nothing of it, so [`Watch::start`] changes
//! something in a scratch namespace and listens whether it hears that.

mod ear;
mod nsid;

use super::scratch::scratch;
use super::{LinuxKernel, netns, nft, route};
use crate::kernel::{KernelError, Netns};
use ear::{Ear, Heard};
use nsid::NamespaceIds;
use sluice_shared::ids::{Family, NetnsId};
use sluice_shared::op::Presence;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Hints that may wait for the reader. When it is slower than that, the kernel's own buffer fills, and what it then
/// drops is told as [`Hint::Everything`].
const HINTS_WAITING: usize = 256;
/// How long the self-check listens for its own change. It takes a quarter of a millisecond.
const SELF_CHECK: Duration = Duration::from_secs(1);

/// Something changed; what, is for the receiver to find out. The agent's own changes are heard too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hint {
    /// Rules, policy rules or our routing table of a followed namespace.
    Pod(NetnsId),
    /// The host's nf_tables rules.
    Host,
    /// Notifications were lost: look everywhere.
    Everything,
}

/// Whether changes are heard, and if not why: then only a sweep finds drift.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hearing {
    /// Whether a change of rules and one of routing in another namespace were both heard.
    pub hears: bool,
    /// In one line.
    pub reason: String,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    /// Says what to listen to.
    pub handle: WatchHandle,
    /// What is heard.
    pub hints: mpsc::Receiver<Hint>,
    /// Whether it works here.
    pub hearing: Hearing,
}

/// Says which namespaces are listened to. Clones say it to the same watch.
#[derive(Clone, Debug)]
pub struct WatchHandle {
    ids: Arc<NamespaceIds>,
}

impl Watch {
    /// Starts listening; it ends when the receiver is dropped. Called on a tokio runtime, by a thread that is in the
    /// agent's own namespace.
    ///
    /// # Errors
    /// When a socket is refused. Not hearing is no error: see [`Watch::hearing`].
    pub fn start(kernel: &LinuxKernel) -> Result<Self, KernelError> {
        let ids = Arc::new(NamespaceIds::open()?);
        let (rules, routing) = (Ear::for_rules()?, Ear::for_routing()?);
        let hearing = self_check(&ids, &rules, &routing)?;
        if kernel.namespaces.host_id() != kernel.namespaces.own_id() {
            ids.follow(kernel.namespaces.host())?;
        }
        let place = Place { host: kernel.namespaces.host_id(), own: kernel.namespaces.own_id() };
        let (sender, hints) = mpsc::channel(HINTS_WAITING);
        let ears = [rules.into_async()?, routing.into_async()?];
        tokio::spawn(listen(ears, Arc::clone(&ids), place, sender));
        Ok(Self { handle: WatchHandle { ids }, hints, hearing })
    }
}

impl WatchHandle {
    /// Listens to a namespace, from now on.
    ///
    /// # Errors
    /// When the kernel refuses it an id.
    pub fn follow(&self, netns: &Netns) -> Result<(), KernelError> {
        self.ids.follow(netns)
    }

    /// Stops listening. The kernel keeps the namespace's id as long as the namespace; following it again uses it.
    pub fn unfollow(&self, id: NetnsId) {
        self.ids.unfollow(id);
    }
}

/// Which namespaces are not pods.
#[derive(Clone, Copy)]
struct Place {
    host: NetnsId,
    own: NetnsId,
}

impl Place {
    /// What a notification means. `None` for one of no interest.
    fn hint(self, heard: Heard, ids: &NamespaceIds) -> Option<Hint> {
        let (nsid, about_rules) = match heard {
            Heard::Lost => return Some(Hint::Everything),
            Heard::Rules(nsid) => (nsid, true),
            Heard::Routing(nsid) => (nsid, false),
        };
        // The own namespace's come without an id.
        let id = nsid.map_or(Some(self.own), |nsid| ids.netns(nsid))?;
        match id {
            // Nothing of ours is in the host but a table.
            id if id == self.host => about_rules.then_some(Hint::Host),
            id if id == self.own => None,
            id => Some(Hint::Pod(id)),
        }
    }
}

async fn listen(ears: [AsyncFd<Ear>; 2], ids: Arc<NamespaceIds>, place: Place, sender: mpsc::Sender<Hint>) {
    let [rules, routing] = &ears;
    loop {
        // One change may be many notifications: each namespace is told once a wake-up.
        let mut hints = BTreeSet::new();
        let mut note = |heard: Heard| hints.extend(place.hint(heard, &ids));
        let outcome = tokio::select! {
            ready = rules.readable() => ready.map(|mut guard| {
                let _ = guard.try_io(|ear| ear.get_ref().drain(&mut note));
            }),
            ready = routing.readable() => ready.map(|mut guard| {
                let _ = guard.try_io(|ear| ear.get_ref().drain(&mut note));
            }),
            () = sender.closed() => return,
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "the drift watch has ended; only sweeps find drift now");
            return;
        }
        for hint in hints {
            if sender.send(hint).await.is_err() {
                return;
            }
        }
    }
}

/// Changes rules and routing in a scratch namespace and listens.
fn self_check(ids: &NamespaceIds, rules: &Ear, routing: &Ear) -> Result<Hearing, KernelError> {
    let (heard_rules, heard_routing) = scratch(|| {
        let here = netns::open_any(Path::new(netns::OWN_NETNS))?;
        ids.follow(&here)?;
        // A kernel that refuses the change has nothing to be heard of either.
        let _ = nft::commit(&sluice_shared::nft::remove());
        route::set_rule(&mut route::open()?, Family::V4, Presence::Present)?;
        let mine = |nsid: Option<i32>| nsid.and_then(|nsid| ids.netns(nsid)) == Some(here.id());
        let rules = rules.hears_within(SELF_CHECK, |heard| matches!(heard, Heard::Rules(nsid) if mine(nsid)));
        let routing =
            routing.hears_within(SELF_CHECK, |heard| matches!(heard, Heard::Routing(nsid) if mine(nsid)));
        ids.unfollow(here.id());
        Ok((rules, routing))
    })?;
    let deaf = |to: &str| Hearing {
        hears: false,
        reason: format!(
            "a change of {to} in another namespace was not heard; the agent needs CAP_NET_BROADCAST"
        ),
    };
    Ok(match (heard_rules, heard_routing) {
        (true, true) => Hearing { hears: true, reason: "changes in other namespaces are heard".into() },
        (false, true) => deaf("rules"),
        (true, false) => deaf("routing"),
        (false, false) => deaf("rules and routing"),
    })
}
