//! How many Events there are: the same thing again is counted in the Event that is there, and a budget for each pod and for
//! the node keeps a fight, or a crash loop, from flooding the cluster.

use super::course::Occasion;
use sluice_shared::ids::PodUid;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long an Event is the same when it happens again; after that it is a new one. Below the hour that API servers keep one.
const SAME_WITHIN: Duration = Duration::from_secs(600);
/// What may be said of one pod in one go, and how often after that.
const POD: Budget = Budget { burst: 6.0, every: Duration::from_secs(30) };
/// What may be said on this node in one go, and how often after that.
const NODE: Budget = Budget { burst: 30.0, every: Duration::from_secs(5) };
/// From how many remembered Events and pods on the old ones are forgotten.
const MANY: usize = 1024;

/// So much at once, and one more after each `every`.
#[derive(Clone, Copy, Debug)]
struct Budget {
    burst: f64,
    every: Duration,
}

/// What is left of a [`Budget`].
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// What is to be done about something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posting {
    /// A new Event, for so many times at once.
    New {
        /// How often it has happened.
        count: i32,
    },
    /// An Event that is there has happened again.
    Again {
        /// The Event's name.
        name: String,
        /// How often it has happened by now, also while nothing was said.
        count: i32,
    },
    /// Nothing is said; it is counted for the next time.
    Withheld,
}

/// What has been said.
#[derive(Debug)]
pub struct Correlator {
    known: HashMap<(PodUid, Occasion), Known>,
    pods: HashMap<PodUid, Bucket>,
    node: Bucket,
}

#[derive(Debug)]
struct Known {
    /// The Event's name, if one was made.
    name: Option<String>,
    count: i32,
    last: Instant,
}

impl Correlator {
    /// One that knows of nothing.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { known: HashMap::new(), pods: HashMap::new(), node: Bucket { left: NODE.burst, at: now } }
    }

    /// Something has happened to a pod.
    pub fn take(&mut self, uid: &PodUid, occasion: Occasion, now: Instant) -> Posting {
        if self.known.len() + self.pods.len() > MANY {
            self.forget_old(now);
        }
        let known =
            self.known.entry((uid.clone(), occasion)).or_insert(Known { name: None, count: 0, last: now });
        if now.duration_since(known.last) > SAME_WITHIN {
            (known.name, known.count) = (None, 0);
        }
        known.count = known.count.saturating_add(1);
        known.last = now;
        let pod = self.pods.entry(uid.clone()).or_insert(Bucket { left: POD.burst, at: now });
        // The pod's own budget first: a pod that has used it up must not use up the node's.
        if !pod.draw(POD, now) || !self.node.draw(NODE, now) {
            return Posting::Withheld;
        }
        match &known.name {
            Some(name) => Posting::Again { name: name.clone(), count: known.count },
            None => Posting::New { count: known.count },
        }
    }

    /// An Event of this name was made.
    pub fn made(&mut self, uid: &PodUid, occasion: Occasion, name: &str) {
        if let Some(known) = self.known.get_mut(&(uid.clone(), occasion)) {
            known.name = Some(name.to_owned());
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.known.retain(|_, known| now.duration_since(known.last) <= SAME_WITHIN);
        self.pods.retain(|_, bucket| bucket.at + POD.every.mul_f64(POD.burst) > now);
    }
}

impl Bucket {
    fn draw(&mut self, budget: Budget, now: Instant) -> bool {
        let gained = now.duration_since(self.at).as_secs_f64() / budget.every.as_secs_f64();
        self.left = (self.left + gained).min(budget.burst);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: usize) -> PodUid {
        PodUid::new(format!("u{n}")).unwrap()
    }

    #[test]
    fn the_same_again_is_counted_in_one_event() {
        let now = Instant::now();
        let mut events = Correlator::new(now);
        assert_eq!(events.take(&uid(1), Occasion::Repaired, now), Posting::New { count: 1 });
        events.made(&uid(1), Occasion::Repaired, "a.1");
        let again = Posting::Again { name: "a.1".into(), count: 2 };
        assert_eq!(events.take(&uid(1), Occasion::Repaired, now), again);
        assert_eq!(events.take(&uid(1), Occasion::Captured, now), Posting::New { count: 1 });
        let later = now + SAME_WITHIN + Duration::from_secs(1);
        assert_eq!(events.take(&uid(1), Occasion::Repaired, later), Posting::New { count: 1 });
    }

    #[test]
    fn a_fight_in_one_pod_is_told_by_a_handful_and_counted_in_full() {
        let mut now = Instant::now();
        let mut events = Correlator::new(now);
        let mut told = Vec::new();
        for _ in 0..300 {
            match events.take(&uid(1), Occasion::Repaired, now) {
                Posting::New { count } => {
                    events.made(&uid(1), Occasion::Repaired, "a.1");
                    told.push(count);
                }
                Posting::Again { count, .. } => told.push(count),
                Posting::Withheld => {}
            }
            now += Duration::from_millis(200);
        }
        // A minute: the burst, and one each 30 s.
        assert_eq!(told, [1, 2, 3, 4, 5, 6, 151]);
        assert_eq!(
            events.take(&uid(2), Occasion::Repaired, now),
            Posting::New { count: 1 },
            "others are heard"
        );
    }

    #[test]
    fn a_node_full_of_pods_says_no_more_than_its_budget() {
        let now = Instant::now();
        let mut events = Correlator::new(now);
        let said = |events: &mut Correlator, now| {
            (0..500)
                .filter(|n| events.take(&uid(*n), Occasion::CaptureLost, now) != Posting::Withheld)
                .count()
        };
        assert_eq!(said(&mut events, now), 30);
        assert_eq!(said(&mut events, now + Duration::from_secs(50)), 10);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut now = Instant::now();
        let mut events = Correlator::new(now);
        for n in 0..5_000 {
            events.take(&uid(n), Occasion::Captured, now);
            now += Duration::from_secs(10);
        }
        assert!(events.known.len() + events.pods.len() <= MANY + 2, "{}", events.known.len());
    }
}
