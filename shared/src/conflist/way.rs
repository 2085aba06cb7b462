//! Drop-in, in place or a list of our own: the least invasive way that the runtime and the primary's file allow.

use super::directory::Found;
use serde::{Deserialize, Serialize};

/// How our entry gets into the chain. Never two at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A file of our own in `<directory>/<network>/`, which libcni from 1.3 on adds to the list. Nobody else writes it.
    DropIn,
    /// Our entry in the primary's own list.
    InPlace,
    /// A list of our own that sorts first and repeats the primary's.
    Owned,
}

/// Whether the node's runtime adds drop-ins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DropIns {
    /// It does.
    Added,
    /// It does not.
    Ignored,
    /// Nobody has said what runtime it is.
    #[default]
    Unknown,
}

/// The node's container runtime, as the CRI or the node's status names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// `containerd`, `cri-o`
    pub name: String,
    /// `2.1.4`, `v1.7.28-k3s1`
    pub version: String,
}

impl Way {
    /// As it is written in options and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DropIn => "drop-in",
            Self::InPlace => "in-place",
            Self::Owned => "owned",
        }
    }

    /// The way of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::DropIn, Self::InPlace, Self::Owned].into_iter().find(|way| way.as_str() == text)
    }
}

impl Runtime {
    /// Reads `containerd://2.1.4`, as a node's status has it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, version) = text.split_once("://")?;
        (!name.is_empty() && !version.is_empty())
            .then(|| Self { name: name.to_owned(), version: version.to_owned() })
    }

    /// Whether its libcni adds drop-ins: containerd has libcni 1.3 from 2.1 on, CRI-O from 1.34 on (their `go.mod`).
    #[must_use]
    pub fn drop_ins(&self) -> DropIns {
        let first = match self.name.as_str() {
            "containerd" => (2, 1),
            "cri-o" => (1, 34),
            _ => return DropIns::Unknown,
        };
        let digits = |part: &str| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse::<u32>().ok()
        };
        let version = self.version.strip_prefix('v').unwrap_or(&self.version);
        let mut parts = version.split('.').map(digits);
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) >= first => DropIns::Added,
            (Some(_), Some(_)) => DropIns::Ignored,
            _ => DropIns::Unknown,
        }
    }
}

/// Chooses, and says why; or says why there is no way. `now` is whether a drop-in of ours is there.
///
/// While the runtime is not known, a drop-in that is there stays: at a boot nobody has asked the runtime yet.
pub(super) fn choose(
    primary: &Found<'_>,
    asked: Option<Way>,
    drop_ins: DropIns,
    now: bool,
) -> Result<(Way, String), String> {
    let name = primary.name;
    if let Some(way) = asked {
        return may(primary, way).map(|()| (way, format!("the option says {}", way.as_str())));
    }
    let runtime = match (drop_ins, now) {
        (DropIns::Added, _) | (DropIns::Unknown, true) => match may(primary, Way::DropIn) {
            Ok(()) => return Ok((Way::DropIn, "the runtime adds drop-ins to the list".to_owned())),
            Err(why) => why,
        },
        (DropIns::Ignored, _) => "the runtime's libcni is older than 1.3 and knows no drop-ins".to_owned(),
        (DropIns::Unknown, false) => "whether the runtime knows drop-ins is not known".to_owned(),
    };
    if may(primary, Way::InPlace).is_ok() {
        return Ok((Way::InPlace, runtime));
    }
    may(primary, Way::Owned)?;
    Ok((Way::Owned, format!("{name} is the configuration of a single plugin, whose name and form must stay")))
}

/// Whether the primary's file can be chained that way.
fn may(primary: &Found<'_>, way: Way) -> Result<(), String> {
    let name = primary.name;
    if let Some(meta) = primary.behind {
        may_behind(name, meta, way)?;
    }
    match way {
        Way::DropIn if !primary.list => Err(format!("{name} is no list, and only lists take drop-ins")),
        Way::DropIn if !primary.takes_drop_ins => Err(format!("{name} sets loadOnlyInlinedPlugins")),
        Way::DropIn if !primary.network.as_deref().is_some_and(is_network_name) => {
            Err(format!("{name} names no network that could be a directory"))
        }
        Way::InPlace if !primary.list => {
            Err(format!("{name} is the configuration of a single plugin and has no list to join"))
        }
        Way::Owned if primary.follows.is_some() => {
            // It would copy our list in the place of the primary's, and ours would copy its: without end.
            Err(format!(
                "{name} is a copy of another list that its owner follows, and would be one of ours then"
            ))
        }
        Way::DropIn | Way::InPlace | Way::Owned => Ok(()),
    }
}

/// The same for a file that is not the runtime's own, but the one that the meta-plugin `meta` calls: only that file
/// itself is sure to be read.
fn may_behind(name: &str, meta: &str, way: Way) -> Result<(), String> {
    match way {
        // The runtime's libcni adds drop-ins to the list that it loads itself: the meta-plugin's.
        Way::DropIn => Err(format!("{name} is read by {meta}, which adds no drop-ins to it")),
        Way::InPlace => Ok(()),
        // It would take our list for its primary, and our list would call it: without end.
        Way::Owned => Err(format!(
            "{name} cannot be joined by a list of our own, since {meta} would follow that one; set \
             --auxiliary-chain to the chain that Multus runs after its default network"
        )),
    }
}

/// As the CNI spec has it; so it is also a plain file name.
pub(super) fn is_network_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) && name.len() < 200
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_ins(text: &str) -> DropIns {
        Runtime::parse(text).map_or(DropIns::Unknown, |runtime| runtime.drop_ins())
    }

    #[test]
    fn runtimes_by_version() {
        for added in ["containerd://2.1.0", "containerd://v2.1.4-k3s1", "containerd://3.0", "cri-o://1.34.0"]
        {
            assert_eq!(drop_ins(added), DropIns::Added, "{added}");
        }
        for ignored in ["containerd://1.7.28", "containerd://2.0.5", "cri-o://1.33.2"] {
            assert_eq!(drop_ins(ignored), DropIns::Ignored, "{ignored}");
        }
        for unknown in
            ["", "containerd", "containerd://", "containerd://x.y", "docker://28.0", "containerd://2"]
        {
            assert_eq!(drop_ins(unknown), DropIns::Unknown, "{unknown}");
        }
    }

    #[test]
    fn network_names_that_can_be_directories() {
        for name in ["cbr0", "k8s-pod-network", "aws-cni", "a.b_c"] {
            assert!(is_network_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", "-a", "a b", "ä"] {
            assert!(!is_network_name(name), "{name}");
        }
    }
}
