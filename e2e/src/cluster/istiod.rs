//! What stands in for istiod: it goes by what the API server shows of pods and services, and tells each node's
//! ztunnel, in the file that ztunnel reads without istiod (`LOCAL_XDS_PATH`).
//!
//! As istiod does, it takes a pod for one that speaks HBONE exactly when the pod's annotation says `enabled`. So an
//! agent that patches it too early, too late or not at all is caught by the traffic.

use super::watch::seen::{Pod, Service};
use super::watch::{Seen, Watch};
use crate::lab::xds::{Mesh, hostname};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The label of a pod that refuses plaintext. In a mesh that is said by a PeerAuthentication of mode STRICT.
pub const STRICT: (&str, &str) = ("mesh.example.org/mtls", "strict");

/// Running. Dropping it ends it; the files stay.
#[derive(Debug)]
pub struct Istiod {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// The last failure to write, for the report.
    failure: Mutex<Option<String>>,
}

impl Istiod {
    /// Begins to write `files`, one for each node, with all pods of the cluster in each.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(watch: Arc<Watch>, files: impl Fn() -> Vec<PathBuf> + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), failure: Mutex::default() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("istiod".into());
        let thread = thread.spawn(move || {
            while !theirs.stop.load(Ordering::Acquire) {
                let outcome = tell(&mesh(&watch.seen()), &files());
                let failure = outcome.err().map(|why| format!("{why:#}"));
                *theirs.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
                watch.wait(Duration::from_millis(300));
                // A burst of changes becomes a few files, as istiod's debouncing makes of it a few pushes.
                std::thread::sleep(Duration::from_millis(20));
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Why the files could not be written the last time, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the mesh where the file says something else.
fn tell(mesh: &Mesh, files: &[PathBuf]) -> Result<()> {
    let text = mesh.text()?;
    for file in files {
        if std::fs::read_to_string(file).ok().as_ref() != Some(&text) {
            let dir = file.parent().context("a file without a directory")?;
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            crate::lab::write_whole(file, &text)?;
        }
    }
    Ok(())
}

/// The mesh as istiod would see it.
fn mesh(seen: &Seen) -> Mesh {
    let mut mesh = Mesh::default();
    let mut pods: Vec<Pod> = seen.pods.values().filter(|pod| is_workload(pod)).cloned().collect();
    // While a pod comes back with another address, its old one may be somebody's already: who is up has it.
    pods.sort_by_key(|pod| (pod.deleting, !pod.ready));
    let mut taken = BTreeSet::new();
    for pod in &mut pods {
        pod.ips.retain(|ip| taken.insert(*ip));
    }
    for pod in pods.iter().filter(|pod| !pod.ips.is_empty()) {
        let services = seen.services.values().filter(|service| pod.ready && service.selects(pod));
        let services = services.map(|service| (key(service), service.ports.clone())).collect();
        mesh = mesh.serving(pod, services);
        if pod.labels.get(STRICT.0).is_some_and(|value| value == STRICT.1) {
            mesh = mesh.strict();
        }
    }
    for service in seen.services.values().filter(|service| !service.vips.is_empty()) {
        mesh = mesh.of_service(service);
    }
    mesh
}

/// Pods of the host's network share its address: to ztunnel they are no workloads of their own.
fn is_workload(pod: &Pod) -> bool {
    !pod.ips.is_empty() && !pod.host_network && !pod.ended()
}

fn key(service: &Service) -> String {
    format!("{}/{}", service.namespace, hostname(&service.name, &service.namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ztunnel::workloads::{Directory, Route};
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    fn pod(uid: &str, ip: &str, redirection: Option<&str>) -> Pod {
        Pod {
            uid: uid.into(),
            namespace: "demo".into(),
            name: uid.into(),
            service_account: "default".into(),
            node: "node1".into(),
            ips: vec![ip.parse().unwrap()],
            labels: BTreeMap::from([("app".into(), uid.into())]),
            redirection: redirection.map(str::to_owned),
            phase: "Running".into(),
            ready: true,
            ..Pod::default()
        }
    }

    fn directory(pods: Vec<Pod>) -> Directory {
        let pods = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let mut seen = Seen { pods, ..Seen::default() };
        let service = Service {
            namespace: "demo".into(),
            name: "echo".into(),
            vips: vec!["10.96.0.9".parse().unwrap()],
            ports: BTreeMap::from([(80, 8080)]),
            selector: BTreeMap::from([("app".into(), "b".into())]),
        };
        seen.services.insert(("demo".into(), "echo".into()), service);
        Directory::parse(&mesh(&seen).text().unwrap()).unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pod_is_hbone_exactly_when_its_annotation_says_enabled() {
        let pods = vec![pod("a", "10.77.1.2", Some("pending")), pod("b", "10.77.1.3", Some("enabled"))];
        let directory = directory(pods);
        assert!(matches!(directory.route(address("10.77.1.2:80")), Route::Passthrough(_)));
        assert!(matches!(directory.route(address("10.77.1.3:80")), Route::Hbone { .. }));
        assert!(matches!(directory.route(address("10.96.0.9:80")), Route::Hbone { .. }));
    }

    #[test]
    fn an_address_is_of_the_pod_that_is_up() {
        let old = Pod { ready: false, ..pod("a", "10.77.1.3", None) };
        let directory = directory(vec![old, pod("b", "10.77.1.3", Some("enabled"))]);
        assert!(matches!(directory.route(address("10.77.1.3:80")), Route::Hbone { .. }));
    }

    #[test]
    fn what_has_ended_or_shares_the_host_s_address_is_no_workload() {
        let ended = Pod { phase: "Succeeded".into(), ..pod("a", "10.77.1.2", Some("enabled")) };
        let host = Pod { host_network: true, ..pod("c", "172.30.0.11", None) };
        let unready = Pod { ready: false, ..pod("b", "10.77.1.3", Some("enabled")) };
        let directory = directory(vec![ended, host, unready]);
        assert!(matches!(directory.route(address("10.96.0.9:80")), Route::NoEndpoint(_)));
        assert!(matches!(directory.route(address("172.30.0.11:80")), Route::Passthrough(_)));
    }
}
