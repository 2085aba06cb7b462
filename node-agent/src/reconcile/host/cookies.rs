//! The probe strategy `cookie`: which pod has which cookie, and how one follows another without a probe that fails.
//!
//! A pod's rules accept a cookie before the kubelet's probes carry it, and until after they have ceased to: it goes into
//! the plan ([`Cookies::door`]), to the kubelet's side once that plan is in force ([`Cookies::admit`]), and a former one
//! leaves the plan a moment after its successor has come. Nothing is written down: the kernel's map says, after a restart
//! of the agent, what is given out.

use crate::journal::Journal;
use crate::kernel::{Attached, Kernel, KernelError, Pool};
use crate::metrics::{DriftObject, KernelStep, Metrics};
use sluice_shared::admin::Choice;
use sluice_shared::cookie::Cookie;
use sluice_shared::ids::PodUid;
use sluice_shared::plan::{CgroupRef, ProbeDoor};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a pod has one cookie.
const LIFE: Duration = Duration::from_secs(3600);
/// How long a former cookie still passes. A SYN that is sent again has the cookie of that moment, so this is for what is on
/// its way within the node.
const LINGERS: Duration = Duration::from_secs(10);

/// The cookies of this node's pods.
pub(super) struct Cookies {
    kernel: Arc<Pool>,
    metrics: Metrics,
    journal: Option<Journal>,
    because: String,
    /// What does not work now.
    problems: std::sync::Mutex<BTreeMap<Part, String>>,
    /// Locked over what is written to the kernel: it and this say the same.
    pods: Mutex<BTreeMap<PodUid, Pod>>,
    /// The cgroup that the program is on, or was last.
    kubelet: std::sync::Mutex<CgroupRef>,
}

/// What may fail by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Program,
    Map,
    Random,
}

/// One pod's cookies.
#[derive(Default)]
struct Pod {
    /// Whose SYNs carry it: the addresses that are the pod's.
    ips: Vec<IpAddr>,
    /// What they carry, and since when.
    given: Option<(Cookie, Instant)>,
    /// What they are to carry once the pod's rules accept it.
    next: Option<Cookie>,
    /// What they carried before, and until when.
    former: Option<(Cookie, Instant)>,
}

impl Cookies {
    /// Attaches the program to the kubelet's cgroup. Of the cookies that a former run gave out, those of `pods` stay in
    /// force: their addresses, by uid.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) async fn start(
        kernel: Arc<Pool>,
        metrics: Metrics,
        journal: Option<Journal>,
        kubelet: CgroupRef,
        pods: BTreeMap<PodUid, Vec<IpAddr>>,
        because: &str,
    ) -> Result<Self, KernelError> {
        let place = kubelet.clone();
        let left = journal.as_ref().and_then(Journal::cookies).filter(|left| *left != kubelet);
        let known = kernel.run(move |kernel| {
            let known = take_over(kernel, &place, pods).inspect_err(|_| _ = kernel.detach_cookies(&place));
            // Where the kubelet was before. That cgroup is gone, most often, and the program with it.
            if let Some(left) = left {
                let _ = kernel.detach_cookies(&left);
            }
            known
        });
        let pods = Mutex::new(known.await?);
        let (because, problems) = (because.to_owned(), std::sync::Mutex::default());
        let kubelet = std::sync::Mutex::new(kubelet);
        let cookies = Self { kernel, metrics, journal, because, problems, pods, kubelet };
        cookies.remember();
        Ok(cookies)
    }

    /// Whether the kernel refuses the program on the kubelet's cgroup, or its map, now.
    pub(super) fn is_refused(&self) -> bool {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.contains_key(&Part::Program) || problems.contains_key(&Part::Map)
    }

    /// `cookie`, and why, and what is wrong now.
    pub(super) fn choice(&self) -> Choice {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let because = match problems.values().next() {
            None => format!("{}; the kubelet is the cgroup /{}", self.because, self.kubelet().path),
            Some(problem) => format!("{}; but probes may be captured now: {problem}", self.because),
        };
        Choice { chosen: "cookie".into(), because }
    }

    /// The door in a pod's rules, for what comes from the node's own addresses: for what its probes carry, will carry, and
    /// carried a moment ago.
    pub(super) async fn door(&self, uid: &PodUid, addresses: BTreeSet<IpAddr>, ports: &[u16]) -> ProbeDoor {
        if ports.is_empty() {
            return ProbeDoor::Closed;
        }
        let has_one = self.pods.lock().await.get(uid).is_some_and(|pod| !pod.accepted().is_empty());
        // Not under the lock: others need not wait for it.
        let fresh = if has_one { None } else { self.new_cookie().await };
        let mut pods = self.pods.lock().await;
        let pod = pods.entry(uid.clone()).or_default();
        if pod.accepted().is_empty() {
            pod.next = fresh;
        }
        ProbeDoor::Cookie { cookies: pod.accepted(), addresses, ports: ports.iter().copied().collect() }
    }

    /// The pod is captured, with this door in its rules: its probes carry the newest cookie that opens it. Says whether
    /// they do.
    pub(super) async fn admit(&self, uid: &PodUid, ips: &[IpAddr], door: &ProbeDoor) -> bool {
        let accepted = door.doors().find_map(|door| match door {
            ProbeDoor::Cookie { cookies, .. } => Some(cookies),
            _ => None,
        });
        let Some(accepted) = accepted else {
            self.dismiss(uid).await;
            return false;
        };
        let mut pods = self.pods.lock().await;
        let Some(pod) = pods.get(uid) else { return false };
        let Some(cookie) = pod.newest(accepted) else { return false };
        if pod.ips == ips && pod.given.is_some_and(|(given, _)| given == cookie) {
            return true;
        }
        let left = pod.ips.iter().filter(|ip| !ips.contains(ip)).map(|ip| (*ip, None));
        let changes = left.chain(ips.iter().map(|ip| (*ip, Some(cookie)))).collect();
        if !self.write(changes).await {
            return false;
        }
        // An address has one owner: the pod that has it now.
        for (_, other) in pods.iter_mut().filter(|(other, _)| *other != uid) {
            other.ips.retain(|ip| !ips.contains(ip));
        }
        if let Some(pod) = pods.get_mut(uid) {
            pod.ips = ips.to_vec();
            pod.carry(cookie, Instant::now());
        }
        true
    }

    /// The pods that have one, or will.
    pub(super) async fn members(&self) -> BTreeSet<PodUid> {
        self.pods.lock().await.keys().cloned().collect()
    }

    /// Takes the program off the kubelet's cgroup, and every cookie with it.
    pub(super) async fn retire(&self) {
        let (kubelet, mut pods) = (self.kubelet(), self.pods.lock().await);
        pods.clear();
        let path = kubelet.path.clone();
        match self.kernel.run(move |kernel| kernel.detach_cookies(&kubelet)).await {
            Ok(_) => tracing::info!(path, "the program that writes cookies is off the kubelet's cgroup"),
            Err(error) => tracing::info!(path, %error, "the program went with the kubelet's cgroup"),
        }
        if let Some(Err(error)) = self.journal.as_ref().map(Journal::forget_cookies) {
            tracing::warn!(%error, "where the program was that writes cookies cannot be forgotten");
        }
    }

    /// The pod is gone, or its rules have no door.
    pub(super) async fn dismiss(&self, uid: &PodUid) {
        let mut pods = self.pods.lock().await;
        let Some(pod) = pods.get(uid) else { return };
        let changes = pod.ips.iter().map(|ip| (*ip, None)).collect();
        // What cannot be taken away opens nothing: no rule accepts it any more.
        let _ = self.write(changes).await;
        pods.remove(uid);
    }

    /// Begins and ends what is due: the pods whose plans change by it.
    pub(super) async fn turn(&self) -> Vec<PodUid> {
        let now = Instant::now();
        let mut pods = self.pods.lock().await;
        let mut changed = Vec::new();
        for (uid, pod) in pods.iter_mut() {
            if pod.former.is_some_and(|(_, until)| until <= now) {
                pod.former = None;
                changed.push(uid.clone());
            }
            if pod.is_due(now) {
                pod.next = self.new_cookie().await;
                changed.extend(pod.next.map(|_| uid.clone()));
            }
        }
        changed
    }

    /// Has the program on the kubelet's cgroup as it is now.
    pub(super) async fn look(&self, kubelet: CgroupRef) {
        let before = self.kubelet();
        let place = kubelet.clone();
        match self.kernel.run(move |kernel| kernel.attach_cookies(&place)).await {
            Ok(Attached::AsItWas) => self.fare(Part::Program, None),
            Ok(Attached::Anew) => {
                if before == kubelet {
                    tracing::warn!(
                        "the program that writes cookies was taken off the kubelet's cgroup; it is back"
                    );
                    self.metrics.drift_repaired(DriftObject::CookieProgram);
                } else {
                    tracing::info!(
                        path = kubelet.path,
                        id = kubelet.id,
                        "the kubelet's cgroup is another one now"
                    );
                }
                *self.kubelet.lock().unwrap_or_else(PoisonError::into_inner) = kubelet;
                self.remember();
                self.fare(Part::Program, None);
            }
            Err(error) => self.fare(Part::Program, Some(error)),
        }
    }

    /// Writes to the kernel; `false` when it refused.
    async fn write(&self, changes: Vec<(IpAddr, Option<Cookie>)>) -> bool {
        let written = self.kernel.run(move |kernel| {
            changes.into_iter().try_for_each(|(ip, cookie)| kernel.give_cookie(ip, cookie))
        });
        let written = written.await;
        let well = written.is_ok();
        self.fare(Part::Map, written.err());
        well
    }

    async fn new_cookie(&self) -> Option<Cookie> {
        let made = self.kernel.run(Kernel::new_cookie).await;
        let (cookie, error) = made.map_or_else(|error| (None, Some(error)), |cookie| (Some(cookie), None));
        self.fare(Part::Random, error);
        cookie
    }

    /// Takes note of how it goes; what lasts is told once.
    fn fare(&self, part: Part, error: Option<KernelError>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let now = error.map(|error| error.to_string());
        if problems.get(&part) == now.as_ref() {
            return;
        }
        match now {
            Some(error) => {
                self.metrics.kernel_error(KernelStep::Host);
                tracing::error!(
                    error,
                    "cookies cannot be given: kubelet probes may be captured; tried again within a second"
                );
                problems.insert(part, error);
            }
            None => {
                tracing::info!("cookies can be given again");
                problems.remove(&part);
            }
        }
    }

    fn kubelet(&self) -> CgroupRef {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For an agent that comes next with another strategy.
    fn remember(&self) {
        if let Some(journal) = &self.journal
            && let Err(error) = journal.remember_cookies(&self.kubelet())
        {
            tracing::warn!(%error, "the program that writes cookies may outlast this strategy");
        }
    }
}

/// Attaches the program, and gives what is given out already to the pods that it is for; the rest is taken away.
fn take_over(
    kernel: &dyn Kernel,
    kubelet: &CgroupRef,
    pods: BTreeMap<PodUid, Vec<IpAddr>>,
) -> Result<BTreeMap<PodUid, Pod>, KernelError> {
    kernel.attach_cookies(kubelet)?;
    let mut given = kernel.cookies()?;
    let mut known = BTreeMap::new();
    for (uid, ips) in pods {
        let cookies: BTreeSet<Cookie> = ips.iter().filter_map(|ip| given.get(ip).copied()).collect();
        // A pod that has two has them from somebody else; it gets a new one.
        if let Some(cookie) = cookies.first().filter(|_| cookies.len() == 1) {
            let ips = ips.into_iter().filter(|ip| given.remove(ip).is_some()).collect();
            known.insert(uid, Pod { ips, given: Some((*cookie, Instant::now())), ..Pod::default() });
        }
    }
    // Their pods are gone.
    given.keys().try_for_each(|ip| kernel.give_cookie(*ip, None))?;
    Ok(known)
}

impl Pod {
    fn accepted(&self) -> BTreeSet<Cookie> {
        let (given, former) = (self.given.map(|(cookie, _)| cookie), self.former.map(|(cookie, _)| cookie));
        [self.next, given, former].into_iter().flatten().collect()
    }

    /// The newest of ours that the rules accept.
    fn newest(&self, accepted: &BTreeSet<Cookie>) -> Option<Cookie> {
        let given = self.given.map(|(cookie, _)| cookie);
        [self.next, given].into_iter().flatten().find(|cookie| accepted.contains(cookie))
    }

    /// The pod's probes carry this one from now on.
    fn carry(&mut self, cookie: Cookie, now: Instant) {
        if self.given.is_some_and(|(given, _)| given == cookie) {
            return;
        }
        self.former = self.given.map(|(former, _)| (former, now + LINGERS));
        self.given = Some((cookie, now));
        self.next = self.next.filter(|next| *next != cookie);
    }

    fn is_due(&self, now: Instant) -> bool {
        let old = self.given.is_some_and(|(_, since)| now.duration_since(since) >= LIFE);
        old && self.next.is_none() && self.former.is_none()
    }
}

#[cfg(test)]
mod tests;
