//! Why a plugin, or the runner itself, could not do a verb.

use serde::Deserialize;

/// A failed CNI call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CniError {
    /// The plugin ended with an error object on stdout.
    #[error("plugin {plugin:?} failed ({verb}): code {code}: {msg}{}", tail(details))]
    Plugin {
        /// Its type.
        plugin: String,
        /// The verb, in lower case.
        verb: String,
        /// The spec's code, or the plugin's own from 100 on.
        code: u32,
        /// One line for the operator.
        msg: String,
        /// More of it.
        details: String,
    },
    /// The plugin ended badly and said nothing that the spec foresees.
    #[error("plugin {plugin:?} failed ({verb}): netplugin failed: {said:?}")]
    Unspoken {
        /// Its type.
        plugin: String,
        /// The verb, in lower case.
        verb: String,
        /// Its stdout, or its stderr if that is empty.
        said: String,
    },
    /// The plugin ended well with something that is no result.
    #[error("plugin {plugin:?} ({verb}): its result is not one: {why}; it wrote {said:?}")]
    Result {
        /// Its type.
        plugin: String,
        /// The verb, in lower case.
        verb: String,
        /// What is wrong with it.
        why: String,
        /// Its stdout.
        said: String,
    },
    /// The plugin was killed at the deadline.
    #[error("plugin {plugin:?} ({verb}) did not end within {seconds} s and was killed")]
    TimedOut {
        /// Its type.
        plugin: String,
        /// The verb, in lower case.
        verb: String,
        /// The deadline.
        seconds: u64,
    },
    /// The plugin could not be started.
    #[error("plugin {plugin:?} could not be started: {why}")]
    NotStarted {
        /// Its type.
        plugin: String,
        /// Where it was looked for, or the errno.
        why: String,
    },
    /// The list is not one, or cannot do the verb.
    #[error("the network list {name:?}: {why}")]
    List {
        /// Its name, or where it came from.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// The spec's error object.
#[derive(Debug, Deserialize)]
struct Spoken {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl CniError {
    /// Reads what a failed plugin said.
    #[must_use]
    pub fn of_plugin(plugin: &str, verb: &str, stdout: &[u8], stderr: &[u8]) -> Self {
        let (plugin, verb) = (plugin.to_owned(), verb.to_ascii_lowercase());
        match serde_json::from_slice::<Spoken>(stdout) {
            Ok(Spoken { code, msg, details }) => Self::Plugin { plugin, verb, code, msg, details },
            Err(_) => {
                let said = if stdout.is_empty() { stderr } else { stdout };
                Self::Unspoken { plugin, verb, said: String::from_utf8_lossy(said).into_owned() }
            }
        }
    }

    /// The plugin's code, if it gave one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Plugin { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether upstream's plugin that makes the interface gave up waiting (5 s) for IPv6's duplicate address detection,
    /// which a busy kernel's worker comes to late (addrconf_dad_work). What is chained behind it never ran, and a kubelet
    /// tries such a pod anew.
    #[must_use]
    pub fn is_tentative(&self) -> bool {
        matches!(self, Self::Plugin { plugin, msg, .. }
            if ["ptp", "bridge"].contains(&plugin.as_str())
                && msg.starts_with("failed to settle addresses")
                && msg.contains("still has tentative addresses"))
    }
}

fn tail(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!("; {details}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_primarys_own_wait_is_tried_anew() {
        let said = |plugin: &str, msg: &str| {
            let spoken = serde_json::json!({"cniVersion": "1.0.0", "code": 999, "msg": msg});
            CniError::of_plugin(plugin, "ADD", spoken.to_string().as_bytes(), b"").is_tentative()
        };
        let waited = "failed to settle addresses for \"eth0\": link eth0 still has tentative addresses after 5000000000 seconds";
        assert!(said("ptp", waited) && said("bridge", waited));
        assert!(!said("sluice-cni", waited));
        assert!(!said("ptp", "failed to allocate for range 0: no IP addresses available"));
        assert!(!said("ptp", "still has tentative addresses"));
    }
}
