//! Whether a DaemonSet keeps a pod on a node: what its controller decides from the pod template, the node's labels and
//! its taints.
//!
//! The agent asks this when it is told to end, and a "no" means that the installation leaves the node. So whatever is
//! not understood here (an operator of a later Kubernetes, say) counts as "yes".

use crate::facts::StringMap;
use serde::Deserialize;

/// The part of a pod template's `spec` that says where its pods belong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// The one node, if it is named.
    pub node_name: Option<String>,
    /// Every pair must be a label of the node.
    pub node_selector: Option<StringMap>,
    /// What else is asked of the node.
    pub affinity: Option<Affinity>,
    /// Taints that do not matter.
    pub tolerations: Option<Vec<Toleration>>,
}

/// `affinity`, as far as nodes go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// `nodeAffinity`
    pub node_affinity: Option<NodeAffinity>,
}

/// `nodeAffinity`, without what is merely preferred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// What must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
}

/// Terms, of which one must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// None of them holds for any node when there is none.
    pub node_selector_terms: Vec<Term>,
}

/// Expressions, all of which must hold. A term with none selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    /// About labels.
    pub match_expressions: Option<Vec<Expression>>,
    /// About fields, of which there is one: `metadata.name`.
    pub match_fields: Option<Vec<Expression>>,
}

/// One expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Expression {
    /// The label, or the field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`.
    pub operator: String,
    /// What it is compared with.
    pub values: Option<Vec<String>>,
}

/// `tolerations[]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// The taint's key; empty for every key.
    pub key: String,
    /// `Equal` or `Exists`; empty is `Equal`.
    pub operator: String,
    /// The taint's value, for `Equal`.
    pub value: String,
    /// The taint's effect; empty for every one.
    pub effect: String,
}

/// `spec.taints[]` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A node, as far as it decides what runs there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: StringMap,
    /// Its taints.
    pub taints: Vec<Taint>,
}

/// Why a DaemonSet's pod does not stay on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Another node is named.
    Name,
    /// The node selector.
    Selector,
    /// The required node affinity.
    Affinity,
    /// A taint that evicts.
    Taint,
}

/// What the controller tolerates for every DaemonSet, of the taints that evict.
const ALWAYS_TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

impl Placement {
    /// `None` when the DaemonSet's controller leaves a pod on the node; else why it takes it away.
    ///
    /// Taints that only keep new pods away (`NoSchedule`) take none away.
    #[must_use]
    pub fn unfit(&self, node: &Node) -> Option<Unfit> {
        let named = self.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name);
        let mut wanted = self.node_selector.iter().flatten();
        let required = self.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = required.and_then(|affinity| affinity.required.as_ref());
        if !named {
            Some(Unfit::Name)
        } else if !wanted.all(|(key, value)| node.labels.get(key) == Some(value)) {
            Some(Unfit::Selector)
        } else if !required.is_none_or(|selector| selector.matches(node)) {
            Some(Unfit::Affinity)
        } else if node.taints.iter().any(|taint| taint.effect == "NoExecute" && !self.tolerates(taint)) {
            Some(Unfit::Taint)
        } else {
            None
        }
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        ALWAYS_TOLERATED.contains(&taint.key.as_str())
            || self.tolerations.iter().flatten().any(|toleration| toleration.tolerates(taint))
    }
}

impl NodeSelector {
    fn matches(&self, node: &Node) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(node))
    }
}

impl Term {
    fn matches(&self, node: &Node) -> bool {
        let labels = self.match_expressions.as_deref().unwrap_or_default();
        let fields = self.match_fields.as_deref().unwrap_or_default();
        let name = |field: &Expression| (field.key == "metadata.name").then_some(node.name.as_str());
        (!labels.is_empty() || !fields.is_empty())
            && labels.iter().all(|label| label.holds(node.labels.get(&label.key).map(String::as_str)))
            && fields.iter().all(|field| field.holds(name(field)))
    }
}

impl Expression {
    fn holds(&self, found: Option<&str>) -> bool {
        let values = self.values.as_deref().unwrap_or_default();
        let listed = found.is_some_and(|found| values.iter().any(|value| value == found));
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            "Gt" => compare(found, values).is_some_and(|(found, limit)| found > limit),
            "Lt" => compare(found, values).is_some_and(|(found, limit)| found < limit),
            _ => true,
        }
    }
}

/// Both as whole numbers, which they must be.
fn compare(found: Option<&str>, values: &[String]) -> Option<(i64, i64)> {
    let [limit] = values else { return None };
    Some((found?.parse().ok()?, limit.parse().ok()?))
}

impl Toleration {
    fn tolerates(&self, taint: &Taint) -> bool {
        let same = |mine: &str, its: &str| mine.is_empty() || mine == its;
        same(&self.effect, &taint.effect)
            && same(&self.key, &taint.key)
            && match self.operator.as_str() {
                "" | "Equal" => self.value == taint.value,
                _ => true,
            }
    }
}

#[cfg(test)]
mod tests;
