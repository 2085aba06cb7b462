//! `CNI_ARGS`: who the sandbox is for, as Kubernetes runtimes say it.

use crate::ids::{InvalidId, PodRef, PodUid};

/// What the Kubernetes keys of `CNI_ARGS` say. Other keys (`IgnoreUnknown`, `K8S_POD_INFRA_CONTAINER_ID`, …) are not
/// ours to judge and are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME`; `None` when the sandbox is not a Kubernetes pod.
    pub pod: Option<PodRef>,
    /// `K8S_POD_UID`, which older runtimes do not give.
    pub uid: Option<PodUid>,
}

/// Why `CNI_ARGS` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A part has no `=`.
    #[error("CNI_ARGS: {0:?} is not KEY=VALUE")]
    NotAPair(String),
    /// A key of ours is there twice, with different values: which pod is it?
    #[error("CNI_ARGS: {key} is given twice, as {first:?} and {second:?}")]
    Contradiction {
        /// The key.
        key: String,
        /// Its first value.
        first: String,
        /// Its second value.
        second: String,
    },
    /// Only one of namespace and name is there.
    #[error("CNI_ARGS: {0} is missing, although the other half of the pod's name is given")]
    HalfAName(&'static str),
    /// A name that no pod can have.
    #[error("CNI_ARGS: {key} {value:?} is not a name: 1 to {max} of letters, digits, '.', '_' and '-'")]
    NotAName {
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// The longest that is allowed, in bytes.
        max: usize,
    },
    /// A uid that no pod can have.
    #[error("CNI_ARGS: K8S_POD_UID: {0}")]
    NotAUid(InvalidId),
}

const NAMESPACE: &str = "K8S_POD_NAMESPACE";
const NAME: &str = "K8S_POD_NAME";
const UID: &str = "K8S_POD_UID";

impl PodArgs {
    /// Reads `KEY=VALUE;KEY=VALUE;…` in any order. An empty value counts as absent.
    ///
    /// Names are checked more loosely than the API server does, since tools such as crictl make sandboxes with names
    /// that no pod could have.
    ///
    /// # Errors
    /// When it is ambiguous which pod is meant, or when a value could be none.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        let (mut namespace, mut name, mut uid) = (None, None, None);
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| ArgsError::NotAPair(shorten(part)))?;
            let slot = match key {
                NAMESPACE => &mut namespace,
                NAME => &mut name,
                UID => &mut uid,
                _ => continue,
            };
            match *slot {
                Some(first) if first != value => {
                    return Err(ArgsError::Contradiction {
                        key: key.to_owned(),
                        first: shorten(first),
                        second: shorten(value),
                    });
                }
                _ => *slot = Some(value),
            }
        }
        let present = |slot: Option<&'_ str>| slot.filter(|value| !value.is_empty()).map(str::to_owned);
        let pod = match (present(namespace), present(name)) {
            (Some(namespace), Some(name)) => Some(PodRef {
                namespace: checked_name(NAMESPACE, namespace, 63)?,
                name: checked_name(NAME, name, 253)?,
            }),
            (None, None) => None,
            (Some(_), None) => return Err(ArgsError::HalfAName(NAME)),
            (None, Some(_)) => return Err(ArgsError::HalfAName(NAMESPACE)),
        };
        let uid = present(uid).map(PodUid::new).transpose().map_err(ArgsError::NotAUid)?;
        Ok(Self { pod, uid })
    }
}

fn checked_name(key: &'static str, value: String, max: usize) -> Result<String, ArgsError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if value.len() <= max && value.chars().all(fine) {
        Ok(value)
    } else {
        Err(ArgsError::NotAName { key, value: shorten(&value), max })
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
