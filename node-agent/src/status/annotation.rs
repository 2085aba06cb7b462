//! The annotation `ambient.istio.io/redirection`: what the pod's object has, as far as is known, and what is to be written.

use sluice_shared::contract::ANNOTATION_REDIRECTION;
use sluice_shared::facts::StringMap;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// How long what the watch shows may be older than what was written here. Within this time only the written value itself
/// counts as news; a watch that lags longer has been cut off, and comes back with a fresh list.
const WATCH_LAG: Duration = Duration::from_secs(30);

/// A value of the annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redirection {
    /// Peers may dial the pod by HBONE.
    Enabled,
    /// The pod is to be captured, and is not.
    Pending,
}

/// What the annotation should say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// This value.
    Say(Redirection),
    /// Nothing: there should be no annotation.
    Absent,
    /// Whatever it says: what the pod should be is not known, or not for long enough.
    #[default]
    AsIs,
}

/// What the pod's object has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// No annotation.
    Absent,
    /// One of its values.
    Says(Redirection),
    /// Another text, which nobody reads.
    Other,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Set the annotation.
    Write(Redirection),
    /// Take it away.
    Remove,
}

/// What is believed of the pod's object: shown by the watch, or written here since.
#[derive(Clone, Copy, Debug, Default)]
pub struct Belief {
    /// `None` before the watch has shown the pod, and while `unanswered`.
    has: Option<Has>,
    /// What was asked for with no answer: it may or may not have been done.
    unanswered: Option<Action>,
    /// When `has` was written, until the watch shows it.
    unconfirmed: Option<Instant>,
    /// When the annotation was taken away that had peers dial the pod by HBONE.
    withdrawn: Option<Instant>,
}

impl Redirection {
    /// The annotation's text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Pending => "pending",
        }
    }
}

impl Has {
    /// What these annotations have.
    #[must_use]
    pub fn of(annotations: &StringMap) -> Self {
        match annotations.get(ANNOTATION_REDIRECTION).map(String::as_str) {
            None => Self::Absent,
            Some("enabled") => Self::Says(Redirection::Enabled),
            Some("pending") => Self::Says(Redirection::Pending),
            Some(_) => Self::Other,
        }
    }
}

impl Action {
    /// What the object has once this is done.
    #[must_use]
    pub const fn leaves(self) -> Has {
        match self {
            Self::Write(value) => Has::Says(value),
            Self::Remove => Has::Absent,
        }
    }
}

impl Belief {
    /// What is to be done, if anything. An object that was never seen is not cleaned of what it probably does not have.
    #[must_use]
    pub fn action(&self, wish: Wish) -> Option<Action> {
        match wish {
            Wish::AsIs => None,
            Wish::Say(value) => (self.has != Some(Has::Says(value))).then_some(Action::Write(value)),
            Wish::Absent => match self.has {
                Some(Has::Absent) => None,
                None if self.unanswered.is_none() => None,
                _ => Some(Action::Remove),
            },
        }
    }

    /// The watch shows the object.
    pub fn shown(&mut self, has: Has, now: Instant) {
        if let Some(asked) = self.unanswered {
            // Anything else may be from before it was done; the next write will tell.
            if has == asked.leaves() {
                self.wrote(asked, now);
            }
            return;
        }
        let lags = self.unconfirmed.is_some_and(|written| now.duration_since(written) < WATCH_LAG);
        if lags && self.has != Some(has) {
            return;
        }
        let withdrawn = self.withdrawn.filter(|_| has == Has::Absent);
        *self = Self { has: Some(has), unanswered: None, unconfirmed: None, withdrawn };
    }

    /// The API server has carried this out.
    pub fn wrote(&mut self, action: Action, now: Instant) {
        let withdrawn = match action {
            Action::Remove if self.peers_may_dial() => Some(now),
            Action::Remove => self.withdrawn,
            Action::Write(_) => None,
        };
        *self = Self { has: Some(action.leaves()), unanswered: None, unconfirmed: Some(now), withdrawn };
    }

    /// The API server was asked for this, and did not say whether it has carried it out.
    pub fn may_have_written(&mut self, action: Action) {
        self.has = None;
        self.unanswered = Some(action);
    }

    /// Whether istiod may be telling peers to dial the pod by HBONE.
    #[must_use]
    pub fn peers_may_dial(&self) -> bool {
        self.unanswered.is_some() || self.has == Some(Has::Says(Redirection::Enabled))
    }

    /// When peers' leave to dial by HBONE was taken away here, if it was, and nothing has been written since.
    #[must_use]
    pub const fn withdrawn(&self) -> Option<Instant> {
        self.withdrawn
    }

    /// What the object has, if that is known.
    #[must_use]
    pub const fn has(&self) -> Option<Has> {
        self.has
    }
}

impl fmt::Display for Redirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Has {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Says(value) => value.fmt(f),
            Self::Other => f.write_str("neither enabled nor pending"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(value) => write!(f, "to be {value}"),
            Self::Remove => f.write_str("to be removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Redirection::{Enabled, Pending};
    use proptest::prelude::*;

    fn believed(has: Option<Has>) -> Belief {
        Belief { has, ..Belief::default() }
    }

    #[test]
    fn only_what_is_not_so_already_is_written() {
        let table = [
            (Wish::AsIs, None, None),
            (Wish::AsIs, Some(Has::Other), None),
            (Wish::Say(Enabled), None, Some(Action::Write(Enabled))),
            (Wish::Say(Enabled), Some(Has::Absent), Some(Action::Write(Enabled))),
            (Wish::Say(Enabled), Some(Has::Says(Enabled)), None),
            (Wish::Say(Enabled), Some(Has::Says(Pending)), Some(Action::Write(Enabled))),
            (Wish::Say(Pending), Some(Has::Says(Enabled)), Some(Action::Write(Pending))),
            (Wish::Say(Pending), Some(Has::Other), Some(Action::Write(Pending))),
            (Wish::Absent, None, None),
            (Wish::Absent, Some(Has::Absent), None),
            (Wish::Absent, Some(Has::Says(Pending)), Some(Action::Remove)),
            (Wish::Absent, Some(Has::Other), Some(Action::Remove)),
        ];
        for (wish, has, action) in table {
            assert_eq!(believed(has).action(wish), action, "{wish:?} of {has:?}");
        }
    }

    #[test]
    fn a_watch_that_lags_behind_a_write_is_not_believed() {
        let now = Instant::now();
        let mut belief = believed(Some(Has::Absent));
        belief.wrote(Action::Write(Enabled), now);
        belief.shown(Has::Absent, now + Duration::from_secs(1));
        assert_eq!(belief.has(), Some(Has::Says(Enabled)), "that was shown before the write");
        belief.shown(Has::Says(Enabled), now + Duration::from_secs(2));
        belief.shown(Has::Absent, now + Duration::from_secs(3));
        assert_eq!(belief.has(), Some(Has::Absent), "somebody took it away after it had been shown");
    }

    #[test]
    fn a_write_that_the_watch_never_shows_is_not_believed_for_ever() {
        let now = Instant::now();
        let mut belief = Belief::default();
        belief.wrote(Action::Write(Enabled), now);
        belief.shown(Has::Absent, now + WATCH_LAG);
        assert_eq!(belief.action(Wish::Say(Enabled)), Some(Action::Write(Enabled)));
    }

    #[test]
    fn peers_are_told_when_enabled_is_taken_away() {
        let now = Instant::now();
        let mut belief = believed(Some(Has::Says(Pending)));
        belief.wrote(Action::Remove, now);
        assert_eq!(belief.withdrawn(), None, "nobody dialled by HBONE");
        belief.wrote(Action::Write(Enabled), now);
        assert!(belief.peers_may_dial());
        belief.wrote(Action::Remove, now);
        assert!(!belief.peers_may_dial());
        assert_eq!(belief.withdrawn(), Some(now));
        belief.wrote(Action::Write(Enabled), now);
        assert_eq!(belief.withdrawn(), None);
    }

    #[test]
    fn an_unanswered_write_is_undone_when_the_pod_leaves() {
        let mut belief = believed(Some(Has::Absent));
        belief.may_have_written(Action::Write(Enabled));
        belief.shown(Has::Absent, Instant::now());
        assert!(belief.peers_may_dial(), "that may be from before the write");
        assert_eq!(belief.action(Wish::Absent), Some(Action::Remove));
        assert_eq!(belief.action(Wish::Say(Enabled)), Some(Action::Write(Enabled)));
    }

    #[test]
    fn the_watch_may_answer_in_the_api_servers_place() {
        let now = Instant::now();
        let mut belief = believed(Some(Has::Absent));
        belief.may_have_written(Action::Write(Enabled));
        belief.shown(Has::Says(Enabled), now);
        assert_eq!(belief.action(Wish::Say(Enabled)), None);
        belief.may_have_written(Action::Remove);
        belief.shown(Has::Absent, now);
        assert_eq!((belief.action(Wish::Absent), belief.withdrawn()), (None, Some(now)));
    }

    fn any_has() -> impl Strategy<Value = Has> {
        prop_oneof![Just(Has::Absent), Just(Has::Other), Just(Has::Says(Enabled)), Just(Has::Says(Pending))]
    }

    fn any_wish() -> impl Strategy<Value = Wish> {
        prop_oneof![Just(Wish::AsIs), Just(Wish::Absent), Just(Wish::Say(Enabled)), Just(Wish::Say(Pending))]
    }

    proptest! {
        #[test]
        fn one_write_is_enough(shown in proptest::option::of(any_has()), wish in any_wish()) {
            let now = Instant::now();
            let mut belief = believed(shown);
            if let Some(action) = belief.action(wish) {
                belief.wrote(action, now);
            }
            prop_assert_eq!(belief.action(wish), None);
        }

        #[test]
        fn a_pod_that_never_had_it_and_never_should_is_never_written(
            shown in proptest::collection::vec(Just(Has::Absent), 0..5),
        ) {
            let now = Instant::now();
            let mut belief = Belief::default();
            for has in shown {
                prop_assert_eq!(belief.action(Wish::Absent), None);
                belief.shown(has, now);
            }
            prop_assert_eq!(belief.action(Wish::Absent), None);
        }
    }
}
