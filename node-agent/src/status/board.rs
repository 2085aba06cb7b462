//! What is to be written for each pod: only the newest, one request a pod at a time.

use super::FIRST_WAIT;
use super::annotation::{Action, Belief, Has};
use super::course::{Course, Said};
use super::outcome::Outcome;
use crate::backoff::Backoff;
use sluice_shared::admin::PodStatus;
use sluice_shared::ids::{PodRef, PodUid};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How many writes are under way at once, while the API server is well.
pub const AT_ONCE: usize = 8;
/// The longest wait while the API server is not.
const SERVER_LONGEST: Duration = Duration::from_secs(5);
/// The longest wait for a pod whose write was refused: somebody has to change a rule first.
const REFUSED_LONGEST: Duration = Duration::from_secs(60);

/// Every pod's post.
#[derive(Debug)]
pub struct Board {
    posts: HashMap<PodUid, Post>,
    /// The API server's health. While it is not well, one write at a time finds out whether it is again.
    server: Backoff,
}

#[derive(Debug)]
struct Post {
    pod: PodRef,
    course: Course,
    belief: Belief,
    /// What is being written.
    writing: Option<Action>,
    /// Whether the watch has shown the pod since that write began: it is not gone then, whatever the answer.
    shown_since: bool,
    backoff: Backoff,
    /// Why the last write failed.
    trouble: Option<String>,
    /// Whether the API server has no pod of this uid, as far as is known: nothing can be written until the watch shows it.
    gone: bool,
}

/// A write to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// For which pod.
    pub uid: PodUid,
    /// Its name.
    pub pod: PodRef,
    /// What.
    pub action: Action,
}

/// Something to be said in an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Of which pod.
    pub uid: PodUid,
    /// Its name.
    pub pod: PodRef,
    /// What.
    pub said: Said,
}

/// What is due.
#[derive(Debug, Default)]
pub struct Due {
    /// Writes, which count as under way from now on.
    pub writes: Vec<Write>,
    /// What has lasted long enough to be said.
    pub remarks: Vec<Remark>,
    /// When there may be more.
    pub next: Option<Instant>,
}

/// What the pod's peers have been told, as far as it concerns whether they dial it by HBONE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Never that they may, or nobody can be told.
    Unaware,
    /// That they may, as far as is known.
    MayDial,
    /// That they may no longer, since then.
    ToldAt(Instant),
}

impl Default for Board {
    fn default() -> Self {
        Self { posts: HashMap::new(), server: Backoff::new(FIRST_WAIT) }
    }
}

impl Board {
    /// A pod stands so now. Says what is worth an Event, and whether something may be due.
    pub fn stands(&mut self, status: &PodStatus, now: Instant) -> (Vec<Remark>, bool) {
        let post = self.post(&status.uid);
        if !status.name.is_empty() {
            post.pod = PodRef::new(&status.namespace, &status.name);
        }
        let before = (post.course.wish(), post.course.due());
        let said = post.course.stands(status, post.belief.has(), now);
        let moved = before != (post.course.wish(), post.course.due());
        let pod = post.pod.clone();
        (remarks(&status.uid, &pod, said), moved)
    }

    /// The watch shows a pod's object. Says whether something may be due. An object that comes after one was gone is another
    /// one, as a static pod's that is made anew with the same uid: what was written to the former it does not have.
    pub fn shown(&mut self, uid: &PodUid, pod: PodRef, has: Has, now: Instant) -> bool {
        let post = self.post(uid);
        post.pod = pod;
        post.shown_since = true;
        if std::mem::take(&mut post.gone) {
            post.belief = Belief::default();
        }
        post.belief.shown(has, now);
        post.belief.action(post.course.wish()).is_some()
    }

    /// The watch shows a pod's object no longer.
    pub fn gone(&mut self, uid: &PodUid) {
        if let Some(post) = self.posts.get_mut(uid) {
            (post.gone, post.shown_since) = (true, false);
        }
    }

    /// Nothing is to be known of a pod any more.
    pub fn forget(&mut self, uid: &PodUid) {
        self.posts.remove(uid);
    }

    /// What is due now.
    pub fn take(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        let mut ready = Vec::new();
        for (uid, post) in &mut self.posts {
            if let Some(said) = post.course.pass(now) {
                due.remarks.extend(remarks(uid, &post.pod, vec![said]));
            }
            due.next = earlier(due.next, post.course.due());
            match (post.owed(), post.backoff.until(now)) {
                (Some(_), _) if post.writing.is_some() => {}
                (Some(_), Some(until)) => due.next = earlier(due.next, Some(until)),
                (Some(action), None) => ready.push((post.backoff.is_failing(), action, uid.clone())),
                (None, _) => {}
            }
        }
        let room = self.room(now);
        if ready.len() > room {
            due.next = earlier(due.next, self.server.until(now));
            // A pod that keeps failing must not keep the others waiting; and who leaves, waits for its peers to know.
            ready.sort_by_key(|(failing, action, _)| (*failing, *action != Action::Remove));
        }
        for (_, action, uid) in ready.into_iter().take(room) {
            if let Some(post) = self.posts.get_mut(&uid) {
                (post.writing, post.shown_since) = (Some(action), false);
                due.writes.push(Write { uid, pod: post.pod.clone(), action });
            }
        }
        due
    }

    /// A write has ended so.
    pub fn finish(&mut self, write: &Write, outcome: &Outcome, now: Instant) {
        let longest = match outcome {
            Outcome::Forbidden(_) | Outcome::Refused(_) => REFUSED_LONGEST,
            _ => SERVER_LONGEST,
        };
        match outcome {
            Outcome::Done | Outcome::Gone => self.server.succeeded(),
            Outcome::Conflict(_) | Outcome::Refused(_) => {}
            Outcome::Throttled(asked) => drop(self.server.failed(longest, *asked, now)),
            Outcome::Failed(_) | Outcome::Unanswered(_) | Outcome::Forbidden(_) => {
                self.server.failed(longest, None, now);
            }
        }
        let Some(post) = self.posts.get_mut(&write.uid) else { return };
        post.writing = None;
        post.trouble = outcome.trouble();
        match outcome {
            Outcome::Done => post.belief.wrote(write.action, now),
            Outcome::Gone => post.gone |= !post.shown_since,
            Outcome::Failed(_) | Outcome::Unanswered(_) => post.belief.may_have_written(write.action),
            _ => {}
        }
        match outcome {
            Outcome::Done => post.backoff.succeeded(),
            Outcome::Gone if post.gone => post.backoff.succeeded(),
            _ => drop(post.backoff.failed(longest, None, now)),
        }
    }

    /// What the pod's peers have been told.
    #[must_use]
    pub fn peers(&self, uid: &PodUid) -> Peers {
        match self.posts.get(uid) {
            None => Peers::Unaware,
            Some(post) if post.gone => Peers::Unaware,
            Some(post) if post.writing.is_some() || post.belief.peers_may_dial() => Peers::MayDial,
            Some(post) => post.belief.withdrawn().map_or(Peers::Unaware, Peers::ToldAt),
        }
    }

    /// How many pods' annotations are known not to be what they should be.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.posts.values().filter(|post| post.owed().is_some()).count()
    }

    /// Whether nothing is under way, and nothing could be begun now.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let held_up = self.server.until(now).is_some();
        self.posts.values().all(|post| {
            let waits = post.owed().is_none() || held_up || post.backoff.until(now).is_some();
            post.writing.is_none() && waits
        })
    }

    /// Whether a pod's annotation is as it should be, and what is known of it, in words.
    #[must_use]
    pub fn explain(&self, uid: &PodUid) -> Option<(bool, String)> {
        let post = self.posts.get(uid)?;
        let has = post.belief.has().map_or_else(|| "not known".to_owned(), |has| has.to_string());
        Some(match (post.owed(), &post.trouble) {
            (None, _) if post.gone => (true, "the API server has no such pod any more".to_owned()),
            (None, _) => (true, has),
            (Some(action), None) => (false, format!("{has}; {action}")),
            (Some(action), Some(trouble)) => (false, format!("{has}; {action}, but {trouble}")),
        })
    }

    fn post(&mut self, uid: &PodUid) -> &mut Post {
        self.posts.entry(uid.clone()).or_insert_with(|| Post {
            pod: PodRef::new("", ""),
            course: Course::default(),
            belief: Belief::default(),
            writing: None,
            shown_since: false,
            backoff: Backoff::new(FIRST_WAIT),
            trouble: None,
            gone: false,
        })
    }

    /// How many writes may begin now.
    fn room(&self, now: Instant) -> usize {
        if self.server.until(now).is_some() {
            return 0;
        }
        let under_way = self.posts.values().filter(|post| post.writing.is_some()).count();
        let allowed = if self.server.is_failing() { 1 } else { AT_ONCE };
        allowed.saturating_sub(under_way)
    }
}

impl Post {
    /// What should be written for the pod, if anything can.
    fn owed(&self) -> Option<Action> {
        let can = !self.gone && !self.pod.name.is_empty();
        self.belief.action(self.course.wish()).filter(|_| can)
    }
}

fn remarks(uid: &PodUid, pod: &PodRef, said: Vec<Said>) -> Vec<Remark> {
    said.into_iter().map(|said| Remark { uid: uid.clone(), pod: pod.clone(), said }).collect()
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
