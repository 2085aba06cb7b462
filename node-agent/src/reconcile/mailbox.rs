//! A pod's mailbox: messages in their order, and no more of them than there is to know.
//!
//! Whoever may change a pod or a namespace can do so faster than the pod's task follows. Of what the source shows only
//! the newest counts, and one look, doubt or settling is enough for whatever changed before it: such a message takes the
//! place of the one that still waits. Facts do not overtake an ADD or a DEL: each is judged by what was known when it
//! came.

use super::Message;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What waits for one task.
#[derive(Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    /// Whether nobody takes them any more.
    closed: bool,
}

impl Mailbox {
    /// Puts a message there. `false` when nobody takes any more; the message is dropped then.
    pub fn post(&self, message: Message) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        waiting.put(message);
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// The next message. There is one task that takes them; it may be cancelled and call again.
    pub(super) async fn next(&self) -> Message {
        self.wait_for(|waiting| waiting.messages.pop_front()).await
    }

    /// The first message like `wanted`, whatever is before it. `None` as soon as one like `over` waits, which stays where it
    /// is, as do all others.
    pub(super) async fn first(
        &self,
        wanted: impl Fn(&Message) -> bool,
        over: impl Fn(&Message) -> bool,
    ) -> Option<Message> {
        self.wait_for(|waiting| {
            if waiting.messages.iter().any(&over) {
                return Some(None);
            }
            let index = waiting.messages.iter().position(&wanted)?;
            Some(waiting.messages.remove(index))
        })
        .await
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().messages.is_empty()
    }

    /// Nobody takes messages any more: those that wait are dropped, so that whoever waits for an answer hears of it.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let unread = std::mem::take(&mut waiting.messages);
        drop(waiting);
        drop(unread);
    }

    async fn wait_for<T>(&self, take: impl Fn(&mut Waiting) -> Option<T>) -> T {
        loop {
            // Before the look: what arrives after it is not missed.
            let arrived = self.arrived.notified();
            if let Some(found) = take(&mut self.lock()) {
                return found;
            }
            arrived.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn put(&mut self, message: Message) {
        let left_over = match message {
            Message::Facts(newer) => match self.facts() {
                Some(facts) => {
                    *facts = newer;
                    None
                }
                None => Some(Message::Facts(newer)),
            },
            once @ (Message::Look | Message::Doubt) => {
                let is_same = |m: &Message| std::mem::discriminant(m) == std::mem::discriminant(&once);
                (!self.messages.iter().any(is_same)).then_some(once)
            }
            Message::Resettle(more) => match self.resettling() {
                Some(waiters) => {
                    waiters.retain(|waiter| !waiter.is_closed());
                    waiters.extend(more);
                    None
                }
                None => Some(Message::Resettle(more)),
            },
            // A namespace is handed over with each: those whose caller has given up are closed now.
            add @ Message::Add { .. } => {
                self.messages.retain(|m| !matches!(m, Message::Add { reply, .. } if reply.is_closed()));
                Some(add)
            }
            other => Some(other),
        };
        self.messages.extend(left_over);
    }

    /// The facts that newer ones take the place of.
    fn facts(&mut self) -> Option<&mut Option<Box<sluice_shared::facts::PodFacts>>> {
        let is_newer = |message: &&mut Message| !matches!(message, Message::Add { .. } | Message::Del { .. });
        let newer = self.messages.iter_mut().rev().take_while(is_newer);
        newer.into_iter().find_map(|message| match message {
            Message::Facts(facts) => Some(facts),
            _ => None,
        })
    }

    fn resettling(&mut self) -> Option<&mut Vec<tokio::sync::oneshot::Sender<()>>> {
        self.messages.iter_mut().find_map(|message| match message {
            Message::Resettle(waiters) => Some(waiters),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
