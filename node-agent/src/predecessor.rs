//! Whether istio-cni still runs on this node. Two agents that program the same pods would undo each other's work, so as
//! long as it does, ours leaves pods, ztunnel's socket and the host's rules to it, and says so.
//!
//! It is asked by connecting to the socket that its plugin asks: somebody answers there if, and only if, its agent
//! lives. One that is removed takes its kubeconfig away; where that is still there the agent may only be restarting, or
//! being upgraded, and counts as gone when it has not answered for a minute. Both are looked for in the root of the
//! host's first process, so that nothing of it need be mounted.

use crate::durable;
use sluice_shared::install::{INSTALL_VERSION, PREDECESSOR_FILE, PredecessorNote};
use sluice_shared::istio::{KUBECONFIGS, PLUGIN_SOCKETS};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked for, while it lives and afterwards: it may be installed again.
const LOOK: Duration = Duration::from_millis(500);
/// How long a connection may take. A socket that nobody accepts from has somebody who listens all the same.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// How long it may not answer, with its files in place, before it counts as gone.
pub const AWAY: Duration = Duration::from_secs(60);

/// What is known of istio-cni on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// It is not here, or not any more.
    Gone,
    /// It runs.
    Lives,
    /// It does not answer, and has not been removed in an orderly way, for less than [`AWAY`].
    Away,
    /// Whether it runs cannot be seen, and why.
    Unseen(String),
}

/// Looks for it.
#[derive(Clone, Debug)]
pub struct Lookout {
    sockets: Vec<PathBuf>,
    kubeconfigs: Vec<PathBuf>,
    /// For the installer.
    note: PathBuf,
}

impl Lookout {
    /// Looks in the root of the first process that `proc` shows, and tells the installer by a file in `run_dir`.
    #[must_use]
    pub fn new(proc: &Path, run_dir: &Path) -> Self {
        let at = |paths: [&str; 2]| paths.map(|path| proc.join("1/root").join(path)).into();
        Self {
            sockets: at(PLUGIN_SOCKETS),
            kubeconfigs: at(KUBECONFIGS),
            note: run_dir.join(PREDECESSOR_FILE),
        }
    }

    /// Looks once, and notes what it sees.
    pub async fn first(&self) -> Predecessor {
        let found = self.look().await;
        self.write(&found);
        found
    }

    async fn look(&self) -> Predecessor {
        let left = self.kubeconfigs.iter().any(|path| path.exists());
        let mut found = if left { Predecessor::Away } else { Predecessor::Gone };
        for socket in &self.sockets {
            let connected = tokio::time::timeout(CONNECT_WITHIN, UnixStream::connect(socket)).await;
            match connected {
                Ok(Ok(_)) | Err(_) => return Predecessor::Lives,
                Ok(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Predecessor::Lives,
                    io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::ConnectionRefused => {}
                    _ => found = Predecessor::Unseen(format!("{}: {error}", socket.display())),
                },
            }
        }
        found
    }

    fn write(&self, found: &Predecessor) {
        let note = PredecessorNote { version: INSTALL_VERSION, gone: *found == Predecessor::Gone };
        let written = serde_json::to_vec(&note)
            .map_err(io::Error::from)
            .and_then(|bytes| durable::replace(&self.note, &bytes, durable::Sync::No));
        if let Err(error) = written {
            tracing::warn!(%error, "the installer is not told whether istio-cni is gone, and leaves its entry");
        }
    }

    /// Looks again and again, and tells changes.
    pub async fn watch(self, tell: watch::Sender<Predecessor>) {
        let mut away_since = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let mut now = self.look().await;
            if now == Predecessor::Away {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= AWAY {
                    now = Predecessor::Gone;
                }
            } else {
                away_since = None;
            }
            if *tell.borrow() != now {
                self.write(&now);
            }
            tell.send_if_modified(|known| {
                let changed = *known != now;
                if changed {
                    tracing::info!(was = ?known, now = ?now, "istio-cni on this node");
                    known.clone_from(&now);
                }
                changed
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[tokio::test]
    async fn it_lives_as_long_as_somebody_listens() {
        let proc = tempfile::tempdir().unwrap();
        let run = proc.path().join("1/root/run/istio-cni");
        std::fs::create_dir_all(&run).unwrap();
        let lookout = Lookout::new(proc.path(), proc.path());
        let noted = || std::fs::read_to_string(proc.path().join("predecessor.json")).unwrap();
        assert_eq!(lookout.first().await, Predecessor::Gone);
        assert!(noted().contains("\"gone\":true"));
        let listener = UnixListener::bind(run.join("pluginevent.sock")).unwrap();
        assert_eq!(lookout.first().await, Predecessor::Lives);
        assert!(noted().contains("\"gone\":false"));
        // Killed, it leaves its socket's file behind.
        drop(listener);
        assert_eq!(lookout.look().await, Predecessor::Gone);
        // A restart or an upgrade leaves this too.
        std::fs::write(run.join("istio-cni-kubeconfig"), "").unwrap();
        assert_eq!(lookout.look().await, Predecessor::Away);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_only_restarts_is_not_gone_and_one_that_never_comes_back_is() {
        let proc = tempfile::tempdir().unwrap();
        let run = proc.path().join("1/root/run/istio-cni");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("istio-cni-kubeconfig"), "").unwrap();
        let lookout = Lookout::new(proc.path(), proc.path());
        let (tell, mut told) = watch::channel(lookout.first().await);
        assert_eq!(*told.borrow(), Predecessor::Away);
        let began = Instant::now();
        tokio::spawn(lookout.watch(tell));
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), Predecessor::Gone);
        assert!(began.elapsed() >= AWAY, "{:?}", began.elapsed());
        let _listener = UnixListener::bind(run.join("pluginevent.sock")).unwrap();
        told.changed().await.unwrap();
        assert_eq!(*told.borrow(), Predecessor::Lives);
    }
}
