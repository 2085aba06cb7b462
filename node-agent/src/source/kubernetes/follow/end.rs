//! How one request of a follower ended, and what that means for the next.

use super::super::api::{Failure, Status};
use crate::source::Event;
use tokio::sync::mpsc;

/// How one request ended.
pub(super) enum End {
    /// As it should: a list is complete, or the server has ended a watch in time.
    Well,
    /// The server has no streaming lists.
    NotStreaming(String),
    /// The version is too old.
    Expired(Failure),
    /// It failed. `relist` when it cannot be known what was missed.
    Failed { why: Failure, relist: bool },
    /// Nobody listens to events any more.
    Unheard,
}

impl From<Failure> for End {
    fn from(why: Failure) -> Self {
        if why.is_expired() { Self::Expired(why) } else { Self::Failed { why, relist: false } }
    }
}

impl From<mpsc::error::SendError<Event>> for End {
    fn from(_: mpsc::error::SendError<Event>) -> Self {
        Self::Unheard
    }
}

/// What a watch that ends in an error says. Unless the version is too old, nobody knows what was missed.
pub(super) fn ended_by(json: &[u8]) -> End {
    match serde_json::from_slice::<Status>(json) {
        Ok(status) if status.is_one() => match status.into_failure() {
            why if why.is_expired() => End::Expired(why),
            why => End::Failed { why, relist: true },
        },
        _ => End::Failed { why: Failure::Garbage("an error without a status".to_owned()), relist: true },
    }
}
