//! `source: file`: pods and namespaces from a YAML file, so that the agent runs with no API server.
//!
//! Each good version is compared with the good version before, and what changed is said as [`Event`]s. A version with a
//! mistake changes nothing: it is reported, and the one before stays in force.

mod inventory;
mod watch;

use crate::metrics::{Metrics, SourceKind};
use crate::source::{Event, Problem};
use crate::visible::printable;
pub use inventory::Inventory;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch as value};
use watch::Watch;

/// The longest file taken, in bytes. A node's 500 pods with long labels have less than one.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The source.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    metrics: Metrics,
    problem: value::Sender<Problem>,
    in_force: Option<Inventory>,
}

impl FileSource {
    /// A source that reads `path`, an absolute path, and tells what is wrong with it through the receiver.
    #[must_use]
    pub fn new(path: PathBuf, metrics: Metrics) -> (Self, value::Receiver<Problem>) {
        let (problem, receiver) = value::channel(None);
        (Self { path, metrics, problem, in_force: None }, receiver)
    }

    /// Says what the file says, and from then on what changes in it, until nobody listens any more.
    /// [`Event::Synced`] follows the first good version.
    pub async fn run(mut self, events: mpsc::Sender<Event>) {
        let mut watch = Watch::new(self.path.clone());
        loop {
            if self.reload(&events).await.is_err() {
                return;
            }
            tokio::select! {
                () = watch.changed() => {}
                () = events.closed() => return,
            }
        }
    }

    async fn reload(&mut self, events: &mpsc::Sender<Event>) -> Result<(), mpsc::error::SendError<Event>> {
        let path = self.path.clone();
        // Both reading and parsing may take long: a slow disk, a large file.
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let now = match read.unwrap_or_else(|error| Err(format!("the reader failed: {error}"))) {
            Ok(now) => now,
            Err(why) => {
                self.report(&why);
                return Ok(());
            }
        };
        let first = self.in_force.is_none();
        let changes = now.since(self.in_force.as_ref().unwrap_or(&Inventory::default()));
        if self.problem.send_replace(None).is_some() || first || !changes.is_empty() {
            let (namespaces, pods) = now.counts();
            let changes = changes.len();
            tracing::info!(file = %self.path.display(), namespaces, pods, changes, "the pods file is in force");
        }
        self.in_force = Some(now);
        for event in changes {
            events.send(event).await?;
        }
        if first {
            events.send(Event::Synced).await?;
        }
        Ok(())
    }

    /// Says once what is wrong, and until when what is in force.
    fn report(&self, why: &str) {
        let why = printable(why);
        let stays = match &self.in_force {
            Some(_) => "the last good version stays in force",
            None => "nothing is known of any pod until this is put right",
        };
        let problem = Some(format!("{}: {why}; {stays}", self.path.display()));
        if *self.problem.borrow() == problem {
            return;
        }
        self.metrics.source_error(SourceKind::File);
        tracing::error!(file = %self.path.display(), "the pods file cannot be used: {why}; {stays}");
        self.problem.send_replace(problem);
    }
}

fn read(path: &Path) -> Result<Inventory, String> {
    let text = read_text(path).map_err(|error| error.to_string())?;
    Inventory::parse(&text).map_err(|mistake| mistake.to_string())
}

/// Reads a regular file, and nothing else: opening must not wait for a pipe's other end, nor reading for a device.
fn read_text(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}
