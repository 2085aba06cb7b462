//! When to write: after the others have finished, at most once a second, and less and less often against a program that
//! answers each of our writes with one of its own.
//!
//! A program that writes of its own accord, however often, is not answered less often for it: what counts as a fight
//! is a directory that goes back to what it was right after our write, and then rests until the next one.

use std::collections::VecDeque;
use std::time::Duration;

/// How long the directory must rest before we write.
const REST: Duration = Duration::from_millis(40);
/// The longest that a directory that never rests is waited for.
const NO_REST: Duration = Duration::from_millis(250);
/// The least time between two of our writes.
const BETWEEN: Duration = Duration::from_secs(1);
/// How long a change is left alone that came in between our look and our write.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// A change that comes within this time of our write may be the answer to it.
const ANSWER: Duration = Duration::from_millis(500);
/// So many answers in a row are taken for chance.
const CHANCE: u32 = 3;
/// The longest time between two of our writes.
const LONGEST: Duration = Duration::from_secs(30);
/// Writes of ours that were undone, within [`WINDOW`], that make a fight.
const MANY: usize = 5;
/// How long an undone write is remembered.
const WINDOW: Duration = Duration::from_secs(60);

/// The pace of one directory. All times are counted from one arbitrary moment.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    wrote: Option<Duration>,
    /// The first and the last change by others since we last looked satisfied.
    changed: Option<(Duration, Duration)>,
    /// Until when somebody who came in between is left alone.
    left_alone: Duration,
    answered: u32,
    undone: VecDeque<Duration>,
}

/// Somebody undoes what we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fight {
    /// How often in the last minute.
    pub times: usize,
    /// How long the first of those is past.
    pub since: Duration,
    /// How long we wait between two writes.
    pub between: Duration,
}

impl Pace {
    /// The directory is not as we last saw it, and we did not change it.
    pub fn changed(&mut self, now: Duration) {
        let first = self.changed.map_or(now, |(first, _)| first);
        self.changed = Some((first, now));
    }

    /// There is nothing to write.
    pub fn satisfied(&mut self) {
        self.changed = None;
    }

    /// Our last write is gone.
    pub fn undone(&mut self, now: Duration) {
        self.undone.push_back(now);
        if self.undone.len() > 1000 {
            self.undone.pop_front();
        }
    }

    /// Somebody else wrote between our look and our write, of which nothing is left.
    pub fn overtaken(&mut self, now: Duration) {
        self.left_alone = now + OVERTAKEN;
        self.changed(now);
    }

    /// When we may write, at the earliest. `again` is whether it is what we wrote last: somebody has undone it.
    #[must_use]
    pub fn earliest(&self, again: bool) -> Duration {
        let rested = self.changed.map_or(Duration::ZERO, |(first, last)| (last + REST).min(first + NO_REST));
        let between = if again { self.between() } else { BETWEEN };
        let paced = self.wrote.map_or(Duration::ZERO, |wrote| wrote + between);
        rested.max(paced).max(self.left_alone)
    }

    /// We wrote, or failed to. `again` is as in [`Pace::earliest`].
    pub fn wrote(&mut self, now: Duration, again: bool) {
        self.answered = if again && self.was_answered() { self.answered.saturating_add(1) } else { 0 };
        self.wrote = Some(now);
        self.changed = None;
    }

    /// The fight that is on, if one is.
    #[must_use]
    pub fn fight(&mut self, now: Duration) -> Option<Fight> {
        while self.undone.front().is_some_and(|first| *first + WINDOW < now) {
            self.undone.pop_front();
        }
        let first = *self.undone.front()?;
        (self.answered >= CHANCE || self.undone.len() >= MANY).then(|| Fight {
            times: self.undone.len(),
            since: now.saturating_sub(first),
            between: self.between(),
        })
    }

    fn between(&self) -> Duration {
        if !self.was_answered() || self.answered < CHANCE {
            return BETWEEN;
        }
        let doublings = (self.answered - CHANCE + 1).min(8);
        (BETWEEN * 2_u32.pow(doublings)).min(LONGEST)
    }

    /// Whether the last change came right after our write, and nothing since.
    fn was_answered(&self) -> bool {
        match (self.wrote, self.changed) {
            (Some(wrote), Some((_, last))) => last <= wrote + ANSWER,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_first_write_waits_for_rest_only() {
        let mut pace = Pace::default();
        assert_eq!(pace.earliest(false), ms(0));
        pace.changed(ms(100));
        assert_eq!(pace.earliest(false), ms(140));
        (0..20).for_each(|n| pace.changed(ms(100 + 20 * n)));
        assert_eq!(pace.earliest(false), ms(350), "a directory that never rests is not waited for");
    }

    /// Runs an opponent for `seconds` in steps of 10 ms; gives the times of our writes. The opponent is told when we
    /// wrote last and says whether it writes now.
    fn play(seconds: u64, opponent: impl Fn(u64, Option<u64>) -> bool) -> (Pace, Vec<u64>) {
        let (mut pace, mut writes, mut ours) = (Pace::default(), Vec::new(), false);
        for now in (0..seconds * 1000).step_by(10) {
            if opponent(now, writes.last().copied()) {
                if ours {
                    pace.undone(ms(now));
                }
                ours = false;
                pace.changed(ms(now));
            }
            if !ours && pace.earliest(true) <= ms(now) {
                pace.wrote(ms(now), true);
                writes.push(now);
                ours = true;
            }
        }
        (pace, writes)
    }

    #[test]
    fn who_answers_each_write_is_answered_less_and_less() {
        let (mut pace, writes) = play(120, |now, wrote| wrote.is_none_or(|wrote| now == wrote + 20));
        let gaps: Vec<_> = writes.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect();
        assert_eq!(gaps[..9], [1, 1, 1, 2, 4, 8, 16, 30, 30], "{writes:?}");
        let fight = pace.fight(ms(120_000)).expect("it is a fight");
        assert_eq!(fight.between, ms(30_000));
    }

    #[test]
    fn who_writes_all_the_time_is_overwritten_within_a_second_of_the_last() {
        let (mut pace, writes) = play(20, |now, _| now < 15_000 && now % 20 == 0);
        assert!(writes.windows(2).all(|pair| pair[1] - pair[0] >= 1000), "{writes:?}");
        let last = *writes.last().unwrap();
        assert!((14_980..15_980).contains(&last), "{writes:?}");
        assert!(pace.fight(ms(20_000)).is_some_and(|fight| fight.times >= 10));
        assert!(pace.fight(ms(200_000)).is_none(), "it is over");
    }

    #[test]
    fn who_writes_something_new_each_time_is_no_opponent() {
        let mut pace = Pace::default();
        for second in (0..20).map(|second| 1000 * second) {
            assert!(pace.earliest(false) <= ms(second));
            pace.wrote(ms(second), false);
            pace.changed(ms(second + 20));
        }
    }

    #[test]
    fn who_came_in_between_is_left_alone_for_a_moment() {
        let mut pace = Pace::default();
        pace.changed(ms(0));
        pace.overtaken(ms(500));
        assert_eq!(pace.earliest(false), ms(700));
    }

    #[test]
    fn a_change_out_of_turn_ends_the_waiting() {
        let (_, writes) = play(60, |now, wrote| {
            wrote.is_none_or(|wrote| now == wrote + 20 && now < 12_000) || now == 40_000
        });
        let after = writes.iter().find(|write| **write >= 40_000).unwrap();
        assert!(*after < 41_000, "{writes:?}");
    }
}
