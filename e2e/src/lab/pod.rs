//! Pods: what the API server would say of them, and what a runtime knows of them.

use super::cgroup::Cgroup;
use super::cni::Attachment;
use super::netns::Netns;
use anyhow::{Context, Result};
use serde_json::Value;
use sluice_shared::facts::{Phase, PodFacts, StringMap};
use sluice_shared::ids::PodUid;
use std::net::IpAddr;

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// What the API server would say; `ips` and `netns` are filled in when it is attached.
    pub facts: PodFacts,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What the API server would say of it.
    pub facts: PodFacts,
    /// Its network namespace.
    pub netns: Netns,
    /// Its sandbox, as the runtime names it.
    pub attachment: Attachment,
    /// The cgroup of its processes.
    pub cgroup: Cgroup,
    /// The CNI result.
    pub result: Value,
}

impl PodSpec {
    /// A pod of the service account `<name>`, with no labels.
    ///
    /// # Panics
    /// When the name is no part of a uid.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        #[expect(clippy::expect_used, reason = "names are written in tests, by people")]
        let uid = PodUid::new(format!("uid-{namespace}-{name}")).expect("a short name of letters and digits");
        let facts = PodFacts {
            uid,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            labels: StringMap::new(),
            annotations: StringMap::new(),
            host_network: false,
            phase: Phase::Running,
            ips: Vec::new(),
            probe_ports: Vec::new(),
            netns: None,
        };
        Self { facts }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.facts.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.facts.annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Its first address of a family, IPv4 or not.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip(&self, v4: bool) -> Result<IpAddr> {
        let found = self.facts.ips.iter().find(|ip| ip.is_ipv4() == v4);
        found.copied().with_context(|| {
            format!("{} has no {} address", self.facts.name, if v4 { "IPv4" } else { "IPv6" })
        })
    }

    /// The node's end of its link, from the CNI result: the interface with a `veth` name and no sandbox.
    ///
    /// # Errors
    /// When the result names none.
    pub fn host_link(&self) -> Result<String> {
        let interfaces = self.result["interfaces"].as_array().context("a result without interfaces")?;
        let on_host = interfaces.iter().find(|interface| {
            interface["sandbox"].as_str().unwrap_or_default().is_empty()
                && interface["name"].as_str().is_some_and(|name| name.starts_with("veth"))
        });
        let name = on_host.and_then(|interface| interface["name"].as_str());
        Ok(name.with_context(|| format!("no host link in {}", self.result))?.to_owned())
    }
}

/// The addresses in a CNI result.
///
/// # Errors
/// When one of them is none.
pub fn addresses_of(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |ip: &Value| ip["address"].as_str().unwrap_or_default().to_owned();
    let parse = |ip: &Value| {
        let text = text(ip);
        let address = text.split('/').next().unwrap_or_default();
        address.parse().with_context(|| format!("the result's address {text:?}"))
    };
    ips.iter().map(parse).collect()
}
