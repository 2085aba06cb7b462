//! When to write: after the others have finished, and at most once a second.
//!
//! A program that answers each of our writes with one of its own is answered just as often: whoever of the two stops
//! first, our entry is there within a second of the last word, and no pod started outside the mesh for longer. To wait
//! longer and longer would end no fight; its name in an Event, a metric and the log may.

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
    undone: VecDeque<Duration>,
}

/// Somebody undoes what we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fight {
    /// How often in the last minute.
    pub times: usize,
    /// How long the first of those is past.
    pub since: Duration,
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

    /// When we may write, at the earliest.
    #[must_use]
    pub fn earliest(&self) -> Duration {
        let rested = self.changed.map_or(Duration::ZERO, |(first, last)| (last + REST).min(first + NO_REST));
        let paced = self.wrote.map_or(Duration::ZERO, |wrote| wrote + BETWEEN);
        rested.max(paced).max(self.left_alone)
    }

    /// We wrote, or failed to.
    pub fn wrote(&mut self, now: Duration) {
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
        (self.undone.len() >= MANY)
            .then(|| Fight { times: self.undone.len(), since: now.saturating_sub(first) })
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
        assert_eq!(pace.earliest(), ms(0));
        pace.changed(ms(100));
        assert_eq!(pace.earliest(), ms(140));
        (0..20).for_each(|n| pace.changed(ms(100 + 20 * n)));
        assert_eq!(pace.earliest(), ms(350), "a directory that never rests is not waited for");
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
            if !ours && pace.earliest() <= ms(now) {
                pace.wrote(ms(now));
                writes.push(now);
                ours = true;
            }
        }
        (pace, writes)
    }

    #[test]
    fn who_answers_each_write_is_answered_once_a_second_and_within_one_of_his_last_word() {
        for delay in [10, 20, 300, 700, 990] {
            let answers =
                |now, wrote: Option<u64>| now < 120_000 && wrote.is_none_or(|wrote| now == wrote + delay);
            let (mut pace, writes) = play(125, answers);
            assert!(writes.windows(2).all(|pair| pair[1] - pair[0] >= 1000), "{writes:?}");
            let answered = writes.windows(2).map(|pair| pair[1] - (pair[0] + delay));
            assert!(answered.max().unwrap() < 1000, "{writes:?}");
            let fight = pace.fight(ms(120_000)).expect("it is a fight");
            assert!((40..=61).contains(&fight.times), "{fight:?}");
            assert!(pace.fight(ms(190_000)).is_none(), "it is over");
        }
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
    fn who_came_in_between_is_left_alone_for_a_moment() {
        let mut pace = Pace::default();
        pace.changed(ms(0));
        pace.overtaken(ms(500));
        assert_eq!(pace.earliest(), ms(700));
    }
}
