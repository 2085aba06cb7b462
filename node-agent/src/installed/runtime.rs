//! Which runtime the node has, written down for the installer: whether it adds drop-ins decides how our entry gets into
//! the chain.
//!
//! The runtime is asked at the start, and again when its socket is another one: then it was restarted, and may have been
//! replaced. In between it is not asked.

use crate::adopt::cri::version;
use crate::durable::{self, Sync};
use sluice_shared::conflist::Runtime;
use sluice_shared::install::RUNTIME_FILE;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the sockets are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often the runtime is asked although its socket is the same: systemd may hold it open over a restart.
const ANYWAY: Duration = Duration::from_secs(600);
/// The waits after no answer: the first, which doubles, and the longest.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What tells one socket from the next at the same place.
type Stamp = Option<(u64, u64, i64, i64)>;

/// Keeps `runtime.json` in `run_dir` true. Without a socket to ask there is nothing to keep.
pub async fn keep_runtime(sockets: Vec<PathBuf>, run_dir: PathBuf) {
    let file = run_dir.join(RUNTIME_FILE);
    let [mut wait, longest] = AGAIN;
    let mut said = false;
    while !sockets.is_empty() {
        // Before the question: a runtime that is replaced while it answers is asked again.
        let stamps = stamps(&sockets);
        match version(&sockets).await {
            Ok(runtime) => {
                (wait, said) = (AGAIN[0], false);
                write(&file, &runtime);
                let asked = Instant::now();
                while asked.elapsed() < ANYWAY && self::stamps(&sockets) == stamps {
                    sleep(LOOK).await;
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        why,
                        "the runtime does not say which one it is, so the installer does not know whether it \
                        adds drop-ins to the chain, and goes by what it was told before; asked again"
                    );
                }
                sleep(wait).await;
                wait = (wait * 2).min(longest);
            }
        }
    }
}

fn stamps(sockets: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
    };
    sockets.iter().map(stamp).collect()
}

/// A file that says it already is left alone: each write wakes the installer.
fn write(file: &Path, runtime: &Runtime) {
    let Ok(bytes) = serde_json::to_vec(runtime) else { return };
    if std::fs::read(file).is_ok_and(|old| old == bytes) {
        return;
    }
    match durable::replace(file, &bytes, Sync::No) {
        Ok(()) => tracing::info!(name = runtime.name, version = runtime.version, "the node's runtime"),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "the installer does not hear of the runtime");
        }
    }
}
