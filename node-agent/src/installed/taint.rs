//! Taints that keep pods away from a node until they would be captured there: the agent removes them from its own node
//! once it serves and the plugin is in the chain, and again whenever they come back.
//!
//! ztunnel is not waited for: it may be a pod that the taint itself keeps away, pods outside the mesh do not need it, and
//! a pod of the mesh waits for it in its ADD.
//!
//! While it serves it watches its one node, as the kubelet does: no request is made until something changes.

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::source::kubernetes::api::{Api, Failure, Status, Target};
use crate::source::kubernetes::lines::Line;
use crate::status::api::Api as Writer;
use crate::status::outcome::Outcome;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Standing;

/// After how long the API server is to end a watch, and how much later it counts as dead.
const WATCH: Duration = Duration::from_secs(3000);
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// The waits after a failure: the first, which doubles, and the longest.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(300)];
/// A watch that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(60);

/// Removes them.
pub struct Taints {
    /// The way to the API server.
    pub client: kube::Client,
    /// Whose.
    pub node: String,
    /// Which; never empty.
    pub keys: Vec<String>,
    /// What is counted.
    pub metrics: Metrics,
}

/// Whether a pod that starts now would be captured.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Why an ADD cannot be served, or `None`.
    pub waiting_for: watch::Receiver<Option<String>>,
    /// How the installation stands.
    pub standing: watch::Receiver<Standing>,
}

/// Why a watch came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the node cannot be watched: {0} (needs watch on nodes)")]
    Watch(#[from] Failure),
    #[error(
        "the taints cannot be removed: {0} (needs patch on nodes, and an admission policy that allows these keys)"
    )]
    Patch(String),
}

/// One line of a watch.
#[derive(Deserialize)]
struct Change {
    r#type: String,
    object: Value,
}

impl Taints {
    /// Removes them for as long as the agent runs.
    pub async fn run(self, mut serving: Serving) {
        tracing::info!(keys = ?self.keys, node = self.node, "these taints go once a pod that starts here is captured");
        loop {
            serving.until(true).await;
            tokio::select! {
                () = self.follow() => {}
                () = serving.until(false) => tracing::info!("taints that come back stay: a pod that starts now is not captured"),
            }
        }
    }

    /// One watch after the other.
    async fn follow(&self) {
        let [shortest, longest] = AGAIN;
        let (mut backoff, mut said) = (Backoff::new(shortest), None);
        loop {
            let began = Instant::now();
            let ended = timeout(WATCH + DEAD_AFTER, self.watch()).await.unwrap_or(Ok(()));
            if began.elapsed() >= GOOD {
                backoff.succeeded();
                said = None;
            }
            if let Err(trouble) = ended {
                let trouble = trouble.to_string();
                if said.as_ref() != Some(&trouble) {
                    tracing::warn!(node = self.node, "{trouble}; tried again");
                    said = Some(trouble);
                }
            }
            sleep(backoff.failed(longest, None, Instant::now())).await;
        }
    }

    /// From the node as it is to the watch's end.
    async fn watch(&self) -> Result<(), Trouble> {
        let target = Target::new("/api/v1/nodes", "application/json")
            .with("watch", "true")
            .with("fieldSelector", &format!("metadata.name={}", self.node))
            // What the server has in memory, and whatever changes from then on.
            .with("resourceVersion", "0")
            .with("timeoutSeconds", &WATCH.as_secs().to_string());
        let mut lines = Api::new(self.client.clone()).follow(&target).await?;
        while let Some(line) = lines.next().await? {
            let Line::Text(text) = line else { continue };
            let change: Change =
                serde_json::from_slice(&text).map_err(|error| Failure::garbage(&error, &text))?;
            match change.r#type.as_str() {
                "ADDED" | "MODIFIED" => self.look(&change.object).await?,
                "ERROR" => {
                    let status: Status = serde_json::from_value(change.object).unwrap_or_default();
                    return Err(status.into_failure().into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn look(&self, node: &Value) -> Result<(), Trouble> {
        let Some(patch) = removal(node, &self.keys) else { return Ok(()) };
        let outcome = Writer::new(self.client.clone()).patch_node(&self.node, &patch).await;
        self.metrics.taint_removal(outcome.label());
        match outcome.trouble() {
            None if outcome == Outcome::Done => {
                tracing::info!(node = self.node, keys = ?self.keys, "taints removed: pods that start here are captured");
                Ok(())
            }
            // It has just gone.
            None => Ok(()),
            Some(why) => Err(Trouble::Patch(why)),
        }
    }
}

impl Serving {
    /// Waits until it is so. When nobody tells any more, the agent is stopping.
    async fn until(&mut self, serves: bool) {
        loop {
            let chained = self.standing.borrow_and_update().is_chained();
            if (chained && self.waiting_for.borrow_and_update().is_none()) == serves {
                return;
            }
            let told = tokio::select! {
                told = self.standing.changed() => told,
                told = self.waiting_for.changed() => told,
            };
            if told.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A JSON patch (RFC 6902) that removes these taints from the node as it was seen, and fails where it has changed: each
/// taint is tested for before it is removed, and those that came behind it stay.
fn removal(node: &Value, keys: &[String]) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let ours = |taint: &Value| taint["key"].as_str().is_some_and(|key| keys.iter().any(|ours| ours == key));
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": node["metadata"]["uid"]})];
    // From the last, so that the places of the others hold.
    for (index, taint) in taints.iter().enumerate().rev().filter(|(_, taint)| ours(taint)) {
        let path = format!("/spec/taints/{index}");
        patch.push(json!({"op": "test", "path": path, "value": taint}));
        patch.push(json!({"op": "remove", "path": path}));
    }
    (patch.len() > 1).then(|| Value::from(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_taints_are_removed_and_only_as_they_were_seen() {
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
        let keys = ["cni.istio.io/not-ready".to_owned(), "b".to_owned()];
        let node = |taints: Value| json!({"metadata": {"uid": "u"}, "spec": {"taints": taints}});
        let all = [
            taint("cni.istio.io/not-ready", "NoSchedule"),
            taint("other", "NoSchedule"),
            taint("cni.istio.io/not-ready", "NoExecute"),
        ];
        let expected = json!([
            {"op": "test", "path": "/metadata/uid", "value": "u"},
            {"op": "test", "path": "/spec/taints/2", "value": all[2]},
            {"op": "remove", "path": "/spec/taints/2"},
            {"op": "test", "path": "/spec/taints/0", "value": all[0]},
            {"op": "remove", "path": "/spec/taints/0"},
        ]);
        assert_eq!(removal(&node(json!(all)), &keys), Some(expected));
        for nothing in
            [json!(null), json!([]), json!([taint("other", "NoSchedule")]), json!([{"effect": "x"}])]
        {
            assert_eq!(removal(&node(nothing.clone()), &keys), None, "{nothing}");
        }
        assert_eq!(removal(&json!({"metadata": {"uid": "u"}}), &keys), None);
    }
}
