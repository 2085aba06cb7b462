//! How a pod has stood over time, and so what its annotation should say and what is worth an Event.
//!
//! `sluicectl` and the metrics show every moment. The annotation and Events are for the whole cluster and for hours, so
//! they are told of what lasts: see docs/decisions/0008-annotation-outlasts-a-gap.md.

use super::annotation::{Has, Redirection, Wish};
use sluice_shared::admin::{PodStatus, State};
use sluice_shared::enroll::Reason;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pod may wait to be captured for the first time before that is said. ADD is mostly done in milliseconds;
/// an agent that comes to a node full of pods, and ztunnel with it, takes seconds, and a patch more for each of them would
/// come when the API server has all nodes' to answer.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long a captured pod may be without ztunnel's word before that is said: longer than the 15 s after which ztunnel
/// at the latest comes back to an agent that was away. Its rules hold what would slip past meanwhile.
const ZTUNNEL_AWAY: Duration = Duration::from_secs(20);
/// How long a pod's rules may be not the planned ones before that is said; they are put right within 2 s.
const DRIFTED: Duration = Duration::from_secs(5);
/// How long a pod must stand captured until a trouble counts as over: who takes rules away in a loop is not rewarded with
/// an annotation that says `enabled` between two rounds.
const STEADY: Duration = Duration::from_secs(1);

/// What a pod's state means to those who read the annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It cannot be judged yet.
    Unknown,
    /// By rule outside the mesh.
    Outside {
        /// Whether its containers have ended.
        ended: bool,
    },
    /// In the mesh, and not served by ztunnel as far as is known.
    Waiting,
    /// In the mesh, and its rules are not the planned ones.
    Drifted,
    /// In the mesh, and captured.
    Captured,
    /// On its way out.
    Leaving,
}

/// Something worth an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Occasion {
    /// A pod that was known to be outside, or that was said to wait, is captured.
    Captured,
    /// A pod that was captured, and lives on, is not any more, since it is not to be.
    Released,
    /// A pod that is to be captured is not, and waits for longer than it should.
    CapturePending,
    /// A pod that was captured is not, for longer than it should take to be put right.
    CaptureLost,
    /// What was found changed in the pod was put right.
    Repaired,
    /// An annotation of the pod cannot be read, and is treated as absent.
    InvalidAnnotation,
    /// Of the agent's own pod, for its node: another program takes the plugin out of the chain again and again.
    ChainFought,
    /// The same: the plugin is not in the chain.
    NotChained,
    /// The same: it is, after one of these.
    Chained,
    /// The same: which way the kubelet's probes go, by the self-test, when that is news.
    ProbesTried,
    /// The same: by no way that may be taken do they pass.
    ProbesBlocked,
}

/// A pod's way in, through trouble, and out.
#[derive(Debug, Default)]
pub struct Course {
    stand: Option<Stand>,
    wish: Wish,
    /// Whether it has been captured since it was last outside, by this agent or, by its annotation, by another.
    was_captured: bool,
    /// Since when it has not stood captured, but for moments.
    trouble: Option<Instant>,
    /// Since when, within a trouble, it stands captured.
    calm: Option<Instant>,
    /// Whether its being captured is news: it was known to be outside, or was said to wait.
    news: bool,
    /// What was last said to be wrong.
    wrong: String,
    repairs: u64,
    warnings: Vec<String>,
}

/// An [`Occasion`], and what there is to say about it.
pub type Said = (Occasion, String);

impl Stand {
    /// What a pod's status means.
    #[must_use]
    pub fn of(status: &PodStatus) -> Self {
        let has_begun = status.netns.is_some() || !status.ips.is_empty();
        match (status.state, &status.because, status.outside) {
            (State::Enabled, ..) => Self::Captured,
            // It waits for its volumes, say: there is nothing to capture yet, and nothing of it on the wire.
            (State::Pending, Some(_), _) if !has_begun => Self::Unknown,
            (State::Draining, ..) => Self::Leaving,
            (State::Pending, Some(_), _) => Self::Waiting,
            (State::Drifted, Some(_), _) => Self::Drifted,
            // Its rules are put right so that it can leave.
            (State::Drifted, None, _) => Self::Leaving,
            (State::Outside, _, Some(reason)) if reason != Reason::Unknown => {
                Self::Outside { ended: reason == Reason::Terminal }
            }
            (State::Pending | State::Outside, ..) => Self::Unknown,
        }
    }
}

impl Course {
    /// What the annotation should say.
    #[must_use]
    pub const fn wish(&self) -> Wish {
        self.wish
    }

    /// The pod stands so now, and its object has `has`. Says what is worth saying.
    pub fn stands(&mut self, status: &PodStatus, has: Option<Has>, now: Instant) -> Vec<Said> {
        let stand = Stand::of(status);
        let mut said = self.remarks(status, stand);
        match stand {
            Stand::Unknown => {}
            Stand::Outside { ended } => {
                if self.was_captured && !ended {
                    said.push((Occasion::Released, status.reason.clone()));
                }
                *self = Self { wish: Wish::Absent, news: true, repairs: self.repairs, ..Self::default() };
            }
            Stand::Leaving => {
                self.was_captured = true;
                self.wish = Wish::Absent;
                (self.trouble, self.calm, self.news) = (None, None, true);
            }
            Stand::Waiting | Stand::Drifted => {
                self.was_captured |= has == Some(Has::Says(Redirection::Enabled));
                self.trouble.get_or_insert(now);
                self.calm = None;
                // Not yet `pending`; but what it was told on its way out no longer holds.
                if self.wish == Wish::Absent {
                    self.wish = Wish::AsIs;
                }
            }
            Stand::Captured if self.trouble.is_some() && self.was_captured => {
                self.calm.get_or_insert(now);
            }
            Stand::Captured => self.trouble = None,
        }
        self.stand = Some(stand);
        if stand == Stand::Captured {
            self.was_captured = true;
        } else if stand != Stand::Unknown {
            self.wrong.clone_from(&status.reason);
        }
        said.extend(self.pass(now));
        said
    }

    /// Time has passed: what lasts long enough is said.
    pub fn pass(&mut self, now: Instant) -> Option<Said> {
        if self.due().is_some_and(|due| due > now) {
            return None;
        }
        match self.stand? {
            Stand::Captured => {
                (self.trouble, self.calm) = (None, None);
                self.wish = Wish::Say(Redirection::Enabled);
                let news = std::mem::take(&mut self.news);
                news.then(|| (Occasion::Captured, "new connections go through ztunnel".to_owned()))
            }
            Stand::Waiting | Stand::Drifted if self.wish != Wish::Say(Redirection::Pending) => {
                self.wish = Wish::Say(Redirection::Pending);
                self.news = true;
                let lost = if self.was_captured { Occasion::CaptureLost } else { Occasion::CapturePending };
                Some((lost, self.wrong.clone()))
            }
            _ => None,
        }
    }

    /// When [`Self::pass`] has something to do, if it has.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match (self.stand?, self.trouble, self.calm) {
            (Stand::Captured, Some(_), Some(calm)) => Some(calm + STEADY),
            (_, _, _) if self.wish == Wish::Say(Redirection::Pending) => None,
            (Stand::Drifted, Some(since), _) if self.was_captured => Some(since + DRIFTED),
            (Stand::Waiting, Some(since), _) if self.was_captured => Some(since + ZTUNNEL_AWAY),
            (Stand::Waiting | Stand::Drifted, Some(since), _) => Some(since + FIRST_WAIT),
            _ => None,
        }
    }

    /// What is worth saying whatever the pod's way.
    fn remarks(&mut self, status: &PodStatus, stand: Stand) -> Vec<Said> {
        let mut said = Vec::new();
        if status.drift_repairs > self.repairs {
            self.repairs = status.drift_repairs;
            let wrong =
                self.wrong.split(';').next().filter(|wrong| !wrong.is_empty() && stand != Stand::Leaving);
            let what = wrong.unwrap_or("something of ours in the pod was changed");
            said.push((Occasion::Repaired, format!("{what}; put right")));
        }
        let wanted = matches!(stand, Stand::Waiting | Stand::Drifted | Stand::Captured);
        if wanted && status.overrides.warnings != self.warnings {
            self.warnings.clone_from(&status.overrides.warnings);
            said.extend(self.warnings.iter().map(|warning| (Occasion::InvalidAnnotation, warning.clone())));
        }
        said
    }
}

impl Occasion {
    /// Every occasion.
    pub const ALL: [Self; 11] = [
        Self::Captured,
        Self::Released,
        Self::CapturePending,
        Self::CaptureLost,
        Self::Repaired,
        Self::InvalidAnnotation,
        Self::ChainFought,
        Self::NotChained,
        Self::Chained,
        Self::ProbesTried,
        Self::ProbesBlocked,
    ];

    /// The Event's `reason`: what scripts and alerts go by, so it never changes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Captured => "Captured",
            Self::Released => "Released",
            Self::CapturePending => "CapturePending",
            Self::CaptureLost => "CaptureLost",
            Self::Repaired => "Repaired",
            Self::InvalidAnnotation => "InvalidAnnotation",
            Self::ChainFought => "ChainFought",
            Self::NotChained => "NotChained",
            Self::Chained => "Chained",
            Self::ProbesTried => "ProbesTried",
            Self::ProbesBlocked => "ProbesBlocked",
        }
    }

    /// Whether somebody should look.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::Captured | Self::Released | Self::Chained | Self::ProbesTried)
    }

    /// Whether it is about the node, rather than about the pod that the Event is on.
    #[must_use]
    pub const fn is_of_the_node(self) -> bool {
        matches!(
            self,
            Self::ChainFought | Self::NotChained | Self::Chained | Self::ProbesTried | Self::ProbesBlocked
        )
    }
}

#[cfg(test)]
mod tests;
