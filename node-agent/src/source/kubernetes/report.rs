//! What is wrong with the source right now, for logs, metrics and `sluicectl status`.

use super::api::Failure;
use crate::metrics::{Metrics, SourceKind};
use crate::source::Problem;
use crate::visible::printable;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Tells how one resource fares. What is told of all of them is joined.
#[derive(Clone)]
pub(super) struct Reporter {
    what: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Metrics,
    state: Mutex<State>,
    problem: watch::Sender<Problem>,
}

struct State {
    /// What is wrong, by resource.
    wrong: BTreeMap<&'static str, String>,
    /// How many resources have not been listed yet.
    unlisted: usize,
}

impl Reporter {
    /// One for each of these resources.
    pub(super) fn each<const N: usize>(
        resources: [&'static str; N],
        metrics: Metrics,
    ) -> ([Self; N], watch::Receiver<Problem>) {
        let (problem, receiver) = watch::channel(None);
        let state = Mutex::new(State { wrong: BTreeMap::new(), unlisted: N });
        let shared = Arc::new(Shared { metrics, state, problem });
        (resources.map(|what| Self { what, shared: Arc::clone(&shared) }), receiver)
    }

    /// A request failed. It is said once for as long as the reason stays the same.
    pub(super) fn failed(&self, why: &Failure, listed: bool) {
        self.shared.metrics.source_error(SourceKind::Kubernetes);
        let stays = match listed {
            true => "what is known of them stays in force",
            false => "nothing is known of them until then",
        };
        let problem = printable(&format!("{} cannot be watched: {why}; {stays}", self.what));
        if self.set(Some(&problem)) {
            tracing::error!("{problem}");
        }
    }

    /// A request does what it should.
    pub(super) fn works(&self) {
        if self.set(None) {
            tracing::info!(what = self.what, "watched again");
        }
    }

    /// An object cannot be used.
    pub(super) fn unfit(&self, key: &str, why: &str) {
        self.shared.metrics.source_error(SourceKind::Kubernetes);
        let (key, why) = (printable(key), printable(why));
        tracing::warn!(
            what = self.what,
            key,
            why,
            "an object of the API server cannot be used, and is left out"
        );
    }

    /// Says whether all resources have now been listed.
    pub(super) fn first_list_is_complete(&self) -> bool {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unlisted -= 1;
        state.unlisted == 0
    }

    /// Says whether that is another problem than before.
    fn set(&self, problem: Option<&str>) -> bool {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.wrong.get(self.what).map(String::as_str) == problem {
            return false;
        }
        match problem {
            Some(problem) => state.wrong.insert(self.what, problem.to_owned()),
            None => state.wrong.remove(self.what),
        };
        let all: Vec<_> = state.wrong.values().map(String::as_str).collect();
        self.shared.problem.send_replace((!all.is_empty()).then(|| all.join("; ")));
        true
    }
}
