//! Keeps `/var/lib/sluice/membership.json` true: what the plugin goes by while no agent answers.
//!
//! A task of its own writes the file whenever what it should say changes: whoever says so only takes note of it and
//! waits for no disk. Who must know that it is durable waits for [`Members::settled`]. Nothing is written before the
//! source has said everything: a file with half of what is in the mesh is worse than the old one.

use crate::durable::{self, Sync};
use sluice_shared::contract::MEMBERSHIP_FILE;
use sluice_shared::enroll::{EnrollPolicy, namespace_in_mesh};
use sluice_shared::facts::NamespaceFacts;
use sluice_shared::membership::{
    self, Fallback, MAX_MEMBERSHIP_FILE, Membership, Standing, WhenAgentUnavailable,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// After a write that failed, the next one is tried this much later, then twice as late each time.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The membership file, and what it should say.
pub struct Members {
    path: PathBuf,
    state: Mutex<Known>,
    wanted: watch::Sender<Wanted>,
    on_disk: watch::Receiver<OnDisk>,
}

struct Known {
    content: Membership,
    /// Namespaces that this run has heard of. Others are gone once the source has said everything.
    shown: BTreeSet<String>,
    synced: bool,
}

/// What the file should say.
#[derive(Clone, Default)]
struct Wanted {
    /// Counts the changes; at 0 nothing is to be written yet.
    revision: u64,
    content: Membership,
}

/// How far the writer has come.
struct OnDisk {
    /// The last revision that is durable.
    revision: u64,
    file: Found,
    /// The last try, if it failed: which revision, and why.
    failure: Option<(u64, String)>,
}

/// What is at the file's path.
enum Found {
    Absent,
    Unreadable,
    Says(Membership),
}

impl Members {
    /// Takes over what the file says, and starts its writer. Call it within a Tokio runtime.
    ///
    /// # Errors
    /// When the state directory cannot be made.
    pub fn open(state_dir: &Path, when_agent_unavailable: WhenAgentUnavailable) -> io::Result<Self> {
        durable::private_dir(state_dir)?;
        let path = state_dir.join(MEMBERSHIP_FILE);
        let file = read(&path);
        let mut content = match &file {
            Found::Says(membership) => membership.clone(),
            Found::Absent | Found::Unreadable => Membership::default(),
        };
        content.when_agent_unavailable = when_agent_unavailable;
        let (wanted, tasks) = watch::channel(Wanted::default());
        let (progress, on_disk) = watch::channel(OnDisk { revision: 0, file, failure: None });
        tokio::spawn(keep_written(path.clone(), tasks, progress));
        let state = Mutex::new(Known { content, shown: BTreeSet::new(), synced: false });
        Ok(Self { path, state, wanted, on_disk })
    }

    /// A namespace is there, changed, or (`None`) gone.
    pub fn namespace(&self, name: &str, facts: Option<&NamespaceFacts>, policy: &EnrollPolicy) {
        let mut state = self.lock();
        let held = matches!(state.content.namespaces.get(name), Some(Standing::Held | Standing::In));
        match facts {
            Some(facts) => {
                let standing = match (namespace_in_mesh(facts, policy), held) {
                    (true, _) => Standing::In,
                    (false, true) => Standing::Held,
                    (false, false) => Standing::Out,
                };
                state.content.namespaces.insert(name.to_owned(), standing);
                state.shown.insert(name.to_owned());
            }
            None => {
                state.content.namespaces.remove(name);
            }
        }
        self.publish(&state);
    }

    /// The source has said everything: namespaces of which nothing was heard are gone.
    pub fn synced(&self) {
        let mut state = self.lock();
        let shown = std::mem::take(&mut state.shown);
        state.content.namespaces.retain(|name, _| shown.contains(name));
        state.synced = true;
        self.publish(&state);
    }

    /// A pod of this namespace is in the mesh by a label of its own. Returns at once; see [`Self::settled`].
    pub fn holds_a_pod(&self, name: &str) {
        let mut state = self.lock();
        let standing = state.content.namespaces.get(name);
        if !matches!(standing, Some(Standing::In | Standing::Held)) {
            state.content.namespaces.insert(name.to_owned(), Standing::Held);
        }
        if !state.synced {
            state.shown.insert(name.to_owned());
        }
        self.publish(&state);
    }

    /// Waits until everything that was said so far is in the file, and would survive a power cut. Before the source
    /// has said everything, that includes waiting for it.
    ///
    /// # Errors
    /// When the last try to write it failed; the writer goes on trying.
    pub async fn settled(&self) -> Result<(), String> {
        let ended = |_| "the membership file's writer has ended".to_owned();
        let revision =
            self.wanted.subscribe().wait_for(|wanted| wanted.revision > 0).await.map_err(ended)?.revision;
        let mut on_disk = self.on_disk.clone();
        let tried = |disk: &OnDisk| disk.revision.max(disk.failure.as_ref().map_or(0, |(tried, _)| *tried));
        let disk = on_disk.wait_for(|disk| tried(disk) >= revision).await.map_err(ended)?;
        match &disk.failure {
            Some((_, why)) if disk.revision < revision => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Has the file written anew where somebody has removed it: without it the plugin would let pods of the mesh pass while no
    /// agent answers.
    pub fn look(&self) {
        let is_missing =
            matches!(self.path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        let written = self.on_disk.borrow().revision;
        self.wanted.send_if_modified(|wanted| {
            // Else a write is under way.
            let again = is_missing && written > 0 && wanted.revision == written;
            wanted.revision += u64::from(again);
            again
        });
    }

    /// Whether the last try to write the file failed: without an agent, the plugin would go by an old one.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.on_disk.borrow().failure.is_some()
    }

    /// What the plugin would do for a pod of this namespace with no agent to ask.
    #[must_use]
    pub fn without_source(&self, namespace: &str) -> Fallback {
        match &self.on_disk.borrow().file {
            Found::Absent => membership::without_agent(None, namespace),
            Found::Unreadable => membership::with_unreadable_file(namespace),
            Found::Says(membership) => membership::without_agent(Some(membership), namespace),
        }
    }

    /// Hands the writer what the file should say, if that is another thing than before. The first time it always is:
    /// a file that an agent left when it was killed may not be durable yet.
    fn publish(&self, state: &Known) {
        if !state.synced {
            return;
        }
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.revision == 0 || wanted.content != state.content;
            if changed {
                wanted.revision += 1;
                wanted.content = state.content.clone();
            }
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is wanted, the newest only, until [`Members`] is gone and the last of it is written.
async fn keep_written(path: PathBuf, mut wanted: watch::Receiver<Wanted>, progress: watch::Sender<OnDisk>) {
    let mut retry = RETRY_MIN;
    loop {
        let durable = progress.borrow().revision;
        let next = wanted.wait_for(|wanted| wanted.revision > durable).await.map(|next| next.clone());
        let Ok(Wanted { revision, content }) = next else { return };
        match write(&path, &content).await {
            Ok(()) => {
                retry = RETRY_MIN;
                progress.send_replace(OnDisk { revision, file: Found::Says(content), failure: None });
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, again_after = ?retry,
                    "the membership file cannot be written: while the agent is down, the plugin goes by an old one");
                let why = format!("{} cannot be written: {error}", path.display());
                progress.send_modify(|disk| disk.failure = Some((revision, why)));
                // A change is tried at once: somebody may wait for it.
                if let Ok(Err(_)) = tokio::time::timeout(retry, wanted.changed()).await {
                    return;
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// One write, on a thread that may block.
async fn write(path: &Path, content: &Membership) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(content)?;
    let path = path.to_owned();
    let writing = tokio::task::spawn_blocking(move || durable::replace(&path, &bytes, Sync::Yes));
    writing.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn read(path: &Path) -> Found {
    let bytes = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Absent,
        opened => opened.and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_MEMBERSHIP_FILE as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
        }),
    };
    let parsed = match bytes {
        Ok(bytes) => Membership::parse(&bytes).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    parsed.map_or_else(
        |why| {
            tracing::warn!(path = %path.display(), why,
                "the membership file cannot be read: pods wait until the source has said everything, and it is replaced");
            Found::Unreadable
        },
        Found::Says,
    )
}

#[cfg(test)]
mod tests;
