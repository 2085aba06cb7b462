//! What the sources know of pods and namespaces: the input of every decision.

use crate::ids::{PodRef, PodUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Labels or annotations.
pub type StringMap = BTreeMap<String, String>;

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceFacts {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`
    #[serde(default)]
    pub labels: StringMap,
}

/// What is known of a pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodFacts {
    /// `metadata.uid`
    pub uid: PodUid,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `spec.serviceAccountName`; ztunnel finds the workload by (namespace, service account, name).
    #[serde(default = "default_service_account")]
    pub service_account: String,
    /// `metadata.labels`
    #[serde(default)]
    pub labels: StringMap,
    /// `metadata.annotations`
    #[serde(default)]
    pub annotations: StringMap,
    /// `spec.hostNetwork`
    #[serde(default)]
    pub host_network: bool,
    /// `status.phase`
    #[serde(default)]
    pub phase: Phase,
    /// `status.podIPs`; may be empty for a pod that has none yet.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Ports that the kubelet probes, for the probe strategy `source`.
    #[serde(default)]
    pub probe_ports: Vec<u16>,
    /// A path to the pod's network namespace, when the source knows it (`source: file`).
    #[serde(default)]
    pub netns: Option<String>,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, not all containers started.
    Pending,
    /// At least one container runs.
    #[default]
    Running,
    /// All containers ended well: the pod is done with the network.
    Succeeded,
    /// All containers ended, one badly: the pod is done with the network.
    Failed,
    /// The node could not be asked.
    Unknown,
}

impl Phase {
    /// Whether no container of the pod will run again.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl PodFacts {
    /// The pod by name.
    #[must_use]
    pub fn pod_ref(&self) -> PodRef {
        PodRef::new(&self.namespace, &self.name)
    }
}

fn default_service_account() -> String {
    "default".to_owned()
}
