//! Who is in the mesh, and why: one pure function, the same for an ADD, a watch event and `sluicectl why`.

use crate::contract::{
    ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE, ANNOTATION_REROUTE_INTERFACES, ANNOTATION_SIDECAR,
    LABEL_DATAPLANE_MODE, MODE_AMBIENT, MODE_NONE,
};
use crate::facts::{NamespaceFacts, PodFacts, StringMap};
use crate::ids::Ifname;
use crate::selector::{LabelSelector, Operator, Requirement};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The node's rules for membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollPolicy {
    /// Namespaces that are never in the mesh, whatever their labels.
    pub exclude_namespaces: BTreeSet<String>,
    /// A pod is in when any of these selects it and its namespace.
    pub selectors: Vec<EnablementSelector>,
}

/// Selects a pod when both of its parts match. An empty part selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnablementSelector {
    /// On the pod's labels.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub pod_selector: LabelSelector,
    /// On the namespace's labels.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub namespace_selector: LabelSelector,
}

/// What was decided for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In the mesh.
    InMesh {
        /// Which rule said so.
        because: Because,
        /// What the pod's annotations ask for.
        overrides: Overrides,
    },
    /// Outside the mesh.
    Outside(Reason),
}

/// Which rule puts a pod into the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// The pod's own label.
    PodLabel,
    /// The namespace's label.
    NamespaceLabel,
    /// A configured selector, by its index (from 0) in `enablementSelectors`.
    Selector(usize),
}

/// Why a pod is outside the mesh. The first that holds, in this order, is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Neither the sources nor ADD know the pod.
    Unknown,
    /// It shares the host's network namespace: there is nothing of its own to redirect.
    HostNetwork,
    /// A sidecar was injected.
    Sidecar,
    /// Its namespace is in `excludeNamespaces`.
    ExcludedNamespace,
    /// All of its containers have ended.
    Terminal,
    /// The pod's label opts out of what its namespace's label asks for.
    OptedOut,
    /// No rule asks for it.
    NotSelected,
}

/// What a pod's annotations change in its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overrides {
    /// `ambient.istio.io/bypass-inbound-capture`
    pub bypass_inbound: bool,
    /// `ambient.istio.io/dns-capture`; `None` means the node's default.
    pub dns_capture: Option<bool>,
    /// `istio.io/reroute-virtual-interfaces`
    pub virtual_interfaces: Vec<Ifname>,
    /// Annotations that could not be read and were treated as absent, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Default for EnrollPolicy {
    /// Istio's default: the pod's label, or the namespace's unless the pod says `none`; kube-system excluded.
    fn default() -> Self {
        Self {
            exclude_namespaces: BTreeSet::from(["kube-system".to_owned()]),
            selectors: default_selectors(),
        }
    }
}

/// The two selectors that stand for Istio's labels.
#[must_use]
pub fn default_selectors() -> Vec<EnablementSelector> {
    let ambient = LabelSelector {
        match_labels: StringMap::from([(LABEL_DATAPLANE_MODE.to_owned(), MODE_AMBIENT.to_owned())]),
        match_expressions: Vec::new(),
    };
    let not_none = LabelSelector {
        match_labels: StringMap::new(),
        match_expressions: vec![Requirement {
            key: LABEL_DATAPLANE_MODE.to_owned(),
            operator: Operator::NotIn,
            values: vec![MODE_NONE.to_owned()],
        }],
    };
    vec![
        EnablementSelector { pod_selector: ambient.clone(), namespace_selector: LabelSelector::default() },
        EnablementSelector { pod_selector: not_none, namespace_selector: ambient },
    ]
}

/// Decides for one pod. `namespace` is `None` when the source has not shown it: its labels count as empty.
#[must_use]
pub fn decide(pod: &PodFacts, namespace: Option<&NamespaceFacts>, policy: &EnrollPolicy) -> Verdict {
    if pod.host_network {
        return Verdict::Outside(Reason::HostNetwork);
    }
    if pod.annotations.contains_key(ANNOTATION_SIDECAR) {
        return Verdict::Outside(Reason::Sidecar);
    }
    if policy.exclude_namespaces.contains(&pod.namespace) {
        return Verdict::Outside(Reason::ExcludedNamespace);
    }
    if pod.phase.is_terminal() {
        return Verdict::Outside(Reason::Terminal);
    }
    let no_labels = StringMap::new();
    let namespace_labels = namespace.map_or(&no_labels, |namespace| &namespace.labels);
    match policy.selectors.iter().position(|selector| selector.matches(&pod.labels, namespace_labels)) {
        Some(index) => Verdict::InMesh {
            because: because(index, pod, namespace_labels),
            overrides: Overrides::from_annotations(&pod.annotations),
        },
        None if opted_out(pod, namespace_labels, policy) => Verdict::Outside(Reason::OptedOut),
        None => Verdict::Outside(Reason::NotSelected),
    }
}

/// Whether pods of a namespace are, as a rule, in the mesh: what the plugin goes by when no agent answers.
///
/// True when a selector with a non-empty namespace part selects it, or one with both parts empty does.
#[must_use]
pub fn namespace_in_mesh(namespace: &NamespaceFacts, policy: &EnrollPolicy) -> bool {
    !policy.exclude_namespaces.contains(&namespace.name)
        && policy.selectors.iter().any(|selector| {
            let by_namespace = !selector.namespace_selector.is_empty() || selector.pod_selector.is_empty();
            by_namespace && selector.namespace_selector.matches(&namespace.labels)
        })
}

fn because(index: usize, pod: &PodFacts, namespace_labels: &StringMap) -> Because {
    let ambient =
        |labels: &StringMap| labels.get(LABEL_DATAPLANE_MODE).is_some_and(|mode| mode == MODE_AMBIENT);
    if ambient(&pod.labels) {
        Because::PodLabel
    } else if ambient(namespace_labels) {
        Because::NamespaceLabel
    } else {
        Because::Selector(index)
    }
}

/// Whether the pod's own mode label is all that keeps it out.
fn opted_out(pod: &PodFacts, namespace_labels: &StringMap, policy: &EnrollPolicy) -> bool {
    let mut unlabelled = pod.labels.clone();
    unlabelled.remove(LABEL_DATAPLANE_MODE).is_some()
        && policy.selectors.iter().any(|selector| selector.matches(&unlabelled, namespace_labels))
}

impl EnablementSelector {
    fn matches(&self, pod_labels: &StringMap, namespace_labels: &StringMap) -> bool {
        self.pod_selector.matches(pod_labels) && self.namespace_selector.matches(namespace_labels)
    }
}

impl Overrides {
    /// Reads a pod's annotations. What cannot be read is left out and said in `warnings`: a typo in an annotation
    /// must neither keep a pod out of the mesh nor open a hole in it.
    #[must_use]
    pub fn from_annotations(annotations: &StringMap) -> Self {
        let mut overrides = Self::default();
        let mut flag = |key: &str| {
            let text = annotations.get(key)?;
            let parsed = parse_bool(text);
            if parsed.is_none() {
                overrides.warnings.push(format!("{key}: {text:?} is not a boolean; treated as absent"));
            }
            parsed
        };
        let bypass_inbound = flag(ANNOTATION_BYPASS_INBOUND).unwrap_or(false);
        let dns_capture = flag(ANNOTATION_DNS_CAPTURE);
        overrides.bypass_inbound = bypass_inbound;
        overrides.dns_capture = dns_capture;
        let listed = annotations.get(ANNOTATION_REROUTE_INTERFACES).map_or("", String::as_str);
        for name in listed.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match Ifname::new(name) {
                Ok(name) if overrides.virtual_interfaces.contains(&name) => {}
                Ok(name) => overrides.virtual_interfaces.push(name),
                Err(e) => overrides.warnings.push(format!("{ANNOTATION_REROUTE_INTERFACES}: {e}; left out")),
            }
        }
        overrides
    }
}

/// The words that Go's `strconv.ParseBool` takes, which is what users of these annotations know.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodLabel => write!(f, "the pod is labelled {LABEL_DATAPLANE_MODE}={MODE_AMBIENT}"),
            Self::NamespaceLabel => {
                write!(f, "its namespace is labelled {LABEL_DATAPLANE_MODE}={MODE_AMBIENT}")
            }
            Self::Selector(index) => write!(f, "enablementSelectors[{index}] selects it"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the agent has not heard of this pod"),
            Self::HostNetwork => f.write_str("it runs in the host's network namespace"),
            Self::Sidecar => write!(f, "it has a sidecar (annotation {ANNOTATION_SIDECAR})"),
            Self::ExcludedNamespace => f.write_str("its namespace is in excludeNamespaces"),
            Self::Terminal => f.write_str("all of its containers have ended"),
            Self::OptedOut => write!(f, "the pod's own label {LABEL_DATAPLANE_MODE} opts out"),
            Self::NotSelected => {
                write!(f, "neither it nor its namespace is labelled {LABEL_DATAPLANE_MODE}={MODE_AMBIENT}")
            }
        }
    }
}
