//! Would pods start? The rules by which a runtime with libcni reads a configuration directory, as containerd applies
//! them: the first file by name counts, and if it is wrong nothing does.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Which libcni it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libcni {
    /// Before 1.3.
    Old,
    /// From 1.3 on: it adds the files of the network's directory.
    New,
}

/// What is run for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub types: Vec<String>,
}

impl Network {
    /// How often we are in it.
    pub fn ours(&self) -> usize {
        self.types.iter().filter(|kind| *kind == "sluice-cni").count()
    }
}

/// Reads the directory; an error is a node that is NotReady, or on which each pod fails.
pub fn load(conf: &Path, bin: &Path, libcni: Libcni) -> Result<Network> {
    let files = files(conf, &["conf", "conflist", "json"])?;
    let first = files.first().context("no networks found")?;
    let document = read(first)?;
    let text = |key: &str| document[key].as_str().map(str::to_owned);
    let (name, mut plugins) = if first.extension().is_some_and(|end| end == "conflist") {
        let name = text("name").context("no name")?;
        let plugins = document.get("plugins").map_or(Some(Vec::new()), |list| list.as_array().cloned());
        let plugins = plugins.context("plugins is no array")?;
        ensure!(!plugins.is_empty() || document.get("plugins").is_none(), "no plugins in list");
        (name, plugins)
    } else if let Some(delegate) = delegate(conf, &document)? {
        // Multus reads the list itself, without the files of its network's directory, and adds its own entry to none.
        let plugins = delegate["plugins"].as_array().cloned().unwrap_or_else(|| vec![delegate.clone()]);
        (delegate["name"].as_str().unwrap_or_default().to_owned(), plugins)
    } else {
        (text("name").unwrap_or_default(), vec![document.clone()])
    };
    let only_inlined = document["loadOnlyInlinedPlugins"].as_bool().unwrap_or(false);
    if libcni == Libcni::New && !only_inlined && first.extension().is_some_and(|end| end == "conflist") {
        for file in self::files(&conf.join(&name), &["conf"]).unwrap_or_default() {
            plugins.push(read(&file)?);
        }
    }
    ensure!(!plugins.is_empty(), "no plugin configs found");
    let types = plugins.iter().map(|plugin| {
        let kind = plugin["type"].as_str().filter(|kind| !kind.is_empty()).context("missing 'type'")?;
        let found =
            std::fs::metadata(bin.join(kind)).with_context(|| format!("failed to find plugin {kind}"))?;
        ensure!(found.len() > 0 && found.permissions().mode() & 0o111 != 0, "{kind} cannot be run");
        Ok(kind.to_owned())
    });
    Ok(Network { types: types.collect::<Result<_>>()?, name })
}

/// What a meta-plugin runs for each pod: thin Multus has it in its own file, the thick one's shim names the file.
fn delegate(conf: &Path, document: &Value) -> Result<Option<Value>> {
    match document["type"].as_str() {
        Some("multus") => Ok(Some(document["delegates"][0].clone())),
        Some("multus-shim") => {
            let path = document["clusterNetwork"].as_str().context("no clusterNetwork")?;
            let name = Path::new(path).file_name().context("clusterNetwork is no file")?;
            read(&conf.join(name)).map(Some)
        }
        _ => Ok(None),
    }
}

fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let end = path.extension().and_then(|end| end.to_str());
        if !path.is_dir() && end.is_some_and(|end| extensions.contains(&end)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes).with_context(|| format!("error parsing {}", path.display()))
}
