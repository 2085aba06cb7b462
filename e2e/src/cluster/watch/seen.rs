//! What is kept of the API server's objects: what istiod needs, and what the tests look at.

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_shared::contract::{ANNOTATION_REDIRECTION, ANNOTATION_SIDECAR};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A namespace and a name.
pub type Name = (String, String);

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// `spec.nodeName`; empty until it is scheduled.
    pub node: String,
    /// `status.podIPs`
    pub ips: Vec<IpAddr>,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// The annotation that istiod reads.
    pub redirection: Option<String>,
    /// Whether a sidecar was injected.
    pub sidecar: bool,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `status.phase`
    pub phase: String,
    /// Its condition `Ready`.
    pub ready: bool,
    /// The restarts of all of its containers, init containers included.
    pub restarts: u64,
    /// The restarts of the container that was restarted most often.
    pub most_restarts: u64,
    /// Whether its deletion has begun.
    pub deleting: bool,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.clusterIPs`, without `None`.
    pub vips: Vec<IpAddr>,
    /// Port to target port. Named target ports are left out: the tests use none.
    pub ports: BTreeMap<u16, u16>,
    /// `spec.selector`; a service without one has no pods.
    pub selector: BTreeMap<String, String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
}

/// Something that the API server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Box<Pod>),
    /// A service.
    Service(Service),
    /// A namespace.
    Namespace(Namespace),
}

impl Pod {
    /// Reads a `v1.Pod`.
    ///
    /// # Errors
    /// When it has no name or no uid.
    pub fn parse(object: &Value) -> Result<Self> {
        let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
        let annotation = |key: &str| meta["annotations"][key].as_str().map(str::to_owned);
        let statuses = ["initContainerStatuses", "containerStatuses"].map(|key| status[key].as_array());
        let restarts = statuses.into_iter().flatten().flatten();
        let restarts: Vec<u64> =
            restarts.filter_map(|container| container["restartCount"].as_u64()).collect();
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        Ok(Self {
            uid: text(&meta["uid"]).context("a pod without a uid")?,
            namespace: text(&meta["namespace"]).context("a pod without a namespace")?,
            name: text(&meta["name"]).context("a pod without a name")?,
            service_account: text(&spec["serviceAccountName"]).unwrap_or_else(|| "default".into()),
            node: text(&spec["nodeName"]).unwrap_or_default(),
            ips: addresses(&status["podIPs"], |entry| &entry["ip"]),
            labels: strings(&meta["labels"]),
            redirection: annotation(ANNOTATION_REDIRECTION),
            sidecar: annotation(ANNOTATION_SIDECAR).is_some(),
            host_network: spec["hostNetwork"] == true,
            phase: text(&status["phase"]).unwrap_or_default(),
            ready: ready.any(|condition| condition["status"] == "True"),
            restarts: restarts.iter().sum(),
            most_restarts: restarts.into_iter().max().unwrap_or_default(),
            deleting: !meta["deletionTimestamp"].is_null(),
        })
    }

    /// Whether istiod would tell peers to reach it over HBONE: it goes by the annotation alone.
    #[must_use]
    pub fn hbone(&self) -> bool {
        self.redirection.as_deref() == Some("enabled")
    }

    /// Whether it will never run again.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// `namespace/name`
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Service {
    /// Reads a `v1.Service`.
    ///
    /// # Errors
    /// When it has no name.
    pub fn parse(object: &Value) -> Result<Self> {
        let (meta, spec) = (&object["metadata"], &object["spec"]);
        let ports = spec["ports"].as_array().into_iter().flatten();
        let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            namespace: text(&meta["namespace"]).context("a service without a namespace")?,
            name: text(&meta["name"]).context("a service without a name")?,
            vips: addresses(&spec["clusterIPs"], |entry| entry),
            ports: ports
                .filter_map(|port| Some((number(&port["port"])?, number(&port["targetPort"])?)))
                .collect(),
            selector: strings(&spec["selector"]),
        })
    }

    /// Whether it sends connections to `pod`.
    #[must_use]
    pub fn selects(&self, pod: &Pod) -> bool {
        let matching = self.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        !self.selector.is_empty() && matching && self.namespace == pod.namespace
    }
}

impl Namespace {
    /// Reads a `v1.Namespace`.
    ///
    /// # Errors
    /// When it has no name.
    pub fn parse(object: &Value) -> Result<Self> {
        let meta = &object["metadata"];
        let name = text(&meta["name"]).context("a namespace without a name")?;
        Ok(Self { name, labels: strings(&meta["labels"]) })
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn addresses(list: &Value, of: fn(&Value) -> &Value) -> Vec<IpAddr> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| of(entry).as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(extra: &Value) -> Pod {
        let mut object = json!({
            "metadata": {"uid": "u", "namespace": "demo", "name": "a", "labels": {"app": "a"}},
            "spec": {"nodeName": "node1", "serviceAccountName": "sa"},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": "10.77.1.2"}, {"ip": "fd00::2"}],
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "initContainerStatuses": [{"restartCount": 1}],
                "containerStatuses": [{"restartCount": 2}],
            },
        });
        for (path, value) in extra.as_object().into_iter().flatten() {
            *object.pointer_mut(path).unwrap() = value.clone();
        }
        Pod::parse(&object).unwrap()
    }

    #[test]
    fn a_pod_is_read() {
        let pod = pod(&json!({}));
        assert_eq!(pod.ips, ["10.77.1.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!(pod.most_restarts, 2);
        assert_eq!((pod.restarts, pod.ready, pod.deleting, pod.hbone()), (3, true, false, false));
        assert!(Pod::parse(&json!({"metadata": {"name": "a"}})).is_err());
    }

    #[test]
    fn a_service_selects_by_all_its_labels_in_its_namespace() {
        let service = |selector: Value| {
            let object = json!({
                "metadata": {"namespace": "demo", "name": "echo"},
                "spec": {
                    "clusterIPs": ["10.96.0.9", "None"],
                    "selector": selector,
                    "ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "named"}],
                },
            });
            Service::parse(&object).unwrap()
        };
        assert!(service(json!({"app": "a"})).selects(&pod(&json!({}))));
        assert!(!service(json!({"app": "a", "b": "c"})).selects(&pod(&json!({}))));
        assert!(!service(json!({})).selects(&pod(&json!({}))));
        assert_eq!(service(json!({})).ports, BTreeMap::from([(80, 8080)]));
        assert_eq!(service(json!({})).vips.len(), 1);
    }
}
