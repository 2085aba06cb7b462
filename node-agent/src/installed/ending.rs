//! What becomes of the installation when the agent is told to end: SIGTERM looks the same for an upgrade and for an
//! uninstall, and the API server knows which it is.
//!
//! The agent looks at its own DaemonSet once at its start, to know that it may and which one it is, and once at its end.
//! Whether the DaemonSet still wants this node is judged as its controller does it, from the node's labels and taints;
//! nothing else tells a node that has left the selector from `kubectl delete pod`.

use crate::backoff::Backoff;
use crate::config::DaemonSetRef;
use crate::durable::{self, Sync};
use crate::source::kubernetes::api::{Api, Failure, Target};
use serde::Deserialize;
use sluice_shared::facts::StringMap;
use sluice_shared::install::{DaemonSet, Fate, INTENT_FILE, Intent, Wanted, verdict};
use sluice_shared::placement::{Node, Placement, Taint};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long the API server is asked at the end. The installer waits for the answer for 5 s.
const WITHIN: Duration = Duration::from_millis(3500);
/// How long the answer must have been nothing but a refusal until it is believed. An API server that has just started,
/// or whose etcd is away, knows neither service accounts nor roles, and refuses everybody.
const REFUSED_FOR: Duration = Duration::from_millis(1500);
/// How long one answer may take at the start.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two questions at the end, where the first had no answer.
const PAUSE: Duration = Duration::from_millis(300);
/// The waits between two questions at the start: the first, which doubles, and the longest.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(600)];

const WHOLE: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";

/// Finds it out, and writes it down.
pub struct Ending {
    api: Api,
    daemon_set: DaemonSetRef,
    node: String,
    file: PathBuf,
    /// The DaemonSet's uid, once the API server has said it.
    seen: OnceLock<String>,
}

/// A DaemonSet, as far as it matters.
#[derive(Deserialize)]
struct FoundSet {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
struct Spec {
    template: Template,
}

#[derive(Default, Deserialize)]
struct Template {
    spec: Placement,
}

/// A node, as far as it matters.
#[derive(Deserialize)]
struct FoundNode {
    metadata: NodeMetadata,
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Deserialize)]
struct NodeMetadata {
    #[serde(default)]
    labels: StringMap,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    taints: Vec<Taint>,
}

impl Ending {
    /// About the DaemonSet of that name and this node. The intent goes into `run_dir`.
    #[must_use]
    pub fn new(client: kube::Client, daemon_set: DaemonSetRef, node: &str, run_dir: &Path) -> Self {
        let file = run_dir.join(INTENT_FILE);
        Self { api: Api::new(client), daemon_set, node: node.to_owned(), file, seen: OnceLock::new() }
    }

    /// Removes what an agent before this one has left: it ended alone, its pod's installer went on, and "it stays" said
    /// then must not be what the installer reads at the pod's end. "It goes" is left to the installer, for whom it is.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_before(run_dir: &Path) -> io::Result<()> {
        let file = run_dir.join(INTENT_FILE);
        match read(&file) {
            Some(Intent { wanted: Wanted::Leave, .. }) => Ok(()),
            _ => match std::fs::remove_file(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                result => result,
            },
        }
    }

    /// Finds out whether the DaemonSet may be read, and which one it is: one request where all is well. Without it, an
    /// answer "no" at the end would prove nothing.
    pub async fn learn(&self) {
        let [shortest, longest] = AGAIN;
        let (mut backoff, mut said) = (Backoff::new(shortest), false);
        while self.seen.get().is_none() {
            match self.find(METADATA, ANSWER_WITHIN).await {
                Ok(found) => {
                    let DaemonSetRef { namespace, name } = &self.daemon_set;
                    tracing::debug!(namespace, name, uid = found.metadata.uid, "the agent's own DaemonSet");
                    drop(self.seen.set(found.metadata.uid));
                }
                Err(failure) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%failure, daemonset = self.daemon_set.name,
                            "the agent cannot read its own DaemonSet, so an uninstall cannot be told from an upgrade and \
                             leaves the plugin in the chain; it needs get on it (daemonset, namespace); tried again");
                    }
                    tokio::time::sleep(backoff.failed(longest, None, Instant::now())).await;
                }
            }
        }
    }

    /// Asks what becomes of the DaemonSet and writes it down, within a few seconds.
    pub async fn tell(&self) {
        let began = Instant::now();
        let daemon_set = timeout(WITHIN, self.ask()).await.unwrap_or(DaemonSet::Unknown);
        let intent = verdict(Fate { daemon_set, could_ask: self.seen.get().is_some() });
        tracing::info!(wanted = ?intent.wanted, because = intent.why, after = ?began.elapsed(),
            "what becomes of the installation");
        if let Err(error) = write(&self.file, &intent) {
            tracing::error!(%error, file = %self.file.display(),
                "the installer does not hear of it, and leaves everything in place");
        }
    }

    /// What the DaemonSet is now. Whoever gives no answer is asked again.
    async fn ask(&self) -> DaemonSet {
        let mut refused = None::<Instant>;
        loop {
            let found = match self.find(WHOLE, WITHIN).await {
                Ok(found) => found,
                Err(Failure::Status { code: 401 | 403, .. }) => {
                    if refused.get_or_insert_with(Instant::now).elapsed() >= REFUSED_FOR {
                        return DaemonSet::Forbidden;
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                // Where it was never seen, its name may be wrong.
                Err(Failure::Status { code: 404, .. }) => match self.seen.get() {
                    Some(_) => return DaemonSet::Gone,
                    None => return DaemonSet::Unknown,
                },
                Err(failure) => {
                    tracing::debug!(%failure, "no answer about the agent's own DaemonSet yet");
                    refused = None;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Metadata { uid, deletion_timestamp } = &found.metadata;
            if self.seen.get().is_some_and(|seen| seen != uid) {
                return DaemonSet::Gone;
            }
            let deleting = deletion_timestamp.is_some();
            let selects_node = deleting || self.selects_node(&found.spec.template.spec).await;
            return DaemonSet::Here { deleting, selects_node };
        }
    }

    /// Whether the DaemonSet's controller leaves a pod on this node. Whatever cannot be found out means that it does.
    async fn selects_node(&self, placement: &Placement) -> bool {
        let target = Target::new(format!("/api/v1/nodes/{}", self.node), WHOLE);
        let node = self.api.fetch(&target, WITHIN).await;
        let node = node.and_then(|json| {
            serde_json::from_slice::<FoundNode>(&json).map_err(|error| Failure::garbage(&error, &json))
        });
        match node {
            Ok(FoundNode { metadata: NodeMetadata { labels }, spec: NodeSpec { taints } }) => {
                let unfit = placement.unfit(&Node { name: self.node.clone(), labels, taints });
                if let Some(unfit) = unfit {
                    tracing::info!(?unfit, "the DaemonSet no longer wants this node");
                }
                unfit.is_none()
            }
            Err(failure) => {
                tracing::warn!(%failure, node = self.node,
                    "whether the DaemonSet still selects this node is not known (needs get on nodes); it is taken to");
                true
            }
        }
    }

    async fn find(&self, accept: &'static str, within: Duration) -> Result<FoundSet, Failure> {
        let DaemonSetRef { namespace, name } = &self.daemon_set;
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let json = self.api.fetch(&Target::new(path, accept), within).await?;
        serde_json::from_slice(&json).map_err(|error| Failure::garbage(&error, &json))
    }
}

/// Whether the installer has been told to take everything off the node, by this agent or by an operator.
#[must_use]
pub fn is_leaving(run_dir: &Path) -> bool {
    matches!(read(&run_dir.join(INTENT_FILE)), Some(Intent { wanted: Wanted::Leave, .. }))
}

fn read(file: &Path) -> Option<Intent> {
    Intent::parse(&std::fs::read(file).ok()?)
}

/// An operator's word that the installation goes is not taken back.
fn write(file: &Path, intent: &Intent) -> io::Result<()> {
    if matches!(read(file), Some(Intent { wanted: Wanted::Leave, .. })) {
        return Ok(());
    }
    durable::replace(file, &serde_json::to_vec(intent)?, Sync::No)
}
