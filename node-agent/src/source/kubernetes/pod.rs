//! From a pod as the API server has it to what decisions need of it. Pure.

use super::resource::{Metadata, WantedLabels, check_names};
use crate::names::dns_subdomain;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sluice_shared::contract::{
    ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE, ANNOTATION_REDIRECTION, ANNOTATION_REROUTE_INTERFACES,
    ANNOTATION_SIDECAR,
};
use sluice_shared::facts::{Phase, PodFacts, StringMap};
use sluice_shared::ids::PodUid;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// On the object that stands for a static pod: the uid by which kubelet, runtime and so the plugin know the pod.
const ANNOTATION_MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotations that are kept.
const ANNOTATIONS: [&str; 5] = [
    ANNOTATION_BYPASS_INBOUND,
    ANNOTATION_DNS_CAPTURE,
    ANNOTATION_REDIRECTION,
    ANNOTATION_REROUTE_INTERFACES,
    ANNOTATION_SIDECAR,
];

/// A pod, as far as it is read. Whatever else the object has is passed over.
#[derive(Debug, Deserialize)]
pub(super) struct PodObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: String,
    host_network: bool,
    service_account_name: String,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    restart_policy: String,
    ports: Option<Vec<ContainerPort>>,
    liveness_probe: Option<Handler>,
    readiness_probe: Option<Handler>,
    startup_probe: Option<Handler>,
    lifecycle: Option<Lifecycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: String,
    container_port: u32,
}

/// What the kubelet calls after a container's start and before its end. It comes from the node, as probes do.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Lifecycle {
    post_start: Option<Handler>,
    pre_stop: Option<Handler>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Handler {
    http_get: Option<Call>,
    tcp_socket: Option<Call>,
    grpc: Option<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    /// Where it goes, if not to the pod.
    #[serde(default)]
    host: String,
    port: Port,
}

/// `IntOrString`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u32),
    Name(String),
    Other(IgnoredAny),
}

impl PodObject {
    /// `spec.nodeName`
    pub(super) fn node(&self) -> &str {
        &self.spec.node_name
    }
}

/// What decisions need of a pod.
///
/// # Errors
/// Which field could not be used, and why: names and uid must be what the API server takes.
pub(super) fn facts(object: PodObject, labels: &WantedLabels) -> Result<PodFacts, String> {
    let PodObject { metadata, spec, status } = object;
    check_names(&metadata.namespace, &metadata.name)?;
    let service_account = match spec.service_account_name.as_str() {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    dns_subdomain(&service_account).map_err(|why| format!("spec.serviceAccountName: {why}"))?;
    let mut annotations = metadata.annotations.unwrap_or_default();
    let uid = uid(metadata.uid, &annotations)?;
    annotations.retain(|key, _| ANNOTATIONS.contains(&key.as_str()));
    Ok(PodFacts {
        uid,
        name: metadata.name,
        namespace: metadata.namespace,
        service_account,
        labels: labels.of_these(metadata.labels),
        annotations,
        host_network: spec.host_network,
        phase: phase(&status.phase),
        ips: ips(&status),
        probe_ports: probe_ports(&spec),
        netns: None,
    })
}

/// A static pod's uid is the MD5 of its manifest, in hex, and its object has another one. Anybody may write the
/// annotation; since no ordinary uid looks like this, it cannot pass a pod off for an ordinary one. Nor for a static one: facts are the
/// pod's only under the name that ADD and the runtime give it.
fn uid(of_object: String, annotations: &StringMap) -> Result<PodUid, String> {
    let of_manifest = annotations.get(ANNOTATION_MIRROR).filter(|text| is_static(text));
    PodUid::new(of_manifest.cloned().unwrap_or(of_object)).map_err(|error| format!("metadata.uid: {error}"))
}

/// Whether a uid is one that the kubelet makes for a pod from its own manifests.
pub(super) fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn phase(text: &str) -> Phase {
    match text {
        "" | "Pending" => Phase::Pending,
        "Running" => Phase::Running,
        "Succeeded" => Phase::Succeeded,
        "Failed" => Phase::Failed,
        _ => Phase::Unknown,
    }
}

/// The pod's addresses, in their order; what cannot be one is left out.
fn ips(status: &Status) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten().map(|entry| &entry.ip);
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in listed.chain([&status.pod_ip]) {
        let Ok(ip) = text.parse::<IpAddr>() else { continue };
        let ip = ip.to_canonical();
        let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if usable && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

/// The ports that the kubelet itself connects to, sorted: probes and hooks of containers and of native sidecars.
fn probe_ports(spec: &Spec) -> Vec<u16> {
    let sidecars = spec.init_containers.iter().flatten().filter(|init| init.restart_policy == "Always");
    let containers = spec.containers.iter().flatten().chain(sidecars);
    let ports = containers.flat_map(|container| {
        container
            .handlers()
            .filter_map(|call| call.port.resolve(container.ports.as_deref().unwrap_or_default()))
    });
    ports.collect::<BTreeSet<u16>>().into_iter().collect()
}

impl Container {
    /// The calls that go to the pod.
    fn handlers(&self) -> impl Iterator<Item = &Call> {
        let hooks = self.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
        let probes = [&self.liveness_probe, &self.readiness_probe, &self.startup_probe];
        let calls = probes.into_iter().chain(hooks).flatten().flat_map(|handler| {
            [&handler.http_get, &handler.tcp_socket, &handler.grpc].into_iter().flatten()
        });
        calls.filter(|call| call.host.is_empty())
    }
}

impl Port {
    /// As the kubelet resolves it: a name is one of the container's own ports, else a number written as text.
    fn resolve(&self, ports: &[ContainerPort]) -> Option<u16> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Name(name) => match ports.iter().find(|port| port.name == *name) {
                Some(port) => port.container_port,
                None => name.parse().ok()?,
            },
            Self::Other(_) => return None,
        };
        u16::try_from(number).ok().filter(|port| *port != 0)
    }
}

#[cfg(test)]
mod tests;
