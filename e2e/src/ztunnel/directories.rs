//! The workloads file, read again whenever it changes, and waiting for what it does not yet know.

use super::events::Events;
use super::workloads::{Directory, Workload, WorkloadInfo, WorkloadsError};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How often the file is looked at for changes. ztunnel itself reads it once; tests want more, and soon.
const POLL: Duration = Duration::from_millis(20);
/// How long a connection waits for its workload to become known (ztunnel's own limit).
const PATIENCE: Duration = Duration::from_secs(5);

/// The directory, kept up to date with its file.
#[derive(Clone)]
pub struct Directories(watch::Receiver<Arc<Directory>>);

impl Directories {
    /// Reads `path`, and again whenever it changes, and says so. A reading that fails leaves the last good one in force.
    ///
    /// # Errors
    /// When the first reading fails.
    pub fn follow(path: PathBuf, events: Events) -> Result<Self, WorkloadsError> {
        let mut seen = stamp(&path);
        let (publish, current) = watch::channel(Arc::new(read(&path)?));
        tokio::spawn(async move {
            while !publish.is_closed() {
                tokio::time::sleep(POLL).await;
                let now = stamp(&path);
                if now == seen {
                    continue;
                }
                seen = now;
                match read(&path) {
                    Ok(directory) => {
                        publish.send_replace(Arc::new(directory));
                        events.say(json!({"event": "workloads"}));
                    }
                    Err(error) => events.say(json!({"event": "workloads-error", "error": error.to_string()})),
                }
            }
        });
        Ok(Self(current))
    }

    /// The last good reading.
    #[must_use]
    pub fn current(&self) -> Arc<Directory> {
        self.0.borrow().clone()
    }

    /// The workload that ZDS means by `info`, waited for as long as ztunnel waits (5 s).
    ///
    /// # Errors
    /// In words, when it is still not known then.
    pub async fn workload(&self, info: &WorkloadInfo, node: &str) -> Result<Arc<Workload>, String> {
        let mut updates = self.0.clone();
        let known = async {
            loop {
                if let Some(workload) = updates.borrow_and_update().find(info, node) {
                    return Some(workload);
                }
                updates.changed().await.ok()?;
            }
        };
        let WorkloadInfo { name, namespace, service_account } = info;
        tokio::time::timeout(PATIENCE, known).await.ok().flatten().ok_or_else(|| {
            format!("unknown workload {namespace}/{name} (service account {service_account}, node {node:?})")
        })
    }
}

fn read(path: &Path) -> Result<Directory, WorkloadsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| WorkloadsError::Read { path: path.to_owned(), source })?;
    Directory::parse(&text)
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}
