//! NetworkPolicies that leave out ztunnel's port: the most frequent reason for a mesh that does not pass traffic.
//!
//! Only what the policies say of ports is judged. Whom they select is not known here but by the policies' own words: one
//! that allows 15008 for the same pods, or for all pods of the namespace, makes up for one that does not.

use super::catalogue::POLICY_15008;
use super::facts::Facts;
use super::primary::CILIUM;
use super::text::{count, some};
use super::{Diagnosis, Finding, Severity, Unlooked};
use crate::conflist::Primary;
use crate::contract::PORT_HBONE;
use serde::Deserialize;
use serde_json::Value;

/// A `networking.k8s.io/v1` NetworkPolicy, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct NetworkPolicy {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Metadata {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    pod_selector: Value,
    policy_types: Vec<String>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Rule {
    ports: Option<Vec<Port>>,
    from: Option<Value>,
    to: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    protocol: Option<String>,
    /// A number or a container port's name.
    port: Option<Value>,
    end_port: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// A policy that blocks mTLS, and in which direction.
struct Blocking<'a> {
    policy: &'a NetworkPolicy,
    direction: Direction,
}

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    foreign(facts, diagnosis);
    let policies = facts.of_cluster(|cluster| &cluster.policies);
    let policies = diagnosis.look("NetworkPolicies", &[POLICY_15008], policies);
    let namespaces = facts.of_cluster(|cluster| &cluster.namespaces);
    let namespaces = diagnosis.look("which namespaces are in the mesh", &[POLICY_15008], namespaces);
    let (Some(policies), Some(namespaces)) = (policies, namespaces) else { return };
    let blocking: Vec<Blocking<'_>> = blocking(policies);
    let in_mesh =
        |found: &&Blocking<'_>| namespaces.get(&found.policy.metadata.namespace).copied().unwrap_or(false);
    let (inside, outside): (Vec<&Blocking<'_>>, Vec<&Blocking<'_>>) = blocking.iter().partition(in_mesh);
    for found in inside {
        diagnosis.find(found.finding());
    }
    if !outside.is_empty() {
        let names: Vec<String> = outside.iter().map(|found| found.policy.name()).collect();
        let number = count(names.len(), "NetworkPolicy", "NetworkPolicies");
        let what = format!("{number} would block mTLS once the namespace is in the mesh: {}", some(&names));
        let fix = "Before the namespace is labelled, allow TCP 15008 beside each port that a rule names";
        let note = Finding::new(POLICY_15008, Severity::Note, what, fix);
        let place = |found: &Blocking<'_>| format!("networkpolicy {}", found.policy.name());
        diagnosis.find(outside.iter().fold(note, |note, found| note.seen(place(found), found.value())));
    }
}

/// Policies of the primary CNI's own kinds.
fn foreign(facts: &Facts, diagnosis: &mut Diagnosis) {
    let Some(Primary::Found(found)) = facts.cni.as_ref().ok().map(|cni| cni.directory.primary()) else {
        return;
    };
    let kinds = match () {
        () if found.types.iter().any(|kind| kind == CILIUM) => "CiliumNetworkPolicies",
        () if found.types.iter().any(|kind| kind == "calico") => "Calico's own policies (projectcalico.org)",
        () => return,
    };
    let how = "Look at them yourself: each that names ports for pods of the mesh has to name TCP 15008 too, and one that denies by \
               default has to admit 169.254.7.127/32 where `sluicectl status` says that probes go by `snat`";
    let unlooked = Unlooked {
        why: "doctor reads the policies of Kubernetes itself only".to_owned(),
        how: how.to_owned(),
        not_asked_for: true,
    };
    diagnosis.miss(kinds, &[POLICY_15008], &unlooked);
}

fn blocking(policies: &[NetworkPolicy]) -> Vec<Blocking<'_>> {
    let mut found = Vec::new();
    for policy in policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            let made_up_for = policies.iter().any(|other| other.covers(policy) && other.opens(direction));
            if policy.leaves_out(direction) && !made_up_for {
                found.push(Blocking { policy, direction });
            }
        }
    }
    found
}

impl NetworkPolicy {
    fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Rules of a direction that the policy is not about say nothing. The API server always writes down which it is about.
    fn rules(&self, direction: Direction) -> &[Rule] {
        let types = &self.spec.policy_types;
        if !types.is_empty() && !types.iter().any(|kind| kind.eq_ignore_ascii_case(direction.as_str())) {
            return &[];
        }
        match direction {
            Direction::Ingress => &self.spec.ingress,
            Direction::Egress => &self.spec.egress,
        }
    }

    /// Whether it passes traffic of that direction by port, and 15008 by none of its rules for the same peers. One that
    /// denies everything means it.
    fn leaves_out(&self, direction: Direction) -> bool {
        let rules = self.rules(direction);
        let opened = |peers: &Option<Value>| {
            rules.iter().any(|rule| {
                rule.passes_hbone() && (is_anybody(rule.peers(direction)) || rule.peers(direction) == peers)
            })
        };
        rules.iter().any(|rule| rule.names_tcp() && !opened(rule.peers(direction)))
    }

    /// Whether it selects at least the pods that the other one selects, as far as its words tell.
    fn covers(&self, other: &Self) -> bool {
        let selector = &self.spec.pod_selector;
        let everything = selector.is_null() || *selector == Value::Object(serde_json::Map::new());
        self.metadata.namespace == other.metadata.namespace
            && (everything || *selector == other.spec.pod_selector)
    }

    /// Whether it passes 15008 from, or to, anybody.
    fn opens(&self, direction: Direction) -> bool {
        self.rules(direction).iter().any(|rule| rule.passes_hbone() && is_anybody(rule.peers(direction)))
    }
}

fn is_anybody(peers: &Option<Value>) -> bool {
    peers.as_ref().is_none_or(|peers| peers.as_array().is_none_or(Vec::is_empty))
}

impl Rule {
    fn peers(&self, direction: Direction) -> &Option<Value> {
        match direction {
            Direction::Ingress => &self.from,
            Direction::Egress => &self.to,
        }
    }

    fn ports(&self) -> &[Port] {
        self.ports.as_deref().unwrap_or_default()
    }

    /// Whether it is about some TCP ports: rules for DNS over UDP are not about the mesh.
    fn names_tcp(&self) -> bool {
        self.ports().iter().any(|port| port.is_tcp() && !port.is_dns())
    }

    fn passes_hbone(&self) -> bool {
        self.ports().is_empty()
            || self.ports().iter().any(|port| port.is_tcp() && port.is(u64::from(PORT_HBONE)))
    }
}

impl Port {
    fn is_tcp(&self) -> bool {
        self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }

    /// Whether this number is among them. A port by name is a container's, and no container has ztunnel's.
    fn is(&self, number: u64) -> bool {
        match &self.port {
            None => true,
            Some(port) => {
                port.as_u64().is_some_and(|first| (first..=self.end_port.unwrap_or(first)).contains(&number))
            }
        }
    }

    fn is_dns(&self) -> bool {
        self.end_port.is_none_or(|last| last == 53)
            && self.port.as_ref().is_some_and(|port| port.as_u64() == Some(53) || port == "dns-tcp")
    }

    fn in_words(&self) -> String {
        let first = match &self.port {
            None => return "all".to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(port) => port.to_string(),
        };
        self.end_port.map_or(first.clone(), |last| format!("{first}-{last}"))
    }
}

impl Blocking<'_> {
    fn value(&self) -> String {
        let rules =
            self.policy.rules(self.direction).iter().filter(|rule| rule.names_tcp() && !rule.passes_hbone());
        let ports =
            rules.flat_map(|rule| rule.ports().iter().filter(|port| port.is_tcp()).map(Port::in_words));
        format!("{}: TCP {}", self.direction.as_str(), ports.collect::<Vec<_>>().join(", "))
    }

    fn finding(&self) -> Finding {
        let name = self.policy.name();
        let Metadata { namespace, name: short } = &self.policy.metadata;
        let direction = self.direction.as_str();
        let what = format!(
            "NetworkPolicy {name} passes {direction} by port, and not mTLS between pods of the mesh (TCP 15008)"
        );
        let fix = format!(
            "kubectl -n {namespace} edit networkpolicy {short}: to each rule of spec.{direction} that lists ports, add \
             {{protocol: TCP, port: 15008}}"
        );
        let finding = Finding::new(POLICY_15008, Severity::Problem, what, fix);
        finding.seen(format!("networkpolicy {name}"), self.value())
    }
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
