//! What istiod would tell ztunnel, from a file: workloads, services and where a connection goes.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The policy that istiod makes of a PeerAuthentication of mode STRICT, as `namespace/name`: no plaintext.
pub const STRICT: &str = "istio-system/istio_converted_static_strict";

/// The file's content, in the shape of ztunnel's `LOCAL_XDS_PATH`. An unknown key is an error, as there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    workloads: Vec<Workload>,
    #[serde(default)]
    services: Vec<Service>,
    /// Only [`STRICT`] is taken: the stand-in enforces no other policy, and must not seem to.
    #[serde(default)]
    policies: Vec<Policy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policy {
    name: String,
    namespace: String,
    #[expect(dead_code, reason = "part of the file's shape")]
    scope: String,
    #[expect(dead_code, reason = "part of the file's shape")]
    action: String,
    #[expect(dead_code, reason = "part of the file's shape")]
    rules: serde_norway::Value,
}

/// A pod of the mesh, or one that the mesh knows of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// istiod's name for it; not the pod's uid.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The trust domain of its identity.
    #[serde(default)]
    pub trust_domain: String,
    /// The pod's addresses.
    #[serde(default)]
    pub workload_ips: Vec<IpAddr>,
    /// How it is reached.
    #[serde(default)]
    pub protocol: Protocol,
    /// The node it runs on.
    #[serde(default)]
    pub node: String,
    /// The network it is on; only compared with the stand-in's own, the empty one.
    #[serde(default)]
    pub network: String,
    /// `namespace/hostname` of each service it serves, with service port to target port.
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
    /// The policies of its own, as `namespace/name`.
    #[serde(default)]
    pub authorization_policies: Vec<String>,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// It has a ztunnel: mTLS on 15008.
    HBONE,
    /// It has none: plaintext.
    #[default]
    TCP,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    #[expect(dead_code, reason = "part of the file's shape")]
    name: String,
    namespace: String,
    hostname: String,
    /// `network/ip`
    #[serde(default)]
    vips: Vec<String>,
    #[serde(default)]
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
}

/// What ZDS says of a pod, the key by which its workload is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
}

/// One reading of the file, with the addresses looked up.
#[derive(Debug, Default)]
pub struct Directory {
    workloads: Vec<Arc<Workload>>,
    by_ip: BTreeMap<IpAddr, Arc<Workload>>,
    services: Vec<ServiceEntry>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct ServiceEntry {
    key: String,
    hostname: String,
    vips: Vec<IpAddr>,
    ports: BTreeMap<u16, u16>,
    subject_alt_names: Vec<String>,
}

/// Where an outbound connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a peer that has a ztunnel: mTLS to its 15008, then on to `target`.
    Hbone {
        /// The workload's address and the application's port.
        target: SocketAddr,
        /// The identities of which the peer must show one.
        identities: Vec<String>,
    },
    /// In plaintext.
    Passthrough(SocketAddr),
    /// To a service that nobody serves.
    NoEndpoint(String),
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadsError {
    /// The file cannot be read.
    #[error("cannot read the workloads file {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not in the shape of ztunnel's local configuration.
    #[error("the workloads file is not valid: {0}")]
    Syntax(#[from] serde_norway::Error),
    /// It says something that the stand-in cannot do.
    #[error("the workloads file is not valid: {0}")]
    Content(String),
}

impl Workload {
    /// The workload's SPIFFE identity.
    #[must_use]
    pub fn identity(&self) -> String {
        let Self { trust_domain, namespace, service_account, .. } = self;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }

    /// Whether what comes to it in plaintext is refused.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.authorization_policies.iter().any(|policy| policy == STRICT)
    }
}

impl Directory {
    /// Reads the text of a workloads file.
    ///
    /// # Errors
    /// When the text is no such YAML, or asks for what the stand-in does not do (policies but [`STRICT`], remote
    /// networks).
    pub fn parse(text: &str) -> Result<Self, WorkloadsError> {
        let file: File = serde_norway::from_str(text)?;
        let policies: Vec<_> =
            file.policies.iter().map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect();
        if let Some(other) = policies.iter().find(|policy| *policy != STRICT) {
            let said = format!("the policy {other} is not enforced by the stand-in; remove it");
            return Err(WorkloadsError::Content(said));
        }
        let mut directory = Self::default();
        for workload in file.workloads.into_iter().map(Arc::new) {
            if let Some(unknown) =
                workload.authorization_policies.iter().find(|name| !policies.contains(name))
            {
                let said = format!("{} goes by the policy {unknown}, which is not there", workload.uid);
                return Err(WorkloadsError::Content(said));
            }
            for ip in &workload.workload_ips {
                if let Some(other) = directory.by_ip.insert(*ip, workload.clone()) {
                    let said = format!("{} and {} both have the address {ip}", other.uid, workload.uid);
                    return Err(WorkloadsError::Content(said));
                }
            }
            directory.workloads.push(workload);
        }
        for service in file.services {
            let vips = service.vips.iter().map(|vip| parse_vip(vip)).collect::<Result<_, _>>()?;
            directory.services.push(ServiceEntry {
                key: format!("{}/{}", service.namespace, service.hostname),
                hostname: service.hostname.to_ascii_lowercase(),
                vips,
                ports: service.ports,
                subject_alt_names: service.subject_alt_names,
            });
        }
        Ok(directory)
    }

    /// The workload that ZDS means by `info`, on `node` (any node when empty).
    #[must_use]
    pub fn find(&self, info: &WorkloadInfo, node: &str) -> Option<Arc<Workload>> {
        let same = |w: &&Arc<Workload>| {
            w.name == info.name
                && w.namespace == info.namespace
                && w.service_account == info.service_account
                && (node.is_empty() || w.node == node)
        };
        self.workloads.iter().find(same).cloned()
    }

    /// Where a connection to `destination` goes.
    #[must_use]
    pub fn route(&self, destination: SocketAddr) -> Route {
        if let Some(workload) = self.by_ip.get(&destination.ip()) {
            return Self::to_workload(workload, destination, &[]);
        }
        let Some(service) = self.services.iter().find(|s| s.vips.contains(&destination.ip())) else {
            return Route::Passthrough(destination);
        };
        let endpoints: Vec<_> =
            self.workloads.iter().filter_map(|w| endpoint(w, service, destination)).collect();
        if endpoints.is_empty() {
            return Route::NoEndpoint(format!(
                "no workload serves {} on port {}",
                service.key,
                destination.port()
            ));
        }
        let (workload, target) = &endpoints[self.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len()];
        Self::to_workload(workload, *target, &service.subject_alt_names)
    }

    /// The addresses of `hostname`; `None` when no service has that name.
    #[must_use]
    pub fn resolve(&self, hostname: &str) -> Option<&[IpAddr]> {
        let wanted = hostname.to_ascii_lowercase();
        self.services.iter().find(|s| s.hostname == wanted).map(|s| s.vips.as_slice())
    }

    fn to_workload(workload: &Workload, target: SocketAddr, others: &[String]) -> Route {
        match workload.protocol {
            Protocol::TCP => Route::Passthrough(target),
            Protocol::HBONE => {
                let identities = std::iter::once(workload.identity()).chain(others.iter().cloned()).collect();
                Route::Hbone { target, identities }
            }
        }
    }
}

fn endpoint(
    workload: &Arc<Workload>,
    service: &ServiceEntry,
    destination: SocketAddr,
) -> Option<(Arc<Workload>, SocketAddr)> {
    let ports = workload.services.get(&service.key)?;
    let port = ports.get(&destination.port()).or_else(|| service.ports.get(&destination.port()))?;
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
    let ip = workload.workload_ips.iter().find(same_family).or(workload.workload_ips.first())?;
    Some((workload.clone(), SocketAddr::new(*ip, *port)))
}

fn parse_vip(vip: &str) -> Result<IpAddr, WorkloadsError> {
    let address = vip.split_once('/').map_or(vip, |(_network, address)| address);
    address
        .parse()
        .map_err(|_| WorkloadsError::Content(format!("the VIP {vip:?} is not \"network/address\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
workloads:
- {uid: u/a, name: pod-a, namespace: demo, serviceAccount: sa-a, trustDomain: cluster.local,
   workloadIps: ["10.244.0.2", "fd00::2"], protocol: HBONE, node: node1, network: "", services: {}}
- {uid: u/b, name: pod-b, namespace: demo, serviceAccount: sa-b, trustDomain: cluster.local,
   workloadIps: ["10.244.0.3", "fd00::3"], protocol: HBONE, node: node1,
   services: {"demo/echo.demo.svc.cluster.local": {80: 8080}}}
- {uid: u/c, name: pod-c, namespace: demo, serviceAccount: sa-c, workloadIps: ["10.244.0.4"], services: {}}
services:
- {name: echo, namespace: demo, hostname: echo.demo.svc.cluster.local, vips: ["/10.96.0.10", "/fd96::a"],
   ports: {80: 8080}}
"#;

    fn route(to: &str) -> Route {
        Directory::parse(FILE).expect("valid").route(to.parse().expect("an address"))
    }

    fn hbone(to: &str) -> Route {
        let identities = vec!["spiffe://cluster.local/ns/demo/sa/sa-b".to_owned()];
        Route::Hbone { target: to.parse().expect("an address"), identities }
    }

    #[test]
    fn a_destination_is_routed_by_what_is_known_of_it() {
        assert_eq!(route("10.244.0.3:1234"), hbone("10.244.0.3:1234"));
        assert_eq!(route("10.96.0.10:80"), hbone("10.244.0.3:8080"));
        assert_eq!(route("[fd96::a]:80"), hbone("[fd00::3]:8080"));
        assert_eq!(route("10.244.0.4:1"), Route::Passthrough("10.244.0.4:1".parse().expect("an address")));
        assert_eq!(route("1.2.3.4:5"), Route::Passthrough("1.2.3.4:5".parse().expect("an address")));
        assert!(matches!(route("10.96.0.10:81"), Route::NoEndpoint(_)));
    }

    #[test]
    fn a_workload_is_found_by_all_three_names_and_the_node() {
        let directory = Directory::parse(FILE).expect("valid");
        let info = |name: &str, account: &str| WorkloadInfo {
            name: name.into(),
            namespace: "demo".into(),
            service_account: account.into(),
        };
        assert!(directory.find(&info("pod-a", "sa-a"), "node1").is_some());
        assert!(directory.find(&info("pod-a", "sa-a"), "").is_some());
        assert!(directory.find(&info("pod-a", "sa-a"), "node2").is_none());
        assert!(directory.find(&info("pod-a", "sa-b"), "node1").is_none());
    }

    #[test]
    fn names_are_resolved_whatever_their_case() {
        let directory = Directory::parse(FILE).expect("valid");
        assert_eq!(directory.resolve("Echo.Demo.svc.cluster.local").map(<[_]>::len), Some(2));
        assert!(directory.resolve("other").is_none());
    }

    #[test]
    fn a_workload_is_strict_by_the_policy_that_istiod_makes() {
        let policy = "{name: istio_converted_static_strict, namespace: istio-system, scope: WorkloadSelector, action: Deny, \
                      rules: [[[{notPrincipals: [!Presence []]}]]]}";
        let workload = |ip: &str, policies: &str| {
            format!(
                "{{uid: {ip}, name: a, namespace: b, serviceAccount: c, services: {{}}, workloadIps: [{ip}], authorizationPolicies: [{policies}]}}"
            )
        };
        let workloads =
            format!("workloads: [{}, {}]", workload("10.0.0.1", STRICT), workload("10.0.0.2", ""));
        let directory = Directory::parse(&format!("{workloads}\npolicies: [{policy}]\n")).expect("valid");
        let strict = |ip: &str| directory.by_ip[&ip.parse::<IpAddr>().expect("an address")].is_strict();
        assert!(strict("10.0.0.1") && !strict("10.0.0.2"));
        assert!(Directory::parse(&workloads).is_err(), "a policy that is not there");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for text in [
            "policies: [{name: x, namespace: y, scope: Global, action: Deny, rules: []}]",
            "workloads: [{uid: x}]",
            "nonsense: 1",
            "services: [{name: a, namespace: b, hostname: c, vips: [\"/x\"]}]",
        ] {
            assert!(Directory::parse(text).is_err(), "{text}");
        }
    }
}
