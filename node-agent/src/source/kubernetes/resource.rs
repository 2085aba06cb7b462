//! The two resources that are followed: what is read of each object, and which events it makes.

use super::api::Target;
use super::pod::{self, PodObject};
use crate::names::{dns_label, dns_subdomain};
use crate::source::Event;
use serde::Deserialize;
use sluice_shared::contract::LABEL_DATAPLANE_MODE;
use sluice_shared::enroll::EnrollPolicy;
use sluice_shared::facts::{NamespaceFacts, PodFacts, StringMap};
use sluice_shared::ids::PodUid;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;

/// Objects as they are.
const JSON: &str = "application/json";
/// Only their metadata; as they are from a server that cannot cut them down.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// What every object has, as far as it is used. `managedFields` is passed over where it stands.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) labels: Option<StringMap>,
    pub(super) annotations: Option<StringMap>,
}

/// An object of which only the name matters, or one that cannot be read any further.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) metadata: Identity,
}

/// By what an object is known among those of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) resource_version: String,
}

/// A resource that is followed.
pub(super) trait Resource: Send + Sync + 'static {
    /// What the reconciler calls one of them by, and is told when it is gone.
    type Id: Clone + Debug + Eq + Hash + Send;
    /// What is known of one.
    type Facts: Hash + Send;
    /// For messages.
    const WHAT: &'static str;

    /// What to ask for all of them.
    fn list(&self) -> Target;
    /// What to ask for to be told of changes.
    fn watch(&self) -> Target;
    /// Reads an object. `None` is one that is not this node's.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(&self, json: &[u8]) -> Result<Option<Self::Facts>, String>;
    /// What one is called.
    fn id(facts: &Self::Facts) -> Self::Id;
    /// One that is there, or changed.
    fn there(facts: Self::Facts) -> Event;
    /// One that is gone.
    fn gone(id: Self::Id) -> Event;
}

/// This node's pods.
#[derive(Clone, Debug)]
pub(super) struct Pods {
    node: String,
    labels: WantedLabels,
}

/// All namespaces: their names and labels.
#[derive(Clone, Debug)]
pub(super) struct AllNamespaces {
    labels: WantedLabels,
}

/// The labels that any decision looks at. Others are not kept: an object may have a megabyte of them.
#[derive(Clone, Debug)]
pub(super) struct WantedLabels(BTreeSet<String>);

impl Identity {
    /// `namespace/name`, or the name alone.
    pub(super) fn key(&self) -> String {
        match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }
}

impl WantedLabels {
    pub(super) fn of(policy: &EnrollPolicy) -> Self {
        let selectors = policy.selectors.iter().flat_map(|s| [&s.pod_selector, &s.namespace_selector]);
        let keys = selectors.flat_map(|selector| {
            let expressions = selector.match_expressions.iter().map(|requirement| &requirement.key);
            selector.match_labels.keys().chain(expressions)
        });
        Self(keys.cloned().chain([LABEL_DATAPLANE_MODE.to_owned()]).collect())
    }

    pub(super) fn of_these(&self, labels: Option<StringMap>) -> StringMap {
        let mut labels = labels.unwrap_or_default();
        labels.retain(|key, _| self.0.contains(key));
        labels
    }
}

impl Pods {
    pub(super) fn new(node: &str, labels: WantedLabels) -> Self {
        Self { node: node.to_owned(), labels }
    }

    /// One pod by name. Both names must have been checked.
    pub(super) fn one(namespace: &str, name: &str) -> Target {
        Target::new(format!("/api/v1/namespaces/{namespace}/pods/{name}"), JSON)
    }
}

impl AllNamespaces {
    pub(super) fn new(labels: WantedLabels) -> Self {
        Self { labels }
    }
}

impl Resource for Pods {
    type Id = PodUid;
    type Facts = PodFacts;
    const WHAT: &'static str = "pods";

    fn list(&self) -> Target {
        Target::new("/api/v1/pods", JSON).with("fieldSelector", &format!("spec.nodeName={}", self.node))
    }

    fn watch(&self) -> Target {
        self.list()
    }

    fn read(&self, json: &[u8]) -> Result<Option<PodFacts>, String> {
        let object: PodObject = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if object.node() != self.node {
            return Ok(None);
        }
        pod::facts(object, &self.labels).map(Some)
    }

    fn id(facts: &PodFacts) -> PodUid {
        facts.uid.clone()
    }

    fn there(facts: PodFacts) -> Event {
        Event::Pod(Box::new(facts))
    }

    fn gone(uid: PodUid) -> Event {
        Event::PodGone(uid)
    }
}

impl Resource for AllNamespaces {
    type Id = String;
    type Facts = NamespaceFacts;
    const WHAT: &'static str = "namespaces";

    fn list(&self) -> Target {
        Target::new("/api/v1/namespaces", METADATA_LIST)
    }

    fn watch(&self) -> Target {
        Target::new("/api/v1/namespaces", METADATA)
    }

    fn read(&self, json: &[u8]) -> Result<Option<NamespaceFacts>, String> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        let Object { metadata } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        dns_label(&metadata.name).map_err(|why| format!("metadata.name: {why}"))?;
        let labels = self.labels.of_these(metadata.labels);
        Ok(Some(NamespaceFacts { name: metadata.name, labels }))
    }

    fn id(facts: &NamespaceFacts) -> String {
        facts.name.clone()
    }

    fn there(facts: NamespaceFacts) -> Event {
        Event::Namespace(facts)
    }

    fn gone(name: String) -> Event {
        Event::NamespaceGone(name)
    }
}

/// What the API server itself would refuse: it goes into paths, logs and messages.
pub(super) fn check_names(namespace: &str, name: &str) -> Result<(), String> {
    dns_label(namespace).map_err(|why| format!("metadata.namespace: {why}"))?;
    dns_subdomain(name).map_err(|why| format!("metadata.name: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_that_a_selector_names_are_kept() {
        let policy: Vec<_> = serde_json::from_str(
            r#"[{"podSelector":{"matchLabels":{"a":"1"}}},
                {"namespaceSelector":{"matchExpressions":[{"key":"b","operator":"Exists"}]}}]"#,
        )
        .unwrap();
        let wanted = WantedLabels::of(&EnrollPolicy { selectors: policy, ..EnrollPolicy::default() });
        let labels = ["a", "b", "c", LABEL_DATAPLANE_MODE].map(|key| (key.to_owned(), "x".to_owned()));
        let kept = wanted.of_these(Some(labels.into()));
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["a", "b", LABEL_DATAPLANE_MODE]);
    }

    #[test]
    fn a_namespace_is_read_whole_or_cut_down() {
        let namespaces = AllNamespaces::new(WantedLabels::of(&EnrollPolicy::default()));
        for json in [
            r#"{"kind":"PartialObjectMetadata","metadata":{"name":"shop","labels":{"istio.io/dataplane-mode":"ambient","x":"y"}}}"#,
            r#"{"kind":"Namespace","metadata":{"name":"shop","labels":{"istio.io/dataplane-mode":"ambient"}},"spec":{"finalizers":["kubernetes"]}}"#,
        ] {
            let facts = namespaces.read(json.as_bytes()).unwrap().unwrap();
            assert_eq!((facts.name.as_str(), facts.labels.len()), ("shop", 1));
        }
        assert!(namespaces.read(br#"{"metadata":{"name":"a/b"}}"#).unwrap_err().contains("DNS label"));
    }
}
