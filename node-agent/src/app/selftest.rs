//! The probe self-test: finds out in pods of this node which way the kubelet's probes really pass, and has them go that way
//! (docs/decisions/0014-probe-self-test.md). It runs beside everything else: no ADD waits for it.

mod schedule;

use super::choices;
use super::probes::Strategies;
use crate::journal::TestedProbes;
use crate::reconcile::{Context, Message, Strategy, Witness};
use crate::status::course::Occasion;
use schedule::{Schedule, Seen, Topology};
use sluice_shared::admin::{Choice, State};
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::netfilter::family_of;
use sluice_shared::selftest::{self, Decision, Finding, Verdict, Way};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it is looked whether a test is due.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a test that would have a way given up which has worked the second one begins: what takes it away for a
/// moment, such as a kubelet's restart, is seen and put right within a second.
const SECOND_THOUGHT: Duration = Duration::from_secs(2);
/// Every how many looks the host's addresses and ways to pods are listed.
const LIST: u64 = 5;
/// To how many pods the host's way is looked up for that.
const LOOKED_UP: usize = 8;

/// Tests, and changes what is to be changed.
pub(super) struct SelfTest {
    cx: Arc<Context>,
    strategies: Strategies,
    /// The agent's own pod, for Events.
    own: Option<(PodRef, PodUid)>,
    schedule: Schedule,
    topology: Topology,
    /// Counts tests, so that each asks other pods.
    round: usize,
}

/// What a test has come to.
struct Outcome {
    decision: Decision,
    /// The strategy to take, started.
    take: Option<Strategy>,
    asked: usize,
}

impl SelfTest {
    pub(super) fn new(cx: Arc<Context>, strategies: Strategies, own: Option<(PodRef, PodUid)>) -> Self {
        Self { cx, strategies, own, schedule: Schedule::default(), topology: Topology::default(), round: 0 }
    }

    /// Tests whenever there is a reason to, until the agent ends. `recalled` says that every pod from before the start has
    /// been looked at: before that nobody knows whose probes a change would concern.
    pub(super) async fn run(mut self, recalled: watch::Receiver<bool>) {
        self.show(Verdict::Untested, "no pod of this node could be asked yet".into());
        choices::clear_cookies(&self.cx, recalled.clone()).await;
        let mut recalled = recalled;
        let is_over = recalled.wait_for(|recalled| *recalled).await.is_err();
        if is_over || self.strategies.candidates(self.cx.host.way()).is_empty() {
            self.show(Verdict::Untested, "no probe is to pass".into());
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0.. {
            ticks.tick().await;
            let pods = self.pods();
            if tick % LIST == 0 || !(self.schedule.has_tested() || pods.is_empty()) {
                self.list(&pods).await;
            }
            let seen = self.seen(&pods);
            // While pods change over, what would be tried is not what will be.
            if let Some(why) =
                self.schedule.due(&seen, Instant::now()).filter(|_| !self.cx.host.is_changing())
            {
                tracing::info!(why, "probe self-test");
                self.test(&pods, seen).await;
            }
        }
    }

    /// The pods that can be asked, and their namespaces.
    fn pods(&self) -> Vec<(Witness, String)> {
        let showings = self.cx.registry.showings().into_iter();
        let captured = showings.filter(|showing| {
            let status = &showing.status;
            status.state == State::Enabled && !status.overrides.bypass_inbound
        });
        let witness = captured.filter_map(|showing| {
            let (mut status, netns) = (showing.status, showing.handed?.netns?);
            // Of a family that is not redirected, probes need no door.
            status.ips.retain(|ip| ip.is_ipv4() || self.cx.settings.redirect.ipv6);
            let name = format!("{}/{}", status.namespace, status.name);
            Some((Witness { uid: status.uid, name, netns, ips: status.ips }, status.namespace))
        });
        // One with no address that is redirected has nothing to show.
        witness.filter(|(witness, _)| !witness.ips.is_empty()).collect()
    }

    /// Lists the host's addresses, and those from which it goes to pods.
    async fn list(&mut self, pods: &[(Witness, String)]) {
        let known = self.topology.sources.clone();
        let ips: Vec<IpAddr> =
            pods.iter().take(LOOKED_UP).flat_map(|(witness, _)| witness.ips.iter().copied()).collect();
        let listed = self.cx.kernel.run(move |kernel| {
            let sources: BTreeSet<_> = ips.iter().filter_map(|ip| kernel.host_source_for(*ip).ok()).collect();
            // With no pod to go to, nothing has changed.
            let sources = if sources.is_empty() { known } else { sources };
            Ok(Topology { addresses: kernel.host_addresses()?, sources })
        });
        if let Ok(topology) = listed.await {
            self.topology = topology;
        }
    }

    fn seen(&self, pods: &[(Witness, String)]) -> Seen {
        let ips = pods.iter().flat_map(|(witness, _)| &witness.ips);
        Seen {
            pods: pods.len(),
            families: ips.map(|ip| family_of(*ip)).collect(),
            topology: self.topology.clone(),
            refused: self.cx.host.is_refused(),
        }
    }

    /// Tests, acts on it and tells of it.
    async fn test(&mut self, pods: &[(Witness, String)], mut seen: Seen) {
        let has_worked = self.has_worked();
        let mut outcome = self.find(pods).await;
        if has_worked && self.is_worse(&outcome.decision) {
            // What has worked, and lets less through, is not given up for one bad moment.
            tracing::info!(found = outcome.decision.because, "probe self-test, once more with other pods");
            if let Some(strategy) = outcome.take.take() {
                let _ = strategy.retire().await;
            }
            tokio::time::sleep(SECOND_THOUGHT).await;
            outcome = self.find(&self.pods()).await;
        }
        let Outcome { decision, take, asked } = outcome;
        if let Some(strategy) = take {
            let Choice { chosen, because } = strategy.choice();
            tracing::info!(
                strategy = chosen,
                because,
                found = decision.because,
                "probes go another way from now on"
            );
            // Of the way that is in use from now on.
            seen.refused = strategy.is_refused();
            for uid in self.cx.host.change_to(Arc::new(strategy)).await {
                self.cx.registry.send_existing(&uid, Message::Resettle(Vec::new()));
            }
        }
        self.schedule.tested(seen, asked, &decision, Instant::now());
        self.tell(decision);
    }

    /// Whether a test of this boot has shown that the way in use works: this agent's, or a former one's.
    fn has_worked(&self) -> bool {
        let works = Verdict::Works.as_str();
        let before = self.cx.journal.probes();
        self.cx.host.tested().chosen == works
            || before.is_some_and(|it| it.verdict == works && it.chosen == self.cx.host.choice().chosen)
    }

    /// Whether it leads to a way that lets more through, or to none.
    fn is_worse(&self, decision: &Decision) -> bool {
        decision.verdict == Verdict::Blocked
            || decision.take.is_some_and(|way| Some(way) > self.cx.host.way())
    }

    /// Tries what may be tried, until something works.
    async fn find(&mut self, pods: &[(Witness, String)]) -> Outcome {
        let named: Vec<_> =
            pods.iter().map(|(witness, namespace)| (witness.uid.clone(), namespace.clone())).collect();
        let chosen: BTreeSet<PodUid> = selftest::witnesses(&named, self.round).into_iter().collect();
        let chosen = pods.iter().filter(|(witness, _)| chosen.contains(&witness.uid));
        let (witnesses, namespaces): (Vec<Witness>, Vec<String>) = chosen.cloned().unzip();
        self.round += 1;
        let now = self.cx.host.way();
        let (mut findings, mut started) = (Vec::new(), BTreeMap::new());
        for way in self.strategies.candidates(now) {
            let found = match self.cx.host.at_work(way) {
                // Whether the kubelet's own connections carry it is not to be seen from the agent's.
                Some(strategy) if way == Way::Cookie && strategy.is_refused() => {
                    Finding::Unavailable(strategy.choice().because)
                }
                Some(strategy) => self.tried(&strategy, &witnesses, &namespaces).await,
                None => match self.strategies.start(way, BTreeMap::new(), "chosen by the self-test").await {
                    Ok(strategy) => {
                        let found = self.tried(&strategy, &witnesses, &namespaces).await;
                        started.insert(way, strategy);
                        found
                    }
                    Err(why) => Finding::Unavailable(format!("{why:#}")),
                },
            };
            findings.push((way, found));
            if selftest::is_settled(&findings) {
                break;
            }
            if let Some(strategy) = started.remove(&way) {
                let _ = strategy.retire().await;
            }
        }
        let decision = selftest::decide(now, &findings);
        let take = decision.take.and_then(|way| started.remove(&way));
        for strategy in started.into_values() {
            let _ = strategy.retire().await;
        }
        Outcome { decision, take, asked: witnesses.len() }
    }

    /// What these pods, of these namespaces, show of a way.
    async fn tried(&self, strategy: &Strategy, witnesses: &[Witness], namespaces: &[String]) -> Finding {
        let attempts = strategy.tried(&self.cx, witnesses).await;
        selftest::finding(&namespaces.iter().cloned().zip(attempts).collect::<Vec<_>>())
    }

    fn show(&self, verdict: Verdict, because: String) {
        self.cx.host.set_tested(Choice { chosen: verdict.as_str().into(), because });
    }

    /// Status and metrics have every test, the log too; an Event is made of what is news in this boot.
    fn tell(&self, decision: Decision) {
        let Decision { verdict, because, .. } = decision;
        let chosen = self.cx.host.choice().chosen;
        self.cx.metrics.probe_test(verdict.as_str());
        self.show(verdict, because.clone());
        let by_test = self.strategies.candidates(self.cx.host.way()).len() > 1;
        let tested = TestedProbes { chosen: chosen.clone(), verdict: verdict.as_str().into(), by_test };
        let said = match verdict {
            Verdict::Works => {
                tracing::info!(strategy = chosen, because, "probes pass");
                (Occasion::ProbesTried, format!("probes go by {chosen}: {because}"))
            }
            Verdict::Blocked => {
                tracing::warn!(
                    strategy = chosen,
                    because,
                    "probes do not pass by any strategy that may be taken"
                );
                let what =
                    format!("kubelet probes of captured pods fail here; they go by {chosen}: {because}");
                (Occasion::ProbesBlocked, what)
            }
            Verdict::Untested => {
                tracing::info!(strategy = chosen, because, "the probe self-test shows nothing");
                return;
            }
        };
        if self.cx.journal.probes().as_ref() == Some(&tested) {
            return;
        }
        if let Err(error) = self.cx.journal.remember_probes(&tested) {
            tracing::warn!(%error, "what the probe self-test has shown is told again when the agent restarts");
        }
        if let Some((pod, uid)) = &self.own {
            self.cx.status.remark(pod, uid, said);
        }
    }
}
