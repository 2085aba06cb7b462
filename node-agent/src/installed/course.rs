//! What is worth an Event of how the installation stands. One bad moment is none: the primary CNI that is being
//! upgraded, the runtime that restarts.

use crate::status::course::{Occasion, Said};
use sluice_shared::install::{Installation, State};
use std::time::Duration;
use tokio::time::Instant;

/// How long a directory that cannot be written must stay so.
const BLOCKED: Duration = Duration::from_secs(10);
/// How long something may be waited for: a primary CNI needs its time to come.
const WAITING: Duration = Duration::from_secs(60);
/// How long our entry must stand until a trouble counts as over.
const STEADY: Duration = Duration::from_secs(5);
/// After how long a trouble that lasts is said again: API servers forget an Event after an hour.
const AGAIN: Duration = Duration::from_secs(600);

/// How the installation has stood over time.
#[derive(Debug, Default)]
pub struct Course {
    /// The state, and since when.
    state: Option<(State, Instant)>,
    /// The trouble that was said last and is not over, and when.
    said: Option<(Occasion, Instant)>,
}

impl Course {
    /// It stands so now. Says what is worth saying.
    pub fn stands(&mut self, installation: Option<&Installation>, now: Instant) -> Option<Said> {
        let Some(installation) = installation else {
            *self = Self::default();
            return None;
        };
        let state = installation.state;
        let since = match self.state {
            Some((before, since)) if before == state => since,
            _ => now,
        };
        self.state = Some((state, since));
        let (occasion, after, what) = match state {
            State::Fighting => (Occasion::ChainFought, Duration::ZERO, fight(installation)),
            State::Blocked => (Occasion::NotChained, BLOCKED, installation.message.clone()),
            State::Waiting => (Occasion::NotChained, WAITING, installation.message.clone()),
            State::Chained => (Occasion::Chained, STEADY, installation.message.clone()),
            // Somebody wants it so.
            State::Removed => {
                self.said = None;
                return None;
            }
        };
        if now.duration_since(since) < after {
            return None;
        }
        if occasion == Occasion::Chained {
            // That all is well is news only after a trouble.
            return self.said.take().map(|_| (occasion, what));
        }
        let known = self.said.is_some_and(|(said, at)| said == occasion && now.duration_since(at) < AGAIN);
        if known {
            return None;
        }
        self.said = Some((occasion, now));
        Some((occasion, what))
    }
}

fn fight(installation: &Installation) -> String {
    match &installation.fight {
        Some(fight) => format!(
            "{} was written over {} times in {} s, each time without our entry, which is put back at most once a \
             second; by {}",
            fight.file, fight.times, fight.seconds, fight.suspect
        ),
        None => installation.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::installed::look::tests::installation;
    use sluice_shared::install::Fought;

    /// What is said when it stands so at each of these seconds.
    fn said(course: &[(u64, Option<State>)]) -> Vec<(u64, Occasion)> {
        let (began, mut it) = (Instant::now(), Course::default());
        let mut all = Vec::new();
        for (second, state) in course {
            let installation = state.map(installation);
            let now = began + Duration::from_secs(*second);
            all.extend(it.stands(installation.as_ref(), now).map(|(occasion, _)| (*second, occasion)));
        }
        all
    }

    #[test]
    fn a_trouble_that_lasts_is_said_once_and_so_is_its_end() {
        use State::{Blocked, Chained, Fighting, Removed, Waiting};
        let all = |state, seconds: std::ops::Range<u64>| seconds.map(move |second| (second, Some(state)));
        let course: Vec<_> = all(Waiting, 0..59).chain(all(Chained, 59..200)).collect();
        assert_eq!(said(&course), [], "a primary CNI came late, within its time");
        let course: Vec<_> = all(Waiting, 0..100).chain(all(Chained, 100..200)).collect();
        assert_eq!(said(&course), [(60, Occasion::NotChained), (105, Occasion::Chained)]);
        let course: Vec<_> = all(Chained, 0..10).chain(all(Blocked, 10..30)).collect();
        assert_eq!(said(&course), [(20, Occasion::NotChained)]);
        let course: Vec<_> = all(Fighting, 0..700).chain(all(Removed, 700..800)).collect();
        assert_eq!(said(&course), [(0, Occasion::ChainFought), (600, Occasion::ChainFought)]);
        let course: Vec<_> =
            all(Fighting, 0..3).chain(all(Chained, 3..7)).chain(all(Fighting, 7..9)).collect();
        assert_eq!(said(&course), [(0, Occasion::ChainFought)], "four quiet seconds end no fight");
        assert_eq!(said(&[(0, Some(Fighting)), (1, None), (2, Some(Chained)), (20, Some(Chained))]).len(), 1);
    }

    #[test]
    fn the_fight_is_named() {
        let (file, suspect) = ("10-calico.conflist".to_owned(), "calico-node".to_owned());
        let fight = Some(Fought { file, times: 12, seconds: 40, suspect });
        let installation = Installation { fight, ..installation(State::Fighting) };
        let (_, what) = Course::default().stands(Some(&installation), Instant::now()).unwrap();
        for part in ["10-calico.conflist", "12 times in 40 s", "by calico-node"] {
            assert!(what.contains(part), "{what}");
        }
    }
}
