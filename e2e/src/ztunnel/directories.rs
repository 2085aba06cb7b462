//! The workloads file, read again whenever it changes, and waiting for what it does not yet know.

use super::workloads::{Directory, Workload, WorkloadInfo, WorkloadsError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How often the file is looked at for changes. ztunnel itself reads it once; tests want more.
const POLL: Duration = Duration::from_millis(200);
/// How long a connection waits for its workload to become known (ztunnel's own limit).
const PATIENCE: Duration = Duration::from_secs(5);

/// The directory, kept up to date with its file.
#[derive(Clone)]
pub struct Directories(watch::Receiver<Arc<Directory>>);

impl Directories {
    /// Reads `path`, and again whenever it changes. A reading that fails leaves the last good one in force and is
    /// told to `on_error`.
    ///
    /// # Errors
    /// When the first reading fails.
    pub fn follow(
        path: PathBuf,
        on_error: impl Fn(WorkloadsError) + Send + 'static,
    ) -> Result<Self, WorkloadsError> {
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
                    Ok(directory) => drop(publish.send_replace(Arc::new(directory))),
                    Err(error) => on_error(error),
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
