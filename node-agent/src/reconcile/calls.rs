//! The plugin's DEL and CHECK. (ADD is [`super::join`]'s.)

use super::pod::PodTask;
use super::{answer_error, answer_ok};
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use sluice_shared::wire::{Attachment, Reply};
use tokio::sync::oneshot;

impl PodTask {
    pub(super) async fn del(&mut self, attachment: &Attachment, reply: oneshot::Sender<Reply>) {
        let ours = self.sandbox.as_ref().and_then(|sandbox| sandbox.attachment.as_ref());
        // A late DEL of an earlier attempt, or of a secondary interface, is not about the sandbox that lives.
        let another = match ours {
            Some(id) => *id != attachment.id,
            None => self.lives_apart_from(attachment).await,
        };
        if another {
            answer_ok(reply, "another attachment of this pod is in force");
            return;
        }
        self.release("its sandbox was deleted (DEL)").await;
        self.deleted = true;
        answer_ok(reply, "released");
        if self.facts.is_some() {
            self.settle().await;
        }
    }

    pub(super) async fn check(&mut self, attachment: &Attachment, reply: oneshot::Sender<Reply>) {
        self.look().await;
        let status = self.entry.showing().status.clone();
        match status.state {
            State::Outside => answer_ok(reply, &format!("outside: {}", status.reason)),
            State::Enabled => answer_ok(reply, "captured"),
            State::Pending | State::Draining | State::Drifted => answer_error(
                reply,
                code::NOT_CAPTURED,
                format!(
                    "pod {}/{} (container {}) is {}: {}; see: sluicectl why {}/{}",
                    status.namespace,
                    status.name,
                    attachment.id.container_id,
                    status.state,
                    status.reason,
                    status.namespace,
                    status.name,
                ),
            ),
        }
    }
}
