//! When a self-test is due: at the first captured pod, when what it went by has changed, and now and then where it had a
//! reason to be better. Never more often than every [`PAUSE`].

use sluice_shared::ids::Family;
use sluice_shared::selftest::{Decision, Verdict, WITNESSES};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How long there must be a pod to ask, or another topology, before that counts: they come in bursts.
const STEADY: Duration = Duration::from_secs(1);
const TOPOLOGY_STEADY: Duration = Duration::from_secs(5);
/// The least time from the end of a test to the next.
const PAUSE: Duration = Duration::from_secs(30);
/// How often that doubles, at most, while the host's addresses change and it makes no difference: those of services come and
/// go with kube-proxy's IPVS.
const DOUBLED: u32 = 5;
/// After how long a test is made again that has shown nothing, or that nothing passes: at first, and at most.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_AT_MOST: Duration = Duration::from_secs(900);
/// The same where something works, but not the best that can be had.
const SECOND_BEST: Duration = Duration::from_secs(900);
/// And where that works.
const ALL_IS_WELL: Duration = Duration::from_secs(3600);

/// What the ways for probes depend on, on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    /// Its addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Those from which it goes to pods.
    pub(super) sources: BTreeSet<IpAddr>,
}

/// What there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// So many pods can be asked.
    pub(super) pods: usize,
    /// The families of their addresses.
    pub(super) families: BTreeSet<Family>,
    pub(super) topology: Topology,
    /// Whether host or kernel refuse what the way in use needs.
    pub(super) refused: bool,
}

/// What was tested, and what there was to be seen since.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Since when there are pods to ask.
    pods_since: Option<Instant>,
    /// The topology as seen last, and since when it is so.
    topology: Option<(Topology, Instant)>,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    seen: Seen,
    asked: usize,
    again: Duration,
    /// How many tests in a row have not shown that something works.
    in_vain: u32,
    /// How many in a row have changed nothing.
    unchanged: u32,
}

impl Schedule {
    pub(super) const fn has_tested(&self) -> bool {
        self.last.is_some()
    }

    /// Why a test is due now, if one is.
    pub(super) fn due(&mut self, seen: &Seen, now: Instant) -> Option<&'static str> {
        match &self.topology {
            Some((known, _)) if *known == seen.topology => {}
            _ => self.topology = Some((seen.topology.clone(), now)),
        }
        let topology_is_steady =
            self.topology.as_ref().is_some_and(|(_, since)| now.duration_since(*since) >= TOPOLOGY_STEADY);
        if seen.pods == 0 {
            self.pods_since = None;
            return None;
        }
        if let Some(last) = &mut self.last {
            // What was put right since, and is refused again, is news.
            last.seen.refused &= seen.refused;
        }
        let pods_since = *self.pods_since.get_or_insert(now);
        if now.duration_since(pods_since) < STEADY {
            return None;
        }
        let Some(last) = &self.last else { return Some("there is a pod to ask") };
        let elapsed = now.duration_since(last.at);
        if elapsed < PAUSE {
            return None;
        }
        let (now, before) = (&seen.topology, &last.seen.topology);
        if topology_is_steady && !now.sources.is_subset(&before.sources) && elapsed >= last.patience() {
            Some("the host goes to pods from other addresses")
        } else if topology_is_steady && now.addresses != before.addresses && elapsed >= last.patience() {
            Some("the host has other addresses")
        } else if seen.refused && !last.seen.refused {
            Some("what probes go by is refused now")
        } else if !seen.families.is_subset(&last.seen.families) {
            Some("there are pods of another family")
        } else if last.asked < WITNESSES && seen.pods > last.seen.pods {
            Some("there are more pods to ask")
        } else {
            (elapsed >= last.again).then_some("it is time again")
        }
    }

    /// A test has ended now, with so many pods asked.
    pub(super) fn tested(&mut self, seen: Seen, asked: usize, decision: &Decision, now: Instant) {
        let in_vain = match decision.verdict {
            Verdict::Works => 0,
            Verdict::Untested | Verdict::Blocked => self.last.as_ref().map_or(0, |last| last.in_vain) + 1,
        };
        let again = match (decision.verdict, decision.second_best) {
            (Verdict::Works, false) => ALL_IS_WELL,
            (Verdict::Works, true) => SECOND_BEST,
            _ => AGAIN.saturating_mul(1 << (in_vain - 1).min(4)).min(AGAIN_AT_MOST),
        };
        let unchanged = match (&self.last, decision.take) {
            (Some(last), None) => last.unchanged + 1,
            _ => 0,
        };
        self.last = Some(Last { at: now, seen, asked, again, in_vain, unchanged });
    }
}

impl Last {
    /// How long it takes until other addresses of the host are a reason.
    fn patience(&self) -> Duration {
        PAUSE.saturating_mul(1 << self.unchanged.min(DOUBLED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pods: usize) -> Seen {
        Seen { pods, families: BTreeSet::from([Family::V4]), ..Seen::default() }
    }

    fn decision(verdict: Verdict, second_best: bool) -> Decision {
        Decision { take: None, verdict, second_best, because: String::new() }
    }

    /// At which seconds tests are made, of so many; each ends at once and asks all pods, three at most.
    fn tests(seconds: u64, decision: &Decision, seen: impl Fn(u64) -> Seen) -> Vec<(u64, &'static str)> {
        let (began, mut schedule, mut made) = (Instant::now(), Schedule::default(), Vec::new());
        for second in 0..seconds {
            let (now, seen) = (began + Duration::from_secs(second), seen(second));
            if let Some(why) = schedule.due(&seen, now) {
                made.push((second, why));
                schedule.tested(seen.clone(), seen.pods.min(WITNESSES), decision, now);
            }
        }
        made
    }

    fn at(made: &[(u64, &'static str)]) -> Vec<u64> {
        made.iter().map(|(second, _)| *second).collect()
    }

    #[test]
    fn the_first_pod_is_asked_and_no_pod_is_no_reason() {
        let works = decision(Verdict::Works, false);
        assert_eq!(at(&tests(10_000, &works, |_| seen(0))), [0; 0]);
        assert_eq!(at(&tests(3_000, &works, |second| seen(usize::from(second >= 100)))), [101]);
        let flickering = tests(3_000, &works, |second| seen(usize::from(second % 2 == 0)));
        assert_eq!(at(&flickering), [0; 0], "pods that come and go at once");
    }

    #[test]
    fn what_has_changed_is_tested_once_it_is_steady_and_not_before_the_pause_is_over() {
        let works = decision(Verdict::Works, false);
        let moved = |second: u64| {
            let address = IpAddr::from([10, 0, 0, u8::from(second >= 10)]);
            Seen {
                topology: Topology { addresses: BTreeSet::from([address]), ..Topology::default() },
                ..seen(3)
            }
        };
        assert_eq!(at(&tests(3_000, &works, moved)), [1, 31]);
        // An interface that comes and goes all the time: at most one test each pause.
        let restless = |second: u64| {
            let address = IpAddr::from([10, 0, 0, (second / 6 % 2) as u8]);
            Seen {
                topology: Topology { addresses: BTreeSet::from([address]), ..Topology::default() },
                ..seen(3)
            }
        };
        let made = at(&tests(3_000, &works, restless));
        assert!(made.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE.as_secs()), "{made:?}");
        assert!((6..10).contains(&made.len()), "less and less often while it changes nothing: {made:?}");
        let refused = |second: u64| Seen { refused: second >= 100, ..seen(3) };
        assert_eq!(at(&tests(3_000, &works, refused)), [1, 100]);
        let twice = |second: u64| Seen { refused: (100..200).contains(&second) || second >= 300, ..seen(3) };
        assert_eq!(at(&tests(3_000, &works, twice)), [1, 100, 300], "it was put right in between");
        let six = |second: u64| Seen {
            families: if second < 50 { [Family::V4].into() } else { Family::BOTH.into() },
            ..seen(3)
        };
        assert_eq!(at(&tests(3_000, &works, six)), [1, 50]);
    }

    #[test]
    fn one_pods_word_is_checked_when_there_are_more() {
        let works = decision(Verdict::Works, false);
        let made = tests(3_000, &works, |second| seen(1 + (second / 40) as usize));
        assert_eq!(at(&made), [1, 40, 80], "and three are enough");
    }

    #[test]
    fn what_is_not_good_is_tried_again_less_and_less_often() {
        let made = at(&tests(4_000, &decision(Verdict::Blocked, false), |_| seen(3)));
        assert_eq!(made, [1, 61, 181, 421, 901, 1801, 2701, 3601]);
        let made = at(&tests(2_000, &decision(Verdict::Works, true), |_| seen(3)));
        assert_eq!(made, [1, 901, 1801]);
        assert_eq!(at(&tests(4_000, &decision(Verdict::Works, false), |_| seen(3))), [1, 3601]);
    }
}
