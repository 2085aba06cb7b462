//! The cluster's pods, services and namespaces as the API server shows them, kept current by three watches, with a
//! log of every change: what the istiod stand-in goes by, and what the tests wait for and judge by.
//!
//! A watch is `kubectl get --raw`, so that no second Kubernetes client has to be trusted. When the API server goes
//! away, what was seen last stays; when it is back, a new list replaces it.

pub mod seen;

use anyhow::{Context, Result, bail};
use seen::{Name, Namespace, Object, Pod, Service};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Running watches. Dropping it ends them.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the API server has.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Pods by uid.
    pub pods: BTreeMap<String, Pod>,
    /// Services.
    pub services: BTreeMap<Name, Service>,
    /// Namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// A change, with when it was heard of.
#[derive(Clone, Debug)]
pub struct Change {
    /// When, by the machine's clock.
    pub at: SystemTime,
    /// What.
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug)]
pub enum What {
    /// It is new or different.
    Is(Object),
    /// The pod of this uid is gone.
    PodGone(String),
}

/// Starts `kubectl ARGS…` with its stdout piped, as the administrator, where the API server is reached.
pub type Kubectl = Arc<dyn Fn(&[&str]) -> Result<Child> + Send + Sync>;

struct Shared {
    kubectl: Kubectl,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    seen: Seen,
    log: Vec<Change>,
    /// How many lists have been complete.
    synced: BTreeSet<Kind>,
    children: BTreeMap<Kind, Child>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pods,
    Services,
    Namespaces,
}

/// Between two tries while the API server is away.
const PAUSE: Duration = Duration::from_millis(300);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Watch {
    /// Begins to watch, and waits until everything has been listed once.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub fn start(kubectl: Kubectl, patience: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            kubectl,
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let mut watch = Self { shared, threads: Vec::new() };
        for kind in Kind::ALL {
            let shared = Arc::clone(&watch.shared);
            let thread = std::thread::Builder::new().name(format!("watch {}", kind.path()));
            watch.threads.push(thread.spawn(move || shared.follow(kind))?);
        }
        let begun = Instant::now();
        let mut state = watch.shared.state();
        while state.synced.len() < Kind::ALL.len() {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                bail!("the API server did not list pods, services and namespaces within {patience:?}");
            }
            state = watch.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        Ok(watch)
    }

    /// What the API server has now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.state().seen.clone()
    }

    /// Everything that changed since the start, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Change> {
        self.shared.state().log.clone()
    }

    /// Looks with `look` after every change, until it finds something, for `patience` at most.
    ///
    /// # Errors
    /// What was waited for, with the last reason that `look` gave.
    pub fn until<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&Seen) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut state = self.shared.state();
        loop {
            let why = match look(&state.seen) {
                Ok(found) => return Ok(found),
                Err(why) => why,
            };
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(why.context(format!("waited {:.0} s for {what}", patience.as_secs_f32())));
            }
            // Some reasons are not the API server's, so it looks now and then without a change too.
            let pause = left.min(Duration::from_millis(200));
            state = self.shared.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until something has changed, for `patience` at most.
    pub fn wait(&self, patience: Duration) {
        let state = self.shared.state();
        drop(self.shared.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for child in self.shared.state().children.values_mut() {
            // One that has just ended needs no killing.
            let _ = child.kill();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Seen {
    /// The pod that is called so, the newest if an old one is still on its way out.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&Pod> {
        let mut found = self.pods.values().filter(|pod| pod.namespace == namespace && pod.name == name);
        let first = found.next().with_context(|| format!("there is no pod {namespace}/{name}"))?;
        Ok(found.find(|pod| !pod.deleting).unwrap_or(first))
    }

    /// The pods of a namespace that are not on their way out and carry this label.
    #[must_use]
    pub fn labelled(&self, namespace: &str, key: &str, value: &str) -> Vec<&Pod> {
        let here = self.pods.values().filter(|pod| pod.namespace == namespace && !pod.deleting);
        here.filter(|pod| pod.labels.get(key).is_some_and(|found| found == value)).collect()
    }

    fn apply(&mut self, object: Object) -> bool {
        match object {
            Object::Pod(pod) => {
                let uid = pod.uid.clone();
                self.pods.insert(uid, (*pod).clone()).as_ref() != Some(&*pod)
            }
            Object::Service(service) => {
                let name = (service.namespace.clone(), service.name.clone());
                self.services.insert(name, service.clone()) != Some(service)
            }
            Object::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace.clone()) != Some(namespace)
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn follow(&self, kind: Kind) {
        let address = format!(
            "/api/v1/{}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            kind.path()
        );
        while !self.stopped() {
            if let Ok(mut child) = (self.kubectl)(&["get", "--raw", &address]) {
                let stdout = child.stdout.take();
                self.state().children.insert(kind, child);
                let mut listed = Some(BTreeSet::new());
                for line in
                    stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok)
                {
                    if self.stopped() || self.hear(kind, &line, &mut listed).is_err() {
                        break;
                    }
                }
                let ended = self.state().children.remove(&kind);
                if let Some(mut child) = ended {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Takes in one event. `listed` collects the keys of the list until it is complete.
    fn hear(&self, kind: Kind, line: &str, listed: &mut Option<BTreeSet<String>>) -> Result<()> {
        let event: Value = serde_json::from_str(line).context("not an event")?;
        let object = &event["object"];
        let mut state = self.state();
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                let object = kind.parse(object)?;
                if let Some(listed) = listed {
                    listed.insert(key(&object));
                }
                state.apply(object);
            }
            Some("DELETED") => state.remove(kind, &key(&kind.parse(object)?)),
            // The one that ends the list; later ones say nothing that is needed here.
            Some("BOOKMARK") if object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true" => {
                if let Some(listed) = listed.take() {
                    state.keep_only(kind, &listed);
                    state.synced.insert(kind);
                }
            }
            Some("BOOKMARK") => {}
            _ => bail!("the watch ended: {line}"),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

impl State {
    fn apply(&mut self, object: Object) {
        if self.seen.apply(object.clone()) {
            self.log.push(Change { at: SystemTime::now(), what: What::Is(object) });
        }
    }

    fn remove(&mut self, kind: Kind, key: &str) {
        match kind {
            Kind::Pods => {
                if self.seen.pods.remove(key).is_some() {
                    self.log.push(Change { at: SystemTime::now(), what: What::PodGone(key.to_owned()) });
                }
            }
            Kind::Services => {
                self.seen.services.retain(|(namespace, name), _| format!("{namespace}/{name}") != key);
            }
            Kind::Namespaces => {
                self.seen.namespaces.remove(key);
            }
        }
    }

    /// After a list: what it did not have is gone.
    fn keep_only(&mut self, kind: Kind, listed: &BTreeSet<String>) {
        let known: Vec<String> = match kind {
            Kind::Pods => self.seen.pods.keys().cloned().collect(),
            Kind::Services => {
                self.seen.services.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
            }
            Kind::Namespaces => self.seen.namespaces.keys().cloned().collect(),
        };
        for gone in known.iter().filter(|key| !listed.contains(*key)) {
            self.remove(kind, gone);
        }
    }
}

impl Kind {
    const ALL: [Self; 3] = [Self::Pods, Self::Services, Self::Namespaces];

    fn path(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Namespaces => "namespaces",
        }
    }

    fn parse(self, object: &Value) -> Result<Object> {
        Ok(match self {
            Self::Pods => Object::Pod(Box::new(Pod::parse(object)?)),
            Self::Services => Object::Service(Service::parse(object)?),
            Self::Namespaces => Object::Namespace(Namespace::parse(object)?),
        })
    }
}

fn key(object: &Object) -> String {
    match object {
        Object::Pod(pod) => pod.uid.clone(),
        Object::Service(service) => format!("{}/{}", service.namespace, service.name),
        Object::Namespace(namespace) => namespace.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A "kubectl" that prints these lines to whoever watches pods, and an empty list to the others.
    fn printing(lines: &'static str) -> Kubectl {
        const END: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        Arc::new(move |args| {
            let lines = if args.iter().any(|arg| arg.contains("/pods?")) { lines } else { END };
            let mut command = Command::new("sh");
            command.args(["-c", "printf '%s\\n' \"$0\"; exec sleep 60", lines]);
            Ok(command.stdout(Stdio::piped()).spawn()?)
        })
    }

    const PODS: &str = r#"{"type":"ADDED","object":{"metadata":{"uid":"1","namespace":"demo","name":"a"}}}
{"type":"ADDED","object":{"metadata":{"uid":"2","namespace":"demo","name":"b"}}}
{"type":"BOOKMARK","object":{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}}
{"type":"MODIFIED","object":{"metadata":{"uid":"2","namespace":"demo","name":"b"},"status":{"phase":"Running"}}}
{"type":"DELETED","object":{"metadata":{"uid":"1","namespace":"demo","name":"a"}}}"#;

    #[test]
    fn events_become_what_is_there_and_a_log() {
        let watch = Watch::start(printing(PODS), Duration::from_secs(10)).unwrap();
        let patience = Duration::from_secs(10);
        watch
            .until("a to go", patience, |seen| {
                anyhow::ensure!(seen.pod("demo", "a").is_err() && seen.pod("demo", "b")?.phase == "Running");
                Ok(())
            })
            .unwrap();
        let log = watch.log();
        assert_eq!(log.len(), 4, "{log:?}");
        assert!(matches!(&log[3].what, What::PodGone(uid) if uid == "1"));
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut state = State::default();
        for uid in ["1", "2"] {
            state.apply(Object::Pod(Box::new(Pod { uid: uid.into(), ..Pod::default() })));
        }
        state.keep_only(Kind::Pods, &BTreeSet::from(["2".to_owned()]));
        assert_eq!(state.seen.pods.keys().collect::<Vec<_>>(), ["2"]);
        assert!(matches!(&state.log[2].what, What::PodGone(uid) if uid == "1"));
    }
}
