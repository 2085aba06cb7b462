//! Network configuration lists (`*.conflist`).

use super::CniError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Spec versions that this runner knows, the oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A parsed list.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// `name`
    pub name: String,
    /// `cniVersion`
    pub cni_version: String,
    /// `disableCheck`
    pub disable_check: bool,
    /// `disableGC`
    pub disable_gc: bool,
    /// `plugins`, each as it stands in the file.
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// Reads a list as libcni does.
    ///
    /// # Errors
    /// What is missing, or of the wrong type.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let wrong = |name: &str, why: String| CniError::List { name: name.to_owned(), why };
        let whole: Map<String, Value> = serde_json::from_str(text)
            .map_err(|why| wrong("(unnamed)", format!("not a JSON object: {why}")))?;
        let name = whole
            .get("name")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("(unnamed)", "no name, or the name is no string".into()))?
            .to_owned();
        let cni_version = whole.get("cniVersion").map_or(Some("0.1.0"), Value::as_str);
        let cni_version =
            cni_version.ok_or_else(|| wrong(&name, "cniVersion is no string".into()))?.to_owned();
        let plugins = whole.get("plugins").and_then(Value::as_array);
        let plugins = plugins.ok_or_else(|| wrong(&name, "no plugins, or plugins is no list".into()))?;
        if plugins.is_empty() {
            return Err(wrong(&name, "plugins is empty".into()));
        }
        let plugins = plugins.iter().enumerate().map(|(index, plugin)| {
            let plugin = plugin.as_object().filter(|plugin| plugin.get("type").is_some_and(Value::is_string));
            plugin.cloned().ok_or_else(|| wrong(&name, format!("plugin {index} has no type")))
        });
        let plugins = plugins.collect::<Result<Vec<_>, _>>()?;
        let flag = |key: &str| whole.get(key).and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            name,
            cni_version,
            plugins,
        })
    }

    /// Whether the list's version is `version` or a later one.
    #[must_use]
    pub fn at_least(&self, version: &str) -> bool {
        let number =
            |text: &str| -> Vec<u32> { text.split('.').filter_map(|part| part.parse().ok()).collect() };
        number(&self.cni_version) >= number(version)
    }
}

/// What a plugin gets on stdin: its own keys, with the list's name and version, the capabilities that it declares,
/// and `extra` (prevResult, the list of valid attachments).
#[must_use]
pub fn stdin_of(
    list: &NetworkList,
    plugin: &Map<String, Value>,
    capabilities: &BTreeMap<String, Value>,
    extra: &[(&str, &str)],
) -> String {
    let mut conf = plugin.clone();
    conf.insert("name".into(), Value::from(list.name.as_str()));
    conf.insert("cniVersion".into(), Value::from(list.cni_version.as_str()));
    let declared = |name: &String| {
        let flag = plugin.get("capabilities").and_then(|all| all.get(name));
        flag.and_then(Value::as_bool).unwrap_or(false)
    };
    let runtime: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| declared(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !runtime.is_empty() {
        conf.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    let mut text = Value::Object(conf).to_string();
    // Spliced in as text, so that a result reaches the next plugin byte for byte.
    for (key, json) in extra {
        text.truncate(text.len() - 1);
        text.push_str(&format!(",{}:{json}}}", Value::from(*key)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> NetworkList {
        NetworkList::parse(text).unwrap()
    }

    #[test]
    fn a_plugin_sees_its_own_keys_the_lists_and_its_capabilities() {
        let list = list(
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[
                {"type":"portmap","capabilities":{"portMappings":true,"mac":false},"snat":true}]}"#,
        );
        let capabilities = BTreeMap::from([
            ("portMappings".to_owned(), serde_json::json!([{"hostPort": 1}])),
            ("mac".to_owned(), Value::from("02::")),
            ("bandwidth".to_owned(), Value::from(1)),
        ]);
        let text = stdin_of(&list, &list.plugins[0], &capabilities, &[("prevResult", r#"{"x": 1.0}"#)]);
        assert!(text.ends_with(r#","prevResult":{"x": 1.0}}"#), "{text}");
        let seen: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(seen["runtimeConfig"], serde_json::json!({"portMappings": [{"hostPort": 1}]}));
        assert_eq!(
            (seen["snat"].clone(), seen["name"].clone(), seen["cniVersion"].clone()),
            (true.into(), "n".into(), "1.0.0".into())
        );
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{}", "no name"),
            (r#"{"name":"n"}"#, "no plugins"),
            (r#"{"name":"n","plugins":[]}"#, "plugins is empty"),
            (r#"{"name":"n","plugins":[{}]}"#, "plugin 0 has no type"),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"x"}]}"#, "cniVersion is no string"),
        ] {
            let said = NetworkList::parse(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let of = |version: &str| {
            list(&format!(r#"{{"name":"n","cniVersion":"{version}","plugins":[{{"type":"x"}}]}}"#))
        };
        assert!(of("0.4.0").at_least("0.4.0") && of("1.10.0").at_least("1.9.0"));
        assert!(!of("0.3.1").at_least("0.4.0"));
    }
}
