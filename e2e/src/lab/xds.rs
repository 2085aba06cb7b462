//! What istiod would tell ztunnel, as the file that ztunnel reads without istiod (`LOCAL_XDS_PATH`).

use super::pod::PodSpec;
use crate::cluster::watch::seen;
use crate::ztunnel::workloads::STRICT;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// The mesh as ztunnel is told of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Mesh {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
}

/// One that refuses whatever has no identity: the only one there is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    name: String,
    namespace: String,
    scope: &'static str,
    action: &'static str,
    rules: [[[Match; 1]; 1]; 1],
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Match {
    not_principals: [Principal; 1],
}

#[derive(Clone, Debug, Serialize)]
enum Principal {
    Presence(),
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    trust_domain: &'static str,
    workload_ips: Vec<IpAddr>,
    protocol: &'static str,
    node: String,
    network: &'static str,
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
}

impl Mesh {
    /// Adds a pod. `meshed` says whether peers reach it over HBONE.
    #[must_use]
    pub fn workload(mut self, node: &str, pod: &PodSpec, ips: &[IpAddr], meshed: bool) -> Self {
        let facts = &pod.facts;
        self.workloads.push(Workload {
            uid: format!("lab//v1/Pod/{}/{}", facts.namespace, facts.name),
            name: facts.name.clone(),
            namespace: facts.namespace.clone(),
            service_account: facts.service_account.clone(),
            trust_domain: "cluster.local",
            workload_ips: ips.to_vec(),
            protocol: if meshed { "HBONE" } else { "TCP" },
            node: node.to_owned(),
            network: "",
            services: BTreeMap::new(),
            authorization_policies: Vec::new(),
        });
        self
    }

    /// Adds a service of the pod that was added last.
    #[must_use]
    pub fn service(mut self, name: &str, vips: &[IpAddr], port: u16, target: u16) -> Self {
        let Some(workload) = self.workloads.last_mut() else { return self };
        let ports = BTreeMap::from([(port, target)]);
        let namespace = workload.namespace.clone();
        let hostname = hostname(name, &namespace);
        workload.services.insert(format!("{namespace}/{hostname}"), ports.clone());
        let vips = vips.iter().map(|vip| format!("/{vip}")).collect();
        self.services.push(Service { name: name.to_owned(), namespace, hostname, vips, ports });
        self
    }

    /// Adds a pod of a cluster, with the services that it serves: `namespace/hostname`, and service port to target
    /// port.
    #[must_use]
    pub fn serving(mut self, pod: &seen::Pod, services: BTreeMap<String, BTreeMap<u16, u16>>) -> Self {
        self.workloads.push(Workload {
            uid: format!("cluster//v1/Pod/{}/{}", pod.namespace, pod.name),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            trust_domain: "cluster.local",
            workload_ips: pod.ips.clone(),
            protocol: if pod.hbone() { "HBONE" } else { "TCP" },
            node: pod.node.clone(),
            network: "",
            services,
            authorization_policies: Vec::new(),
        });
        self
    }

    /// As a PeerAuthentication of mode STRICT has it: the pod that was added last refuses plaintext.
    #[must_use]
    pub fn strict(mut self) -> Self {
        let Some(workload) = self.workloads.last_mut() else { return self };
        workload.authorization_policies = vec![STRICT];
        if let (true, Some((namespace, name))) = (self.policies.is_empty(), STRICT.split_once('/')) {
            self.policies.push(Policy {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                scope: "WorkloadSelector",
                action: "Deny",
                rules: [[[Match { not_principals: [Principal::Presence()] }]]],
            });
        }
        self
    }

    /// Adds a service of a cluster.
    #[must_use]
    pub fn of_service(mut self, service: &seen::Service) -> Self {
        self.services.push(Service {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            hostname: hostname(&service.name, &service.namespace),
            vips: service.vips.iter().map(|vip| format!("/{vip}")).collect(),
            ports: service.ports.clone(),
        });
        self
    }

    /// The file's text.
    ///
    /// # Errors
    /// When it cannot be written as YAML.
    pub fn text(&self) -> Result<String> {
        Ok(serde_norway::to_string(self)?)
    }

    /// Writes the file whole, by rename.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        super::write_whole(path, &self.text()?)
    }
}

/// A service's full name.
#[must_use]
pub fn hostname(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_and_every_workload_has_services() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mesh = Mesh::default()
            .workload("node1", &PodSpec::new("demo", "a"), &[ip("10.77.1.2")], true)
            .service("echo", &[ip("10.96.0.10")], 80, 8080)
            .workload("node1", &PodSpec::new("demo", "b"), &[], false);
        let text = serde_norway::to_string(&mesh).unwrap();
        assert!(text.contains("80: 8080"), "{text}");
        assert!(text.contains("services: {}"), "{text}");
        assert!(text.contains("demo/echo.demo.svc.cluster.local"), "{text}");
        assert!(!text.contains("authorizationPolicies"), "{text}");
    }

    #[test]
    fn a_strict_pod_is_read_as_such() {
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let pod = |name: &str, address: &str| seen::Pod {
            name: name.into(),
            namespace: "demo".into(),
            service_account: "default".into(),
            ips: ip(address),
            ..seen::Pod::default()
        };
        let mesh = Mesh::default().serving(&pod("a", "10.77.1.2"), BTreeMap::new()).strict();
        let mesh = mesh.serving(&pod("b", "10.77.1.3"), BTreeMap::new());
        let directory = crate::ztunnel::workloads::Directory::parse(&mesh.text().unwrap()).unwrap();
        let strict = |name: &str| {
            let info = crate::ztunnel::workloads::WorkloadInfo {
                name: name.into(),
                namespace: "demo".into(),
                service_account: "default".into(),
            };
            directory.find(&info, "").unwrap().is_strict()
        };
        assert!(strict("a") && !strict("b"), "{}", mesh.text().unwrap());
    }
}
