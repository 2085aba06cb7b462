//! Kubernetes label selectors: `matchLabels` and `matchExpressions`, with the API server's meaning.

use crate::facts::StringMap;
use serde::{Deserialize, Serialize};

/// A label selector. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Every pair must be there.
    #[serde(default, skip_serializing_if = "StringMap::is_empty")]
    pub match_labels: StringMap,
    /// Every requirement must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// With what; for `In` and `NotIn` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// Why a selector was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// `In` or `NotIn` with nothing to compare.
    #[error("matchExpressions: key {0:?}: In and NotIn need at least one value")]
    NoValues(String),
    /// `Exists` or `DoesNotExist` with values.
    #[error("matchExpressions: key {0:?}: Exists and DoesNotExist take no values")]
    UnexpectedValues(String),
}

impl LabelSelector {
    /// Whether the labels are selected.
    #[must_use]
    pub fn matches(&self, labels: &StringMap) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Refuses what the API server would refuse.
    ///
    /// # Errors
    /// Names the key whose operator and values do not fit.
    pub fn validate(&self) -> Result<(), InvalidSelector> {
        for requirement in &self.match_expressions {
            let takes_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            match (takes_values, requirement.values.is_empty()) {
                (true, true) => return Err(InvalidSelector::NoValues(requirement.key.clone())),
                (false, false) => return Err(InvalidSelector::UnexpectedValues(requirement.key.clone())),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn matches(&self, labels: &StringMap) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
