//! How pods stand, told to the cluster: the annotation that istiod reads, and Events.
//!
//! Pods' tasks say how a pod stands ([`Sink::stands`]), the switchboard what its object has ([`Sink::shown`]); neither
//! waits. What follows from that is decided in [`course`] and [`annotation`], which are pure. One task writes annotations, the
//! newest wanted value of each pod and nothing else; another one writes Events, as many as the cluster can bear.

pub mod annotation;
pub mod api;
pub mod board;
pub mod course;
pub mod events;
pub mod outcome;
mod recorder;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use board::Peers;

use crate::metrics::Metrics;
use annotation::Has;
use api::Api;
use board::{Board, Remark};
use course::Said;
use recorder::{Happening, Recorder};
use sluice_shared::admin::PodStatus;
use sluice_shared::facts::PodFacts;
use sluice_shared::ids::{PodRef, PodUid};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use writer::Writer;

/// The first wait after a write that failed; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Where pods' tasks say how pods stand. Cloning shares it.
#[derive(Clone, Default)]
pub struct Sink(Option<Arc<Desk>>);

/// What pods' tasks and the writers share.
struct Desk {
    board: Mutex<Board>,
    /// Something may be due.
    wake: Notify,
    /// A write has ended.
    ended: watch::Sender<()>,
    happenings: mpsc::Sender<Happening>,
    metrics: Metrics,
}

impl Sink {
    /// Tells nobody: there is no API server.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// Begins to tell the API server. `node` is who reports Events. The client should not try again by itself.
    #[must_use]
    pub fn start(client: kube::Client, node: String, metrics: Metrics) -> Self {
        let (happenings, inbox) = mpsc::channel(recorder::QUEUE);
        let desk = Arc::new(Desk {
            board: Mutex::default(),
            wake: Notify::new(),
            ended: watch::Sender::new(()),
            happenings,
            metrics: metrics.clone(),
        });
        let api = Api::new(client);
        tokio::spawn(Writer::new(Arc::clone(&desk), api.clone()).run());
        tokio::spawn(Recorder::new(api, node, metrics).run(inbox));
        Self(Some(desk))
    }

    /// A pod stands so now.
    pub fn stands(&self, status: &PodStatus) {
        let Some(desk) = &self.0 else { return };
        let (remarks, moved) = desk.board().stands(status, Instant::now());
        if moved {
            desk.wake.notify_one();
        }
        desk.say(remarks);
    }

    /// The watch shows a pod's object.
    pub fn shown(&self, pod: &PodFacts) {
        let Some(desk) = &self.0 else { return };
        if desk.board().shown(&pod.uid, pod.pod_ref(), Has::of(&pod.annotations), Instant::now()) {
            desk.wake.notify_one();
        }
    }

    /// The watch shows a pod's object no longer: there is nothing to write to until it does again.
    pub fn gone(&self, uid: &PodUid) {
        let Some(desk) = &self.0 else { return };
        desk.board().gone(uid);
        // Whoever waits for its peers to be told waits for nothing.
        desk.ended.send_replace(());
    }

    /// Something is to be said on a pod that is not about the pod itself.
    pub fn remark(&self, pod: &PodRef, uid: &PodUid, said: Said) {
        if let Some(desk) = &self.0 {
            desk.say(vec![Remark { uid: uid.clone(), pod: pod.clone(), said }]);
        }
    }

    /// The agent knows nothing of a pod any more.
    pub fn forget(&self, uid: &PodUid) {
        if let Some(desk) = &self.0 {
            desk.board().forget(uid);
        }
    }

    /// What the pod's peers have been told.
    #[must_use]
    pub fn peers(&self, uid: &PodUid) -> Peers {
        self.0.as_ref().map_or(Peers::Unaware, |desk| desk.board().peers(uid))
    }

    /// Waits until istiod can know that the pod is not to be dialled by HBONE any more, at most so long. Says whether it can.
    pub async fn withdrawn(&self, uid: &PodUid, within: Duration) -> bool {
        let Some(desk) = &self.0 else { return true };
        desk.until(within, |board| board.peers(uid) != Peers::MayDial).await
    }

    /// Waits until what can be written now is written, at most so long. What stands stays: captured pods stay captured.
    pub async fn flush(&self, within: Duration) -> bool {
        let Some(desk) = &self.0 else { return true };
        desk.until(within, |board| board.is_idle(Instant::now())).await
    }

    /// How many pods' annotations are not what they should be yet.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.0.as_ref().map_or(0, |desk| desk.board().owed())
    }

    /// Whether a pod's annotation is as it should be, and what is known of it; `None` where nobody is told.
    #[must_use]
    pub fn explain(&self, uid: &PodUid) -> Option<(bool, String)> {
        self.0.as_ref()?.board().explain(uid)
    }
}

impl Desk {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has Events made of these. A queue that is full already tells of more than anybody reads.
    fn say(&self, remarks: Vec<Remark>) {
        for remark in remarks {
            if self.happenings.try_send(Happening::now(remark)).is_err() {
                self.metrics.event("dropped");
            }
        }
    }

    async fn until(&self, within: Duration, holds: impl Fn(&Board) -> bool) -> bool {
        let mut ended = self.ended.subscribe();
        let all = async {
            while !holds(&self.board()) {
                if ended.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }
}
