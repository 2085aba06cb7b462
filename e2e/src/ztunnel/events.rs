//! What the stand-in says: one JSON object a line on stdout, and the count of the agent's faults.
//!
//! | `event` | when | more keys |
//! |---|---|---|
//! | `connected`, `disconnected`, `no-agent` | the session begins, ends, cannot begin | `why`, `error` |
//! | `add` | an Add was carried out, or a pending pod was started | `uid`, `inode`, `known` when nothing changed |
//! | `pending` | a pod's listeners cannot be bound | `uid`, `inode`, `error` |
//! | `keep`, `del` | so asked | `uid`, `known` |
//! | `snapshot`, `reconciled-away` | the snapshot's end, and what it removed | `pods`, `removed`, `keptUnserved`; `uid` |
//! | `ready` | readiness begins | |
//! | `nack`, `protocol-error` | a request was refused, the agent was at fault | `error`, `detail` |
//! | `conn`, `conn-end` | a connection, or a DNS question | `uid`, `direction`, `src`, `dst`, `mtls`, `target`, `identity`, `name`; at its end `sent`, `received`, `ms`, `error` |
//! | `conn-refused`, `accept-error` | a connection that never was one | `uid`, `src`, `error` |
//! | `workloads`, `workloads-error` | a changed workloads file is in force, or cannot be read | `error` |
//! | `hanging` | `--hang-after` came true | `answered` |
//! | `exit` | the end | `faults`, `cut`, `error` |

use serde_json::{Value, json};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where events go. Cheap to clone; every clone counts into the same total.
///
/// A thread of its own writes, so that a reader who is slow or gone never stops a connection.
#[derive(Clone)]
pub struct Events {
    lines: Arc<Mutex<Sender<Line>>>,
    faults: Arc<AtomicU64>,
    strict: bool,
}

enum Line {
    Event(Value),
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

impl Events {
    /// Events to stdout. With `strict`, the agent's faults are counted.
    #[must_use]
    pub fn to_stdout(strict: bool) -> Self {
        let (lines, queue) = mpsc::channel();
        std::thread::spawn(move || {
            for line in queue {
                match line {
                    // A closed stdout is the reader's choice; the traffic goes on.
                    Line::Event(value) => drop(writeln!(std::io::stdout().lock(), "{value}")),
                    Line::Flush(done) => drop(done.send(())),
                }
            }
        });
        Self { lines: Arc::new(Mutex::new(lines)), faults: Arc::default(), strict }
    }

    /// Says `value`, an object with a key `event`.
    pub fn say(&self, value: Value) {
        self.send(Line::Event(value));
    }

    /// Says what the node agent did wrong; with strict mode on, the process will exit non-zero.
    pub fn fault(&self, detail: impl Into<String>) {
        if self.strict {
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.say(json!({"event": "protocol-error", "detail": detail.into()}));
        }
    }

    /// How often the agent was at fault so far; always 0 when not strict.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Waits, for a second at most, until everything said is written.
    pub fn flush(&self) {
        let (done, written) = mpsc::channel();
        self.send(Line::Flush(done));
        let _ = written.recv_timeout(Duration::from_secs(1));
    }

    fn send(&self, line: Line) {
        // The writer lives as long as the process, so this fails only while it ends.
        let _ = self.lines.lock().unwrap_or_else(PoisonError::into_inner).send(line);
    }
}
