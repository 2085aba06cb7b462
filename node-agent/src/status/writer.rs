//! The one task that writes annotations.

use super::Desk;
use super::api::Api;
use super::board::Write;
use super::outcome::Outcome;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Writes what the board says is due.
pub(super) struct Writer {
    desk: Arc<Desk>,
    api: Api,
    /// Whether a trouble of this kind has been said since the last write that went well.
    said: Option<&'static str>,
}

impl Writer {
    pub(super) const fn new(desk: Arc<Desk>, api: Api) -> Self {
        Self { desk, api, said: None }
    }

    /// Writes until the agent ends.
    pub(super) async fn run(mut self) {
        let mut writes = JoinSet::new();
        loop {
            let due = self.desk.board().take(Instant::now());
            self.desk.say(due.remarks);
            for write in due.writes {
                let api = self.api.clone();
                writes.spawn(async move {
                    let outcome =
                        api.annotate(&write.pod.namespace, &write.pod.name, &write.uid, write.action).await;
                    (write, outcome)
                });
            }
            let next = async {
                match due.next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.desk.wake.notified() => {}
                () = next => {}
                Some(ended) = writes.join_next(), if !writes.is_empty() => match ended {
                    Ok((write, outcome)) => self.finish(&write, &outcome),
                    // Not cancelled by anybody; a panic is a defect of ours, and has been printed.
                    Err(error) => tracing::error!(%error, "a write of an annotation ended badly"),
                },
            }
        }
    }

    fn finish(&mut self, write: &Write, outcome: &Outcome) {
        self.desk.metrics.status_patch(outcome.label());
        self.tell(write, outcome);
        self.desk.board().finish(write, outcome, Instant::now());
        self.desk.ended.send_replace(());
    }

    /// Says what went wrong once a kind, until it goes well again: with the API server away it is the same for all pods.
    fn tell(&mut self, write: &Write, outcome: &Outcome) {
        let pod = &write.pod;
        let Some(trouble) = outcome.trouble() else {
            tracing::debug!(%pod, uid = %write.uid, action = %write.action, result = outcome.label(), "annotation");
            if matches!(outcome, Outcome::Done) && self.said.take().is_some() {
                tracing::info!("pods' annotations can be written again");
            }
            return;
        };
        if self.said.replace(outcome.label()) == Some(outcome.label()) {
            tracing::debug!(%pod, uid = %write.uid, trouble, "annotation not written yet");
            return;
        }
        match outcome {
            Outcome::Forbidden(_) => tracing::error!(%pod, trouble,
                "istiod cannot be told which pods are captured: the agent's ServiceAccount needs the verb patch on \
                 pods/status (API group \"\"), and no admission policy that denies it on this node; tried again"),
            Outcome::Refused(_) => tracing::error!(%pod, trouble,
                "the pod's annotation cannot be written: see which admission policy or webhook refuses it; tried again"),
            _ => tracing::warn!(%pod, trouble,
                "pods' annotations cannot be written now, so istiod does not hear of changes; tried again"),
        }
    }
}
