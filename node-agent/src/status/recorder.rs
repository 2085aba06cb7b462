//! The one task that writes Events, on the pod that they are about.

use super::FIRST_WAIT;
use super::api::{Api, WRITER, is_the_objects};
use super::board::Remark;
use super::course::Said;
use super::events::{Correlator, Posting};
use super::outcome::Outcome;
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many Events may wait to be written.
pub(super) const QUEUE: usize = 256;
/// How old something may be that is still said.
const STALE: Duration = Duration::from_secs(300);
/// The longest wait while the API server is away.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest message, in characters; the API takes 1024 bytes.
const MAX_MESSAGE: usize = 600;
/// The longest part of a pod's name in an Event's, which has 17 more characters; the API takes 253.
const MAX_NAME: usize = 230;

/// Something that has happened.
pub(super) struct Happening {
    remark: Remark,
    at: Instant,
    time: Timestamp,
}

/// Writes Events.
pub(super) struct Recorder {
    api: Api,
    node: String,
    metrics: Metrics,
    correlator: Correlator,
    /// Whether it was said that Events cannot be written.
    said: bool,
}

impl Happening {
    pub(super) fn now(remark: Remark) -> Self {
        Self { remark, at: Instant::now(), time: Timestamp::now() }
    }
}

impl Recorder {
    pub(super) fn new(api: Api, node: String, metrics: Metrics) -> Self {
        Self { api, node, metrics, correlator: Correlator::new(Instant::now()), said: false }
    }

    /// Writes what comes in until the agent ends.
    pub(super) async fn run(mut self, mut happenings: mpsc::Receiver<Happening>) {
        while let Some(happening) = happenings.recv().await {
            let result = self.record(&happening).await;
            self.metrics.event(result);
        }
    }

    /// Says one thing, or gives it up. The word says what became of it.
    async fn record(&mut self, happening: &Happening) -> &'static str {
        let Remark { uid, said: (occasion, _), .. } = &happening.remark;
        let mut posting = self.correlator.take(uid, *occasion, happening.at);
        let mut backoff = Backoff::new(FIRST_WAIT);
        loop {
            let outcome = match &posting {
                Posting::Withheld => return "withheld",
                Posting::New { count } => self.make(happening, *count).await,
                Posting::Again { name, count } => {
                    let patch = json!({
                        "count": count,
                        "lastTimestamp": Time(happening.time),
                        "message": message(&happening.remark),
                    });
                    let outcome = self.api.repeat_event(&happening.remark.pod.namespace, name, &patch).await;
                    if outcome == Outcome::Gone {
                        // Events live for an hour or so.
                        posting = Posting::New { count: *count };
                        continue;
                    }
                    outcome
                }
            };
            if !outcome.is_the_servers() || happening.at.elapsed() > STALE {
                self.tell(happening, &outcome);
                return outcome.label();
            }
            let asked = match outcome {
                Outcome::Throttled(asked) => asked,
                _ => None,
            };
            tokio::time::sleep(backoff.failed(LONGEST, asked, Instant::now())).await;
        }
    }

    async fn make(&mut self, happening: &Happening, count: i32) -> Outcome {
        let event = self.event(happening, count);
        let outcome = self.api.create_event(&event).await;
        if outcome == Outcome::Done
            && let Some(name) = &event.metadata.name
        {
            let Remark { uid, said: (occasion, _), .. } = &happening.remark;
            self.correlator.made(uid, *occasion, name);
        }
        outcome
    }

    fn event(&self, happening: &Happening, count: i32) -> Event {
        let Remark { uid, pod, said: (occasion, _) } = &happening.remark;
        let random = RandomState::new().hash_one((uid, happening.time.as_nanosecond()));
        let short = pod.name.get(..MAX_NAME).unwrap_or(&pod.name).trim_end_matches(['-', '.']);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{short}.{random:016x}")),
                namespace: Some(pod.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: is_the_objects(uid).then(|| uid.to_string()),
                ..ObjectReference::default()
            },
            reason: Some(occasion.reason().into()),
            message: Some(message(&happening.remark)),
            type_: Some(if occasion.is_warning() { "Warning" } else { "Normal" }.into()),
            source: Some(EventSource { component: Some(WRITER.into()), host: Some(self.node.clone()) }),
            reporting_component: Some(WRITER.into()),
            reporting_instance: Some(self.node.clone()),
            count: Some(count),
            first_timestamp: Some(Time(happening.time)),
            last_timestamp: Some(Time(happening.time)),
            ..Event::default()
        }
    }

    /// Says once that Events cannot be written. A namespace that is being deleted takes none, and nobody misses them.
    fn tell(&mut self, happening: &Happening, outcome: &Outcome) {
        let Some(trouble) = outcome.trouble() else {
            self.said &= *outcome != Outcome::Done;
            return;
        };
        let pod = &happening.remark.pod;
        if self.said || trouble.contains("is being terminated") {
            tracing::debug!(%pod, trouble, "an Event was not written");
            return;
        }
        self.said = true;
        tracing::warn!(%pod, trouble, event = happening.remark.said.0.reason(),
            "an Event could not be written; the agent's ServiceAccount needs the verbs create and patch on events (API \
             group \"\")");
    }
}

fn message(remark: &Remark) -> String {
    let (pod, (occasion, what)): (_, &Said) = (&remark.pod, &remark.said);
    let what: String = what.chars().take(MAX_MESSAGE).collect();
    match occasion.is_of_the_node() {
        true => format!("{what}; see on the node: sluicectl status"),
        false => format!("{what}; see on the node: sluicectl why {pod}"),
    }
}
