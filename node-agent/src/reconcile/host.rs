//! How the kubelet's probes get into captured pods on this node: the strategy that is at work, the one before it for as long
//! as some pod counts on it, and what the self-test tries beside them. The strategies are in `strategy`.
//!
//! One follows another pod by pod, the new door before the old one goes: a pod's rules have both, then its probes go the new
//! way and no longer the old one, and a moment later the old door leaves its rules. When no pod has it any more, what the
//! former strategy had outside of pods is taken away.

mod cookies;
mod snat;
mod strategy;
mod trial;

pub use strategy::Strategy;
pub use trial::Witness;

use crate::kernel::Pool;
use crate::metrics::Metrics;
use sluice_shared::admin::Choice;
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{CgroupRef, ProbeDoor};
use sluice_shared::selftest::Way;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a pod's former door stays beside its new one: a SYN that was lost is sent again as it was.
const LINGERS: Duration = Duration::from_secs(10);
/// How long a pod that cannot change over keeps the former strategy on the host, and self-tests waiting.
const GIVES_UP: Duration = Duration::from_secs(300);

/// The node's probe strategy, at work.
pub struct HostTable {
    kernel: Arc<Pool>,
    backend: Backend,
    metrics: Metrics,
    state: Mutex<State>,
}

struct State {
    now: Arc<Strategy>,
    /// The strategy before it, while there is a pod in `leaving`.
    former: Option<Arc<Strategy>>,
    leaving: BTreeMap<PodUid, Leaving>,
    /// The door in the rules in force of each captured pod.
    doors: BTreeMap<PodUid, ProbeDoor>,
    /// What the self-test tries in a pod.
    trials: BTreeMap<PodUid, Vec<ProbeDoor>>,
    /// What the last self-test has shown.
    tested: Choice,
}

/// A pod that has, or may have, the former strategy's door.
struct Leaving {
    /// When the change began for it.
    began: Instant,
    /// Which, once it was asked for.
    door: Option<ProbeDoor>,
    /// Since when its probes go the new way.
    since: Option<Instant>,
}

impl Leaving {
    fn new() -> Self {
        Self { began: Instant::now(), door: None, since: None }
    }
}

impl HostTable {
    /// With this strategy.
    #[must_use]
    pub fn new(kernel: Arc<Pool>, backend: Backend, metrics: Metrics, strategy: Strategy) -> Self {
        let state = State {
            now: Arc::new(strategy),
            former: None,
            leaving: BTreeMap::new(),
            doors: BTreeMap::new(),
            trials: BTreeMap::new(),
            tested: Choice { chosen: "untested".into(), because: "no pod has been asked yet".into() },
        };
        Self { kernel, backend, metrics, state: Mutex::new(state) }
    }

    /// What was chosen, and why, and what is wrong with it now.
    #[must_use]
    pub fn choice(&self) -> Choice {
        let State { now, former, .. } = &*self.lock();
        let mut choice = now.choice();
        if let Some(former) = former {
            choice.because =
                format!("{}; pods are changing over from {}", choice.because, former.choice().chosen);
        }
        choice
    }

    /// What the last self-test has shown.
    #[must_use]
    pub fn tested(&self) -> Choice {
        self.lock().tested.clone()
    }

    /// Takes note of what a self-test has shown.
    pub fn set_tested(&self, tested: Choice) {
        self.metrics.probes(&self.choice().chosen, &tested.chosen);
        self.lock().tested = tested;
    }

    /// Which way probes go now.
    #[must_use]
    pub fn way(&self) -> Option<Way> {
        self.lock().now.way()
    }

    /// The strategy that is at work, if probes go this way.
    pub(crate) fn at_work(&self, way: Way) -> Option<Arc<Strategy>> {
        let now = Arc::clone(&self.lock().now);
        (now.way() == Some(way)).then_some(now)
    }

    /// Whether pods are still changing over from another strategy.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.lock().former.is_some()
    }

    /// Whether the host refuses now what it took before.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let now = Arc::clone(&self.lock().now);
        now.is_refused()
    }

    /// The door in a pod's own rules.
    pub async fn door(&self, uid: &PodUid, ips: &[IpAddr], probe_ports: &[u16]) -> ProbeDoor {
        let (now, former, trials) = {
            let state = self.lock();
            let former = state.former.clone().zip(state.leaving.get(uid).map(|leaving| leaving.door.clone()));
            (Arc::clone(&state.now), former, state.trials.get(uid).cloned())
        };
        let goes_by_source = |strategy: &Strategy| matches!(strategy.way(), Some(Way::Cookie | Way::Source));
        let by_source =
            goes_by_source(&now) || former.as_ref().is_some_and(|(former, _)| goes_by_source(former));
        let sources = match by_source && !probe_ports.is_empty() {
            true => self.sources(ips).await,
            false => BTreeSet::new(),
        };
        let mut doors = vec![now.door(uid, sources.clone(), probe_ports).await];
        // With no port to probe, nothing of it is on its way, and there is nothing to change over.
        match former.filter(|_| !probe_ports.is_empty() || now.is_in(&doors[0])) {
            Some((_, Some(known))) => doors.push(known),
            Some((former, None)) => {
                let door = former.door(uid, sources, probe_ports).await;
                if let Some(leaving) = self.lock().leaving.get_mut(uid) {
                    leaving.door.get_or_insert_with(|| door.clone());
                }
                doors.push(door);
            }
            None => {}
        }
        doors.extend(trials.into_iter().flatten());
        ProbeDoor::several(doors)
    }

    /// Where the node's own connections to a pod come from.
    async fn sources(&self, ips: &[IpAddr]) -> BTreeSet<IpAddr> {
        let ips = ips.to_vec();
        let sources = self
            .kernel
            .run(move |kernel| Ok(ips.iter().filter_map(|ip| kernel.host_source_for(*ip).ok()).collect()));
        sources.await.unwrap_or_default()
    }

    /// The pod is captured, with this door in its rules: its probes pass from now on.
    pub async fn admit(&self, uid: &PodUid, ips: &[IpAddr], door: &ProbeDoor) {
        // With no door at all there is nothing to keep open: no port to probe, or nothing captured.
        let has_none = !door.doors().any(|door| !matches!(door, ProbeDoor::Trial(_)));
        let (now, former, waits) = {
            let mut state = self.lock();
            state.doors.insert(uid.clone(), door.clone());
            let now = Arc::clone(&state.now);
            let follows = has_none || now.is_in(door);
            if !follows {
                // Its plan was made before the change, and came into force after.
                let known = Leaving { door: Some(door.clone()), ..Leaving::new() };
                state.leaving.entry(uid.clone()).or_insert(known);
            }
            let waits = state.leaving.get(uid).is_some_and(|leaving| leaving.since.is_none());
            (now, state.former.clone(), (!follows, waits))
        };
        match (former, waits) {
            (Some(former), (true, _)) => _ = former.admit(uid, ips, door).await,
            (None, (true, _)) => {}
            (_, (false, false)) => _ = now.admit(uid, ips, door).await,
            (former, (false, true)) => {
                let begun = now.admit(uid, ips, door).await || has_none;
                // Where the host goes on giving its source, the pod goes on needing that door.
                let ended = match former {
                    Some(former) if begun => former.dismiss(uid).await,
                    _ => begun,
                };
                if ended && let Some(leaving) = self.lock().leaving.get_mut(uid) {
                    leaving.since = Some(Instant::now());
                }
            }
        }
    }

    /// The pod is gone, or no longer captured.
    pub async fn dismiss(&self, uid: &PodUid) {
        let (now, former) = {
            let mut state = self.lock();
            state.doors.remove(uid);
            let was_leaving = state.leaving.remove(uid).is_some();
            (Arc::clone(&state.now), state.former.clone().filter(|_| was_leaving))
        };
        // What cannot be taken away opens nothing: the pod is gone, or its rules have no door.
        let _ = now.dismiss(uid).await;
        if let Some(former) = former {
            let _ = former.dismiss(uid).await;
        }
    }

    /// The pods whose door is another one from now on, though nothing has happened to them. What a strategy had outside of
    /// pods goes when the last of them has left it.
    pub async fn turn(&self) -> Vec<PodUid> {
        let (now, former, mut changed, is_over) = {
            let mut state = self.lock();
            let mut changed = Vec::new();
            // What the host does not let go of stays in force, and so do the doors for it.
            let is_held = state.former.as_ref().is_some_and(|former| former.is_held());
            state.leaving.retain(|uid, leaving| {
                let gives_up = !is_held && leaving.began.elapsed() >= GIVES_UP;
                let over = leaving.since.map_or(gives_up, |since| since.elapsed() >= LINGERS);
                // Who has not changed over yet is asked again.
                changed.extend((over || leaving.since.is_none()).then(|| uid.clone()));
                !over
            });
            (Arc::clone(&state.now), state.former.clone(), changed, state.leaving.is_empty())
        };
        if let Some(former) = former.filter(|_| is_over)
            && former.retire().await
        {
            tracing::info!(strategy = former.choice().chosen, "no pod's probes go the former way any more");
            // Not before: a self-test might start the same strategy, and lose it to this end of the former one.
            self.lock().former = None;
        }
        changed.extend(now.turn().await);
        changed
    }

    /// Has probes go another way from now on. The pods that have doors are to settle anew: these. Not while they change
    /// over already ([`Self::is_changing`]).
    pub async fn change_to(&self, strategy: Arc<Strategy>) -> Vec<PodUid> {
        let before = Arc::clone(&self.lock().now);
        let members = before.members().await;
        let mut state = self.lock();
        state.leaving = state.doors.keys().chain(&members).map(|uid| (uid.clone(), Leaving::new())).collect();
        state.former = Some(std::mem::replace(&mut state.now, strategy));
        state.leaving.keys().cloned().collect()
    }

    /// Looks whether what is on the host is as it should be, and whether `kubelet` is still the kubelet's cgroup. Puts right
    /// what is not.
    pub async fn look(&self, kubelet: Option<CgroupRef>) {
        let (now, former) = {
            let state = self.lock();
            (Arc::clone(&state.now), state.former.clone())
        };
        now.look(kubelet.clone()).await;
        if let Some(former) = former {
            former.look(kubelet).await;
        }
    }

    /// What the self-test tries in a pod from now on. The pod is to settle anew.
    fn set_trials(&self, uid: &PodUid, doors: Vec<ProbeDoor>) {
        let mut state = self.lock();
        match doors.is_empty() {
            true => _ = state.trials.remove(uid),
            false => _ = state.trials.insert(uid.clone(), doors),
        }
    }

    /// Whether all that is to be tried in a pod is in its rules.
    fn has_trials(&self, uid: &PodUid) -> bool {
        let state = self.lock();
        let in_force =
            |trial: &ProbeDoor| state.doors.get(uid).is_some_and(|door| door.doors().any(|one| one == trial));
        state.trials.get(uid).is_some_and(|trials| trials.iter().all(in_force))
    }

    /// Takes away whatever table of ours is in the host's namespace, by either backend: a former run's, whose strategy
    /// is no longer in use. A host that refuses is told of, and no error.
    pub async fn remove(&self) {
        if let Err(error) = snat::remove(&self.kernel, self.backend).await {
            tracing::warn!(%error, "{}", snat::STAYS);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod changes;
#[cfg(test)]
mod tests;
