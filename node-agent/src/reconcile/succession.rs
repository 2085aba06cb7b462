//! After istio-cni: a pod that its rules redirect gets ours in their place, the host loses its rules when the last such
//! pod has changed over, and while its agent lives nothing of either is touched
//! (docs/decisions/0011-migration.md).

use super::pod::PodTask;
use super::{Context, Message};
use crate::kernel::{Kernel, KernelError, Netns, Observation};
use crate::metrics::KernelStep;
use crate::predecessor::{AWAY, Predecessor};
use sluice_shared::admin::Choice;
use sluice_shared::cni::code;
use sluice_shared::enroll::Overrides;
use sluice_shared::ids::PodUid;
use sluice_shared::istio::{Place, Remains, recognise};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::plan::{Older, RedirectPlan, Stage};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often what is there is listed anew when somebody changes rules between the list and the commit.
const ATTEMPTS: usize = 5;
/// How long ztunnel may take to say that it serves a pod that it most likely serves already.
const HANDOVER: Duration = Duration::from_secs(6);
/// How often the host is looked at until nothing of istio-cni's is left there.
const LOOK: Duration = Duration::from_secs(1);

/// How it stands with what was here before us.
pub struct Succession {
    predecessor: watch::Receiver<Predecessor>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether istio-cni was seen, alive or by what it left.
    met: bool,
    /// The pods that its rules still redirect.
    waiting: BTreeSet<PodUid>,
    /// How many pods have changed over, in this run.
    taken: u64,
    /// What was taken away on the host, or why not.
    host: String,
    /// What only looks like istio-cni's, and was left alone.
    left: BTreeSet<String>,
}

/// What became of istio-cni's rules and sets on the host.
pub(super) enum OnHost {
    /// There are none.
    Nothing,
    /// They are there, and somebody counts on them.
    Needed,
    /// They are taken away; which.
    Taken(String),
}

impl Succession {
    /// Goes by what the lookout sees.
    #[must_use]
    pub fn new(predecessor: watch::Receiver<Predecessor>) -> Self {
        let met = matches!(*predecessor.borrow(), Predecessor::Lives | Predecessor::Away);
        Self { predecessor, state: Mutex::new(State { met, ..State::default() }) }
    }

    /// Why pods are to be left to istio-cni, if they are. Where it cannot be seen whether it lives, only those that it
    /// has captured are.
    fn hands_off(&self, captured: bool) -> Option<String> {
        match &*self.predecessor.borrow() {
            Predecessor::Lives => Some(
                "istio-cni runs on this node, and captures its pods: remove its DaemonSet, and they are taken over \
                 within a second (docs/install.md)"
                    .to_owned(),
            ),
            Predecessor::Away => Some(format!(
                "istio-cni does not answer, and has not taken its files away as it does when it is removed: it may be \
                 restarting, and counts as gone after {} s",
                AWAY.as_secs()
            )),
            Predecessor::Unseen(why) if captured => Some(format!(
                "istio-cni's rules redirect it, and whether istio-cni still runs cannot be seen ({why}): give the agent \
                 CAP_SYS_PTRACE and the host's /proc"
            )),
            Predecessor::Unseen(_) | Predecessor::Gone => None,
        }
    }

    /// Whether a new pod may have istio-cni's rules already: its plugin comes before ours in the chain.
    pub(super) fn may_precede_us(&self) -> bool {
        *self.predecessor.borrow() != Predecessor::Gone || self.lock().met
    }

    /// For `sluicectl status`; `None` where istio-cni was never met.
    #[must_use]
    pub fn choice(&self) -> Option<Choice> {
        let lives = matches!(*self.predecessor.borrow(), Predecessor::Lives | Predecessor::Away);
        let state = self.lock();
        if !lives && !state.met {
            return None;
        }
        let mut because = vec![format!("{} pods taken over", state.taken)];
        if !state.waiting.is_empty() {
            because.push(format!("{} still have its rules", state.waiting.len()));
        }
        if lives {
            because.insert(0, "remove its DaemonSet: pods and host are left to it until then".to_owned());
        }
        if !state.host.is_empty() {
            because.push(state.host.clone());
        }
        because.extend(state.left.iter().map(|left| format!("left alone: {left}")));
        let chosen = if lives { "runs on this node" } else { "gone" };
        Some(Choice { chosen: chosen.into(), because: because.join("; ") })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod needs nothing more of this.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.lock().waiting.remove(uid);
    }

    fn found(&self, uid: &PodUid, remains: &Remains) {
        let mut state = self.lock();
        state.left.extend(remains.left.iter().cloned());
        if remains.is_empty() {
            state.waiting.remove(uid);
        } else {
            state.met = true;
            state.waiting.insert(uid.clone());
        }
    }

    fn taken(&self, uid: &PodUid) {
        let mut state = self.lock();
        state.taken += u64::from(state.waiting.remove(uid));
    }

    /// Has every pod look again when istio-cni comes or goes.
    pub async fn announce(cx: Arc<Context>) {
        let mut predecessor = cx.succession.predecessor.clone();
        while predecessor.changed().await.is_ok() {
            if matches!(*predecessor.borrow_and_update(), Predecessor::Lives | Predecessor::Away) {
                cx.succession.lock().met = true;
            }
            cx.registry.broadcast(|| Message::Resettle(Vec::new()));
        }
    }

    /// Takes istio-cni's rules and sets on the host away, once: when it is gone and no pod counts on them any more.
    /// `recalled` says that every pod that was there at the start has been looked at.
    pub async fn clear_host(cx: Arc<Context>, mut recalled: watch::Receiver<bool>) {
        if recalled.wait_for(|done| *done).await.is_err() {
            return;
        }
        let mut predecessor = cx.succession.predecessor.clone();
        loop {
            predecessor.mark_unchanged();
            let this = Arc::clone(&cx.succession);
            if this.frees_host() {
                match cx.kernel.run(move |kernel| this.take_from_host(kernel)).await {
                    // Until it has come again, and gone.
                    Ok(OnHost::Nothing) => {
                        if predecessor.changed().await.is_err() {
                            return;
                        }
                    }
                    Ok(OnHost::Needed) => {}
                    Ok(OnHost::Taken(found)) => {
                        tracing::info!(found, "istio-cni's rules on the host are taken away");
                        let mut state = cx.succession.lock();
                        state.met = true;
                        state.host = format!("taken away on the host: {found}");
                    }
                    Err(error) => {
                        let said = format!("its rules on the host cannot be taken away: {error}");
                        let mut state = cx.succession.lock();
                        if state.host != said {
                            tracing::warn!(said);
                            state.host = said;
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether nobody counts on istio-cni's rules on the host any more.
    fn frees_host(&self) -> bool {
        *self.predecessor.borrow() == Predecessor::Gone && self.lock().waiting.is_empty()
    }

    /// Takes what is listed, unless somebody has come to count on it meanwhile: a list takes its time, and istio-cni
    /// may be installed again in it.
    pub(super) fn take_from_host(&self, kernel: &dyn Kernel) -> Result<OnHost, KernelError> {
        let remains = recognise(&kernel.istio_on_host()?, Place::Host);
        if remains.is_empty() {
            return Ok(OnHost::Nothing);
        }
        if !self.frees_host() {
            return Ok(OnHost::Needed);
        }
        kernel.run_host(&lower(Backend::Nftables, Step::Dismantle(&remains)))?;
        Ok(OnHost::Taken(remains.to_string()))
    }
}

impl PodTask {
    /// Whether the pod is to be left to istio-cni, which is then said, and the annotation left as istio-cni wrote it.
    pub(super) fn is_left_to_predecessor(&mut self, remains: &Remains) -> bool {
        self.cx.succession.found(&self.entry.uid, remains);
        let Some(why) = self.cx.succession.hands_off(!remains.is_empty()) else { return false };
        self.show_here(why);
        self.retry_later();
        true
    }

    /// A new pod on a node where istio-cni lives: its plugin came before ours in the chain. `None` when the pod is ours
    /// to capture.
    pub(super) async fn add_behind_predecessor(
        &mut self,
        netns: &Arc<Netns>,
    ) -> Option<Result<(), (u32, String)>> {
        self.cx.succession.hands_off(false)?;
        let there = Arc::clone(netns);
        let listed = self.cx.kernel.run(move |kernel| Ok(recognise(&kernel.istio(&there)?, Place::Pod)));
        let remains = match listed.await {
            Ok(remains) => remains,
            Err(error) => {
                return Some(Err((code::TRY_AGAIN_LATER, format!("it cannot be looked at: {error}"))));
            }
        };
        self.remember(false);
        if !self.is_left_to_predecessor(&remains) {
            return None;
        }
        Some(if remains.is_empty() {
            let why = "istio-cni runs on this node, and its plugin, which should come before this one, has not captured it";
            Err((code::TRY_AGAIN_LATER, why.to_owned()))
        } else {
            Ok(())
        })
    }

    /// Not captured by us, and why; where istio-cni has the pod, the cluster goes by istio-cni's word.
    pub(super) fn pending_behind_predecessor(&mut self, why: String) {
        match self.cx.succession.hands_off(false) {
            Some(left) => {
                self.show_here(format!("{left}; {why}"));
                self.retry_later();
            }
            None => self.pending(why),
        }
    }

    /// Istio-cni's rules redirect the pod: ztunnel is told first, and mostly serves it already; then ours come and theirs
    /// go. Whatever is not proxied now would not have got past theirs either, so nothing is kept, and conntrack stays.
    pub(super) async fn take_over(
        &mut self,
        netns: &Arc<Netns>,
        overrides: &Overrides,
    ) -> Result<(), String> {
        self.hand(self.workload(netns));
        if !*self.cx.ztunnel.any_ready().borrow() {
            return Err(
                "waiting for ztunnel: none is connected; istio-cni's rules redirect the pod until then"
                    .into(),
            );
        }
        self.hand_over(netns, Instant::now() + HANDOVER)
            .await
            .map_err(|error| format!("waiting for ztunnel: {error}"))?;
        let plan = self.plan(overrides, Stage::Redirect(Older::None)).await;
        self.supplant(netns, plan).await.map_err(|error| {
            self.cx.metrics.kernel_error(KernelStep::Enroll);
            format!("istio-cni's rules could not be replaced: {error}")
        })?;
        self.follow(netns);
        Ok(())
    }

    /// Puts a plan in the place of istio-cni's rules, and takes note of what the kernel then shows.
    pub(super) async fn supplant(
        &mut self,
        netns: &Arc<Netns>,
        plan: RedirectPlan,
    ) -> Result<(), KernelError> {
        let (there, backend, written) = (Arc::clone(netns), self.cx.settings.backend, plan.clone());
        let replace = move |kernel: &dyn Kernel| {
            with_fresh_list(kernel, &there, |kernel, remains| {
                let step = match remains.is_empty() {
                    false => Step::TakeOver { plan: &written, remains },
                    true => Step::Enroll { plan: &written, live: false },
                };
                kernel.apply(&there, &lower(backend, step))
            })?;
            dismantle(kernel, &there)
        };
        let (seen, left) = self.cx.kernel.run(replace).await?;
        let pod = &self.entry.uid;
        tracing::info!(uid = %pod, left = left.join("; "), "istio-cni's rules in a pod are replaced");
        self.cx.succession.taken(pod);
        self.hold(netns, plan, seen);
        Ok(())
    }

    /// Our rules are in force, and so is something of istio-cni's: an agent ended between the two, or somebody put it back.
    pub(super) async fn finish_succession(&mut self, netns: &Arc<Netns>) -> Result<(), String> {
        let there = Arc::clone(netns);
        self.cx
            .kernel
            .run(move |kernel| dismantle(kernel, &there))
            .await
            .map_err(|error| format!("istio-cni's rules could not be taken away: {error}"))?;
        self.cx.succession.taken(&self.entry.uid);
        Ok(())
    }
}

/// Takes away what is left of istio-cni's, and looks at what there is then; says what only looks like istio-cni's.
fn dismantle(kernel: &dyn Kernel, netns: &Netns) -> Result<(Observation, Vec<String>), KernelError> {
    with_fresh_list(kernel, netns, |kernel, remains| {
        kernel.run(netns, &lower(Backend::Nftables, Step::Dismantle(remains)))?;
        Ok((kernel.observe(netns)?, remains.left.clone()))
    })
}

/// Lists and acts; lists again when somebody has changed rules in between.
fn with_fresh_list<T>(
    kernel: &dyn Kernel,
    netns: &Netns,
    act: impl Fn(&dyn Kernel, &Remains) -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    let mut attempt = 1;
    loop {
        let remains = recognise(&kernel.istio(netns)?, Place::Pod);
        match act(kernel, &remains) {
            Err(error) if error.is_overtaken() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
    }
}
