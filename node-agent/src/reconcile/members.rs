//! Keeps `/var/lib/sluice/membership.json` true: what the plugin goes by while no agent answers.
//!
//! Written at once when a namespace enters the mesh or first holds a pod of it, by a task of its own so that nothing
//! waits for the disk but what must: an ADD that enrols the first pod of a namespace.

use crate::durable::{self, Sync};
use sluice_shared::contract::MEMBERSHIP_FILE;
use sluice_shared::enroll::{EnrollPolicy, namespace_in_mesh};
use sluice_shared::facts::NamespaceFacts;
use sluice_shared::membership::{
    self, Fallback, MEMBERSHIP_VERSION, Membership, Standing, WhenAgentUnavailable,
};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The membership file, and what it should say.
pub struct Members {
    path: PathBuf,
    state: Mutex<Known>,
}

struct Known {
    wanted: Membership,
    written: Option<Membership>,
    /// Namespaces that this run of the source has shown. What it has not shown by its first complete list is gone.
    shown: BTreeSet<String>,
    synced: bool,
}

impl Members {
    /// Takes over what the file says; one that cannot be read counts as absent, and is replaced.
    ///
    /// # Errors
    /// When the state directory cannot be made.
    pub fn open(state_dir: &Path, when_agent_unavailable: WhenAgentUnavailable) -> io::Result<Self> {
        durable::private_dir(state_dir)?;
        let path = state_dir.join(MEMBERSHIP_FILE);
        let written = read(&path);
        let mut wanted = written.clone().unwrap_or_default();
        wanted.when_agent_unavailable = when_agent_unavailable;
        let state = Known { wanted, written, shown: BTreeSet::new(), synced: false };
        Ok(Self { path, state: Mutex::new(state) })
    }

    /// A namespace is there, changed, or (`None`) gone.
    pub fn namespace(&self, name: &str, facts: Option<&NamespaceFacts>, policy: &EnrollPolicy) {
        let mut state = self.lock();
        let held = matches!(state.wanted.namespaces.get(name), Some(Standing::Held | Standing::In));
        match facts {
            Some(facts) => {
                let standing = match (namespace_in_mesh(facts, policy), held) {
                    (true, _) => Standing::In,
                    (false, true) => Standing::Held,
                    (false, false) => Standing::Out,
                };
                state.wanted.namespaces.insert(name.to_owned(), standing);
                state.shown.insert(name.to_owned());
            }
            None => {
                state.wanted.namespaces.remove(name);
            }
        }
        if state.synced {
            self.write(&mut state);
        }
    }

    /// The source has said everything: namespaces that it did not show are gone.
    pub fn synced(&self) {
        let mut state = self.lock();
        let shown = std::mem::take(&mut state.shown);
        state.wanted.namespaces.retain(|name, _| shown.contains(name));
        state.synced = true;
        self.write(&mut state);
    }

    /// A pod of this namespace is in the mesh by a label of its own.
    pub fn holds_a_pod(&self, name: &str) {
        let mut state = self.lock();
        let standing = state.wanted.namespaces.get(name);
        if !matches!(standing, Some(Standing::In | Standing::Held)) {
            state.wanted.namespaces.insert(name.to_owned(), Standing::Held);
            self.write(&mut state);
        }
    }

    /// What the plugin would do for a pod of this namespace with no agent to ask.
    #[must_use]
    pub fn without_source(&self, namespace: &str) -> Fallback {
        membership::without_agent(self.lock().written.as_ref(), namespace)
    }

    fn write(&self, state: &mut Known) {
        if state.written.as_ref() == Some(&state.wanted) {
            return;
        }
        let result = serde_json::to_vec_pretty(&state.wanted)
            .map_err(io::Error::from)
            .and_then(|bytes| durable::replace(&self.path, &bytes, Sync::Yes));
        match result {
            Ok(()) => state.written = Some(state.wanted.clone()),
            Err(error) => tracing::error!(path = %self.path.display(), %error,
                "the membership file cannot be written: while the agent is down, the plugin goes by an old one"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Option<Membership> {
    match std::fs::read(path) {
        Ok(bytes) => match serde_json::from_slice::<Membership>(&bytes) {
            Ok(membership) if membership.version == MEMBERSHIP_VERSION => Some(membership),
            Ok(other) => {
                tracing::warn!(path = %path.display(), version = other.version, "membership file of another version; replaced");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "membership file cannot be read; replaced");
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "membership file cannot be read; replaced");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_shared::facts::StringMap;

    fn namespace(name: &str, mode: Option<&str>) -> NamespaceFacts {
        let labels = mode.map(|mode| ("istio.io/dataplane-mode".to_owned(), mode.to_owned()));
        NamespaceFacts { name: name.into(), labels: StringMap::from_iter(labels) }
    }

    #[test]
    fn a_namespace_that_leaves_is_held_and_one_that_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let policy = EnrollPolicy::default();
        let members = Members::open(dir.path(), WhenAgentUnavailable::Auto).unwrap();
        for (name, mode) in [("mesh", Some("ambient")), ("plain", None), ("former", Some("ambient"))] {
            members.namespace(name, Some(&namespace(name, mode)), &policy);
        }
        assert_eq!(members.without_source("mesh"), Fallback::Pass("no agent has served on this node yet"));
        members.synced();
        members.namespace("former", Some(&namespace("former", None)), &policy);
        members.holds_a_pod("plain");
        let file = read(&dir.path().join(MEMBERSHIP_FILE)).unwrap();
        assert_eq!(file.namespaces["mesh"], Standing::In);
        assert_eq!(file.namespaces["former"], Standing::Held);
        assert_eq!(file.namespaces["plain"], Standing::Held);

        let later = Members::open(dir.path(), WhenAgentUnavailable::Auto).unwrap();
        assert!(matches!(later.without_source("former"), Fallback::Wait(_)));
        later.namespace("mesh", Some(&namespace("mesh", Some("ambient"))), &policy);
        later.synced();
        let file = read(&dir.path().join(MEMBERSHIP_FILE)).unwrap();
        assert_eq!(file.namespaces.keys().collect::<Vec<_>>(), ["mesh"]);
    }
}
