//! Which way the kubelet's probes go on a node, by what was tried: the agent's own connections to its own listeners in some
//! of the node's pods. Pure: what was tried comes in, what is to be done goes out.
//!
//! Who may change a pod's namespace may break what is tried there. So several pods are asked, of different namespaces where
//! there are some, and a way falls only when more namespaces say no than yes.

use crate::ids::PodUid;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// How many pods are asked at once.
pub const WITNESSES: usize = 3;

/// A way for probes that can be tried, from the one that lets least through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// By a secret in the opening SYN.
    Cookie,
    /// By a source that the host's table gives.
    Snat,
    /// By the node's own addresses.
    Source,
}

/// What one pod has shown of a way, in all families of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The connection reached the agent's listener directly, and its bytes came there and back.
    Passed,
    /// It did not: what became of it.
    Blocked(String),
    /// Nothing follows from it: why not.
    Unsound(String),
}

/// What all pods together have shown of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Probes pass by it.
    Works {
        /// In so many pods,
        pods: usize,
        /// of so many that were asked and could tell.
        of: usize,
        /// What one said that it does not pass in.
        but: Option<String>,
    },
    /// They do not.
    Blocked {
        /// In so many pods,
        pods: usize,
        /// of so many that were asked and could tell.
        of: usize,
        /// What one of them has shown.
        why: String,
    },
    /// The node does not have what it takes.
    Unavailable(String),
    /// No pod could tell.
    Unjudged(String),
}

/// What a test has shown of the way that is in use after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing has been shown.
    #[default]
    Untested,
    /// Probes pass.
    Works,
    /// They do not, and by no other way either that may be taken.
    Blocked,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The way to take; `None` to stay with what is in use.
    pub take: Option<Way>,
    /// What was shown of it.
    pub verdict: Verdict,
    /// Whether a way that lets less through could be had, and did not work: worth another try some time.
    pub second_best: bool,
    /// All that was found, in one line.
    pub because: String,
}

/// Puts together what pods, each given with its namespace, have shown of a way. Each namespace has one vote, and as many
/// yeses as noes are a yes, in a namespace and among them: one pod that was tampered with, or one tenant, does not bring the
/// node down to a way that lets more through.
#[must_use]
pub fn finding(shown: &[(String, Attempt)]) -> Finding {
    let mut votes = BTreeMap::<&str, isize>::new();
    let (mut pods, mut noes, mut unsound) = (0, Vec::new(), None);
    for (namespace, attempt) in shown {
        let vote = match attempt {
            Attempt::Passed => 1,
            Attempt::Blocked(_) => -1,
            Attempt::Unsound(why) => {
                unsound.get_or_insert(why);
                continue;
            }
        };
        *votes.entry(namespace).or_default() += vote;
        match attempt {
            Attempt::Blocked(why) => noes.push(why),
            _ => pods += 1,
        }
    }
    let of = pods + noes.len();
    let against = votes.values().filter(|vote| **vote < 0).count();
    match noes.first() {
        _ if of == 0 => Finding::Unjudged(unsound.cloned().unwrap_or_else(|| "no pod was asked".into())),
        Some(why) if 2 * against > votes.len() => {
            Finding::Blocked { pods: noes.len(), of, why: (*why).clone() }
        }
        but => Finding::Works { pods, of, but: but.map(|why| (*why).clone()) },
    }
}

/// Whether ways after these need to be tried.
#[must_use]
pub fn is_settled(findings: &[(Way, Finding)]) -> bool {
    findings.iter().any(|(_, finding)| matches!(finding, Finding::Works { .. }))
}

/// Takes the first way that works. What could not be judged is no reason to leave a way for one that lets more through.
#[must_use]
pub fn decide(now: Option<Way>, findings: &[(Way, Finding)]) -> Decision {
    let because = findings.iter().map(|(way, finding)| format!("{way} {finding}")).collect::<Vec<_>>();
    let because = if because.is_empty() { "nothing was tried".into() } else { because.join("; ") };
    let works = findings.iter().position(|(_, finding)| matches!(finding, Finding::Works { .. }));
    let before = &findings[..works.unwrap_or(findings.len())];
    let unjudged =
        |(way, finding): &(Way, Finding)| now == Some(*way) && matches!(finding, Finding::Unjudged(_));
    // What was in use, and is not to be had at this moment, may be soon.
    let missed =
        |(way, finding): &(Way, Finding)| now == Some(*way) || !matches!(finding, Finding::Unavailable(_));
    let second_best = before.iter().any(missed);
    let (take, verdict) = match works {
        Some(_) if before.iter().any(unjudged) => (None, Verdict::Untested),
        Some(found) => {
            let way = findings[found].0;
            (Some(way).filter(|way| now != Some(*way)), Verdict::Works)
        }
        // Of another way that fell, with the one in use not judged, nothing follows for the probes there are.
        None if findings.iter().any(|(way, finding)| {
            now == Some(*way) && matches!(finding, Finding::Blocked { .. } | Finding::Unavailable(_))
        }) =>
        {
            (None, Verdict::Blocked)
        }
        None => (None, Verdict::Untested),
    };
    Decision { take, verdict, second_best, because }
}

/// Some of these pods, given with their namespaces: of as many namespaces as there are, and other ones in each round.
#[must_use]
pub fn witnesses(pods: &[(PodUid, String)], round: usize) -> Vec<PodUid> {
    let mut namespaces: BTreeMap<&str, VecDeque<&PodUid>> = BTreeMap::new();
    for (uid, namespace) in pods {
        namespaces.entry(namespace).or_default().push_back(uid);
    }
    let mut queues: Vec<VecDeque<&PodUid>> = namespaces.into_values().collect();
    let namespaces = queues.len().max(1);
    // Each namespace comes first in its turn, and whoever is left out in one turn comes in another.
    let (turn, first) = (round / namespaces, round % namespaces);
    for queue in &mut queues {
        let by = (turn + first) % queue.len();
        queue.rotate_left(by);
    }
    queues.rotate_left(first);
    let mut chosen = Vec::new();
    while chosen.len() < WITNESSES && queues.iter().any(|queue| !queue.is_empty()) {
        let room = WITNESSES - chosen.len();
        chosen.extend(queues.iter_mut().filter_map(VecDeque::pop_front).take(room).cloned());
    }
    chosen
}

impl Way {
    /// Every way, in the order in which `auto` tries them.
    pub const ALL: [Self; 3] = [Self::Cookie, Self::Snat, Self::Source];

    /// As in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cookie => "cookie",
            Self::Snat => "snat",
            Self::Source => "source",
        }
    }

    /// The way of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == name)
    }
}

impl Verdict {
    /// As in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Works => "works",
            Self::Blocked => "blocked",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works { pods, of, but } => {
                write!(f, "passes in {pods} of {of} pods asked")?;
                but.iter().try_for_each(|but| write!(f, " (not in {but})"))
            }
            Self::Blocked { pods, of, why } => {
                write!(f, "does not pass in {pods} of {of} pods asked ({why})")
            }
            Self::Unavailable(why) => write!(f, "is not to be had: {why}"),
            Self::Unjudged(why) => write!(f, "could not be judged: {why}"),
        }
    }
}
