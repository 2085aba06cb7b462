//! Where a sandbox's namespace is, in the runtime's own words: the map `info` of a verbose status. Pure.
//!
//! containerd and CRI-O both put a JSON object under the key `info`, with the sandbox's process as `pid` and its OCI
//! runtime spec as `runtimeSpec` (OCI runtime-spec, config-linux.md, "Namespaces").

use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// Where the runtime says that a sandbox's network namespace is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its path, as the runtime sees it.
    pub path: Option<PathBuf>,
    /// The sandbox's process, in the runtime's pid namespace.
    pub pid: Option<u32>,
}

/// Why the runtime's words say nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The runtime does not tell.
    #[error("its verbose status has no `info`")]
    Silent,
    /// Not the JSON that it should be.
    #[error("its verbose status cannot be read: {0}")]
    Malformed(String),
    /// The sandbox has no network namespace of its own.
    #[error("its runtime spec gives it no network namespace of its own")]
    HostNetwork,
    /// A path that no runtime gives.
    #[error("its runtime spec names the network namespace as {0:?}, which is no plain absolute path")]
    OddPath(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    #[serde(default)]
    pid: i64,
    #[serde(default)]
    runtime_spec: Option<RuntimeSpec>,
}

#[derive(Deserialize)]
struct RuntimeSpec {
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<String>,
}

/// Reads the map `info`.
///
/// # Errors
/// Says what is missing or wrong.
pub fn place(info: &HashMap<String, String>) -> Result<Place, Unreadable> {
    let text = info.get("info").ok_or(Unreadable::Silent)?;
    let info: Info = serde_json::from_str(text).map_err(|error| Unreadable::Malformed(error.to_string()))?;
    let pid = u32::try_from(info.pid).ok().filter(|pid| *pid > 0);
    let Some(linux) = info.runtime_spec.and_then(|spec| spec.linux) else {
        return Ok(Place { path: None, pid });
    };
    let namespaces = linux.namespaces.unwrap_or_default();
    let mut networks = namespaces.into_iter().filter(|namespace| namespace.kind == "network");
    let network = networks.next().ok_or(Unreadable::HostNetwork)?;
    if networks.next().is_some() {
        return Err(Unreadable::Malformed("it names two network namespaces".into()));
    }
    let path = match network.path {
        Some(path) if !path.is_empty() => Some(plain(path)?),
        // Made for the sandbox's process, and reached by it.
        _ => None,
    };
    Ok(Place { path, pid })
}

/// A path that says where it leads: absolute, and nothing in it that goes up.
fn plain(text: String) -> Result<PathBuf, Unreadable> {
    let path = Path::new(&text);
    let mut components = path.components();
    let is_plain = components.next() == Some(Component::RootDir)
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !text.contains('\0');
    if is_plain { Ok(path.to_owned()) } else { Err(Unreadable::OddPath(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Place, Unreadable> {
        place(&HashMap::from([("info".to_owned(), json.to_owned())]))
    }

    fn spec(namespaces: &str) -> String {
        format!(
            r#"{{"pid":42,"image":"x","runtimeSpec":{{"linux":{{"namespaces":{namespaces}}},"hooks":{{}}}}}}"#
        )
    }

    #[test]
    fn path_and_process_are_found() {
        let json = spec(r#"[{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-1"}]"#);
        let path = Some(PathBuf::from("/var/run/netns/cni-1"));
        assert_eq!(read(&json), Ok(Place { path, pid: Some(42) }));
        assert_eq!(read(&spec(r#"[{"type":"network"}]"#)), Ok(Place { path: None, pid: Some(42) }));
        assert_eq!(read(r#"{"pid":42}"#), Ok(Place { path: None, pid: Some(42) }));
        assert_eq!(read(r#"{"pid":0}"#), Ok(Place::default()));
        assert_eq!(read(r#"{"pid":-1,"runtimeSpec":null}"#), Ok(Place::default()));
    }

    #[test]
    fn what_no_honest_runtime_says_is_refused() {
        assert_eq!(place(&HashMap::new()), Err(Unreadable::Silent));
        assert_eq!(read(&spec(r#"[{"type":"pid"}]"#)), Err(Unreadable::HostNetwork));
        assert_eq!(read(&spec("null")), Err(Unreadable::HostNetwork));
        let two = r#"[{"type":"network","path":"/a"},{"type":"network","path":"/b"}]"#;
        assert!(matches!(read(&spec(two)), Err(Unreadable::Malformed(_))));
        for odd in ["run/netns/a", "/run/netns/../../proc/1/ns/net", "..", "/run/netns/a\\u0000b"] {
            let json = spec(&format!(r#"[{{"type":"network","path":"{odd}"}}]"#));
            assert!(matches!(read(&json), Err(Unreadable::OddPath(_))), "{odd}");
        }
        for malformed in ["", "{", "7", r#"{"pid":"x"}"#, &"[".repeat(100_000)] {
            assert!(matches!(read(malformed), Err(Unreadable::Malformed(_))));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in ".*") {
            let _ = read(&text);
        }

        #[test]
        fn a_path_that_is_taken_has_nothing_that_goes_up(path in "[a-z./]{0,12}") {
            let json = spec(&format!(r#"[{{"type":"network","path":"{path}"}}]"#));
            if let Ok(Place { path: Some(path), .. }) = read(&json) {
                prop_assert!(path.is_absolute());
                prop_assert!(!path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
