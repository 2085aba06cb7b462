//! What was said of one resource, as little as tells a change from a repetition.

use super::resource::Resource;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

/// Every object that has been said, by its key.
pub(super) struct Known<R: Resource> {
    said: HashMap<String, Said<R::Id>>,
    /// Keyed by chance at each start: nobody can make two facts that look alike.
    hasher: RandomState,
    /// The keys that a list has shown so far, while one is being read.
    listed: Option<HashSet<String>>,
    /// Objects that could not be used, and why: so that each is said once.
    unfit: HashMap<String, String>,
}

/// One object.
struct Said<Id> {
    id: Id,
    facts: u64,
}

/// What an object changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<Id> {
    /// Nothing: it has been said.
    None,
    /// It is to be said. One of the same name, if there was one, has gone.
    There {
        /// What the name stood for before.
        instead_of: Option<Id>,
    },
    /// Another object goes by this id: it cannot be told apart.
    Taken(String),
}

impl<R: Resource> Known<R> {
    pub(super) fn new() -> Self {
        Self { said: HashMap::new(), hasher: RandomState::new(), listed: None, unfit: HashMap::new() }
    }

    /// A list begins: what it does not show will be gone.
    pub(super) fn begin_list(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list has ended well. What it did not show is gone.
    pub(super) fn end_list(&mut self) -> Vec<R::Id> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        self.unfit.retain(|key, _| listed.contains(key));
        let gone = self.said.extract_if(|key, _| !listed.contains(key));
        gone.map(|(_, said)| said.id).collect()
    }

    /// An object is there.
    pub(super) fn there(&mut self, key: &str, id: &R::Id, facts: &R::Facts) -> Change<R::Id> {
        self.unfit.remove(key);
        self.note_listed(key);
        let facts = self.hasher.hash_one(facts);
        let before = self.said.get(key);
        if before.is_some_and(|said| said.id == *id && said.facts == facts) {
            return Change::None;
        }
        let same_id = before.is_some_and(|said| said.id == *id);
        if !same_id && let Some((other, _)) = self.said.iter().find(|(_, said)| said.id == *id) {
            return Change::Taken(other.clone());
        }
        let before = self.said.insert(key.to_owned(), Said { id: id.clone(), facts });
        Change::There { instead_of: before.map(|said| said.id).filter(|before| before != id) }
    }

    /// An object is there and cannot be used: what was known of it stays. `true` when that has not been said yet.
    pub(super) fn unfit(&mut self, key: &str, why: &str) -> bool {
        self.note_listed(key);
        self.unfit.insert(key.to_owned(), why.to_owned()).as_deref() != Some(why)
    }

    /// An object is gone. Its id, if it had been said.
    pub(super) fn gone(&mut self, key: &str) -> Option<R::Id> {
        self.unfit.remove(key);
        if let Some(listed) = &mut self.listed {
            listed.remove(key);
        }
        self.said.remove(key).map(|said| said.id)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.said.len()
    }

    fn note_listed(&mut self, key: &str) {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::resource::AllNamespaces;
    use sluice_shared::facts::{NamespaceFacts, StringMap};

    fn there(known: &mut Known<AllNamespaces>, key: &str, id: &str, label: &str) -> Change<String> {
        let labels = StringMap::from([("l".to_owned(), label.to_owned())]);
        known.there(key, &id.to_owned(), &NamespaceFacts { name: id.to_owned(), labels })
    }

    #[test]
    fn only_what_is_new_is_said() {
        let mut known = Known::new();
        assert_eq!(there(&mut known, "a", "1", "x"), Change::There { instead_of: None });
        assert_eq!(there(&mut known, "a", "1", "x"), Change::None);
        assert_eq!(there(&mut known, "a", "1", "y"), Change::There { instead_of: None });
        assert_eq!(there(&mut known, "a", "2", "y"), Change::There { instead_of: Some("1".into()) });
        assert_eq!(there(&mut known, "b", "2", "y"), Change::Taken("a".into()));
        assert_eq!((known.gone("a"), known.gone("a")), (Some("2".into()), None));
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_show_and_only_at_its_end() {
        let mut known = Known::new();
        for key in ["a", "b", "c", "d"] {
            there(&mut known, key, key, "x");
        }
        known.begin_list();
        there(&mut known, "a", "a", "x");
        assert!(known.unfit("b", "why"), "it is there, though nobody can read it");
        assert!(!known.unfit("b", "why"), "said once");
        // One that broke off is begun anew.
        known.begin_list();
        there(&mut known, "a", "a", "x");
        known.unfit("b", "why");
        assert_eq!(known.gone("d"), Some("d".into()));
        assert_eq!(known.end_list(), ["c"]);
        assert!(known.end_list().is_empty());
        assert_eq!(known.len(), 2);
    }
}
