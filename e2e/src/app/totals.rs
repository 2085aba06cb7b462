//! What became of a client's connections, in numbers, so that a test can ask at any time and compare.

use crate::lab::traffic::dial::Answer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How many failures are remembered in words.
const REMEMBERED: usize = 20;

/// Everything that a client counts. Numbers only grow, but for [`Live::open`] and [`Live::silent_ms`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Connections that say one line and close.
    pub new: New,
    /// Connections that stay.
    pub live: Live,
    /// Answers that were not what was said, or from somebody else than expected.
    pub mismatches: u64,
    /// Answers by server.
    pub servers: BTreeMap<String, u64>,
    /// The last failures, in words.
    pub failures: VecDeque<String>,
}

/// Connections that say one line and close.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct New {
    /// Begun.
    pub begun: u64,
    /// Answered, by the server that saw the client's own socket.
    pub direct: u64,
    /// Answered, by a server that saw another one: a proxy is between.
    pub proxied: u64,
    /// Not answered.
    pub failed: u64,
    /// Of these, cut off by a reset.
    pub resets: u64,
    /// The longest time to an answer, in milliseconds.
    pub slowest_ms: u64,
}

/// Connections that stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Live {
    /// How many there should be.
    pub wanted: u64,
    /// How many there are.
    pub open: u64,
    /// Opened so far: more than `wanted` once one was lost.
    pub opened: u64,
    /// Ended by somebody else, or silent for too long.
    pub lost: u64,
    /// Of these, by a reset.
    pub resets: u64,
    /// Could not be opened.
    pub refused: u64,
    /// Lines that were answered.
    pub pings: u64,
    /// The longest time to an answer, in milliseconds.
    pub slowest_ms: u64,
    /// How long ago the one of them that was answered longest ago was answered, in milliseconds: one that stalls is not
    /// lost yet, and the others go on.
    pub silent_ms: u64,
    /// Connections whose first answer came from a server that saw the client's own socket.
    pub direct: u64,
    /// Connections whose first answer came through a proxy.
    pub proxied: u64,
}

impl Totals {
    /// A short connection was answered.
    pub fn answered(&mut self, answer: &Answer, took: Duration) {
        if answer.is_direct() {
            self.new.direct += 1;
        } else {
            self.new.proxied += 1;
        }
        self.new.slowest_ms = self.new.slowest_ms.max(milliseconds(took));
        self.count(answer);
    }

    /// A short connection failed.
    pub fn failed(&mut self, error: &anyhow::Error) {
        self.new.failed += 1;
        self.new.resets += u64::from(is_reset(error));
        self.remember(format!("new: {error:#}"));
    }

    /// A connection that stays was opened and answered once.
    pub fn opened(&mut self, answer: &Answer) {
        self.live.opened += 1;
        self.live.open += 1;
        if answer.is_direct() {
            self.live.direct += 1;
        } else {
            self.live.proxied += 1;
        }
    }

    /// A connection that stays was answered.
    pub fn pinged(&mut self, answer: &Answer, took: Duration) {
        self.live.pings += 1;
        self.live.slowest_ms = self.live.slowest_ms.max(milliseconds(took));
        self.count(answer);
    }

    /// A connection that should stay could not be opened.
    pub fn refused(&mut self, error: &anyhow::Error) {
        self.live.refused += 1;
        self.remember(format!("live, opening: {error:#}"));
    }

    /// A connection that should stay is gone.
    pub fn lost(&mut self, pings: u64, error: &anyhow::Error) {
        self.live.open -= 1;
        self.live.lost += 1;
        self.live.resets += u64::from(is_reset(error));
        self.remember(format!("live, after {pings} pings: {error:#}"));
    }

    /// An answer was wrong.
    pub fn mismatched(&mut self, what: String) {
        self.mismatches += 1;
        self.remember(what);
    }

    fn count(&mut self, answer: &Answer) {
        *self.servers.entry(answer.server.clone()).or_default() += 1;
    }

    fn remember(&mut self, failure: String) {
        if self.failures.len() == REMEMBERED {
            self.failures.pop_front();
        }
        self.failures.push_back(failure);
    }
}

/// Whether somebody cut the connection off, rather than let it end.
fn is_reset(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    kinds.into_iter().any(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Whole ones; as many as there can be of what is longer.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
