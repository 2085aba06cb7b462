//! A cell's description: what one primary CNI leaves on a node and in a pod, as a YAML file.
//!
//! Entries of links, addresses, routes, neighbours and rules are in iproute2's own words, without the command's name.
//! Words in braces stand for what is known at run time: see [`crate::matrix::words`].

mod parts;

pub use parts::{Absence, Addresses, Axes, Config, Families, Fault, Limit, Link, Plugins, Secondary, Side};

use super::record::Reason;
use crate::lab::cni::NetworkList;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a description is not one.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// It cannot be read.
    #[error("{path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The errno.
        why: std::io::Error,
    },
    /// It is not YAML, or a key is missing, unknown or of the wrong type.
    #[error("{path}: at {at}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which key.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// Its parts do not fit together.
    #[error("{path}: {why}")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
}

/// A primary CNI, as a cell of the matrix.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cell {
    /// Its name, which is the file's too.
    pub cell: String,
    /// What it is, for people.
    pub about: String,
    /// The products and clouds that leave a node like this.
    #[serde(default)]
    pub found: Vec<String>,
    /// Whether the primary's own programs attach the pods.
    pub plugins: Plugins,
    /// What stands for what, where this machine lacks something.
    #[serde(default)]
    pub stands_for: String,
    /// The network configuration that it leaves.
    pub config: Config,
    /// The pod's link; for emulated plugins.
    #[serde(default)]
    pub link: Link,
    /// The MTU of the pod's interface, and of the host's end.
    pub mtu: u32,
    /// What pods get.
    pub addresses: Addresses,
    /// The ranges that the fabric sends to the node.
    #[serde(default)]
    pub networks: Vec<String>,
    /// What the primary's plugin says at ADD, as JSON; made from `addresses` when empty.
    #[serde(default)]
    pub result: String,
    /// The network between nodes.
    #[serde(default)]
    pub fabric: Side,
    /// The node, once.
    #[serde(default)]
    pub node: Side,
    /// A virtual router between pods and the node, once; there is none when this is left out.
    #[serde(default)]
    pub router: Option<Side>,
    /// The pod, at each ADD.
    #[serde(default)]
    pub pod: Side,
    /// The host's side of a pod, at each ADD: where its link is.
    #[serde(default)]
    pub host: Side,
    /// A second network, attached to a pod after it was enrolled, and to one before it joins.
    #[serde(default)]
    pub secondary: Option<Secondary>,
    /// Files that are there before the first pod, by path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Programs that run on the node for as long as the cell stands, by name: program and arguments.
    #[serde(default)]
    pub programs: BTreeMap<String, Vec<String>>,
    /// Files and sockets that they make when pods can be attached.
    #[serde(default)]
    pub awaits: Vec<PathBuf>,
    /// Directories that are emptied before: state of an earlier cell that would change this one.
    #[serde(default)]
    pub forget: Vec<PathBuf>,
    /// What the primary's datapath does to packets at a pod's link, in every way of running the cell.
    #[serde(default)]
    pub datapath: Option<Fault>,
    /// The pod's links that the primary's DEL leaves to the end of the pod's namespace.
    #[serde(default)]
    pub leaves_links: Vec<String>,
    /// What is varied.
    #[serde(default)]
    pub axes: Axes,
    /// What cannot work, and why.
    #[serde(default)]
    pub cannot: Vec<Limit>,
    /// What an operator sets or knows, if anything.
    #[serde(default)]
    pub advice: String,
    /// Where a program of the primary is missing, the cell is not run, for this reason. Otherwise that is a failure.
    #[serde(default)]
    pub optional: String,
}
impl Cell {
    /// Reads one description.
    ///
    /// # Errors
    /// Which file, which key, and what is wrong.
    pub fn read(path: &Path) -> Result<Self, DescribeError> {
        let cell: Self = parse(path)?;
        let wrong = |why: String| DescribeError::Contradiction { path: path.to_path_buf(), why };
        cell.agree(path).map_err(wrong)?;
        Ok(cell)
    }

    /// Reads every description of a directory, by name.
    ///
    /// # Errors
    /// Of the first that is none; or when there are none.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>, DescribeError> {
        let unreadable = |why| DescribeError::Unreadable { path: dir.to_path_buf(), why };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            return Err(unreadable(std::io::Error::other("no descriptions (*.yaml) there")));
        }
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// The list that its file makes: one plugin's configuration becomes a list of one, as runtimes do it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn list(&self) -> Result<NetworkList, String> {
        let said: Value =
            serde_json::from_str(&self.config.text).map_err(|why| format!("config.text: {why}"))?;
        let list = if said.get("plugins").is_some() {
            said
        } else {
            json!({"name": said["name"], "cniVersion": said["cniVersion"], "plugins": [said]})
        };
        NetworkList::parse(&list.to_string()).map_err(|why| format!("config.text: {why}"))
    }

    /// The plugin that is emulated.
    ///
    /// # Errors
    /// As [`Cell::list`].
    pub fn first_plugin(&self) -> Result<String, String> {
        let list = self.list()?;
        let kind = list.plugins.first().and_then(|plugin| plugin.get("type")).and_then(Value::as_str);
        Ok(kind.unwrap_or_default().to_owned())
    }

    fn agree(&self, path: &Path) -> Result<(), String> {
        let stem = path.file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        let sure = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_owned()) };
        sure(self.cell == stem, "cell: it must be the file's name without .yaml")?;
        sure(u32::from_str_radix(&self.config.mode, 8).is_ok(), "config.mode: not an octal mode")?;
        self.list()?;
        let (v4, v6) = (self.addresses.v4.is_some(), self.addresses.v6.is_some());
        sure(v4 || v6, "addresses: neither v4 nor v6")?;
        for families in &self.axes.families {
            let has = (!families.v4() || v4) && (!families.v6() || v6);
            sure(has, &format!("axes.families: {} without addresses of it", families.name()))?;
        }
        for (name, empty) in [
            ("families", self.axes.families.is_empty()),
            ("backends", self.axes.backends.is_empty()),
            ("probes", self.axes.probes.is_empty()),
        ] {
            sure(!empty, &format!("axes.{name}: at least one, which is the base"))?;
        }
        if self.plugins == Plugins::Emulated {
            sure(!self.link.name.is_empty(), "link.name: who emulates must know the host's end")?;
            sure(!self.pod.addresses.is_empty(), "pod.addresses: an emulated pod without an address")?;
        }
        if let Some(secondary) = &self.secondary {
            NetworkList::parse(&secondary.text).map_err(|why| format!("secondary.text: {why}"))?;
        }
        sure(!self.link.at_router || self.router.is_some(), "link.atRouter: there is no router")?;
        self.cannot.iter().try_for_each(Limit::agree)
    }
}

impl Limit {
    /// Reads the limits that hold in every cell.
    ///
    /// # Errors
    /// Which key, and what is wrong.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, DescribeError> {
        let limits: Vec<Self> = parse(path)?;
        let wrong = |why: String| DescribeError::Contradiction { path: path.to_path_buf(), why };
        limits.iter().try_for_each(Self::agree).map_err(wrong)?;
        Ok(limits)
    }

    /// The first that says of a check that it cannot hold where the axes have these values.
    #[must_use]
    pub fn first<'a>(
        limits: impl IntoIterator<Item = &'a Self>,
        check: &str,
        values: &BTreeMap<String, String>,
    ) -> Option<&'a Self> {
        let mut limits = limits.into_iter();
        limits.find(|limit| limit.checks.iter().any(|name| name == check) && limit.holds_at(values))
    }

    /// Why, and what to do.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason { because: self.because.clone(), instead: self.instead.clone() }
    }

    fn agree(&self) -> Result<(), String> {
        for key in self.at.keys() {
            if !crate::matrix::axes::NAMES.contains(&key.as_str()) {
                return Err(format!("cannot.where: {key:?} is none of {:?}", crate::matrix::axes::NAMES));
            }
        }
        for check in &self.checks {
            if !crate::matrix::checks::names().any(|name| name == check) {
                let known: Vec<_> = crate::matrix::checks::names().collect();
                return Err(format!("cannot.checks: {check:?} is none of {known:?}"));
            }
        }
        if self.because.trim().is_empty() {
            return Err("cannot.because: a limit without a reason".into());
        }
        Ok(())
    }
}

impl Absence {
    /// Reads what was not run.
    ///
    /// # Errors
    /// Which key, and what is wrong.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, DescribeError> {
        parse(path)
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DescribeError> {
    let text = std::fs::read_to_string(path)
        .map_err(|why| DescribeError::Unreadable { path: path.to_path_buf(), why })?;
    let source = serde_norway::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(source).map_err(|why| DescribeError::Malformed {
        path: path.to_path_buf(),
        at: why.path().to_string(),
        why: why.inner().to_string(),
    })
}

#[cfg(test)]
mod tests;
