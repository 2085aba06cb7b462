//! A configuration directory as it was found, and which of its files is the primary CNI's.

use super::{ConflistError, Head};

/// What our own list may be called, in order of preference; the first that sorts before everybody else's is taken.
pub const OWNED_NAMES: [&str; 2] = ["00-sluice.conflist", "0-sluice.conflist"];
/// The name of our file in a network's drop-in directory.
pub const DROP_IN_FILE: &str = "90-sluice.conf";

/// What runtimes take for a configuration (go-cni takes all three, CRI-O the first two).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// What others put behind the name of a file that shall not count: Cilium's exclusive mode, minikube.
const PARKED: [&str; 2] = [".cilium_bak", ".mk_disabled"];
/// Plugins that call another one, whose file they follow: that one is the primary.
const META_PLUGINS: [&str; 3] = ["multus", "multus-shim", "multus-cni"];
/// Plugins whose agents, when they chain, copy another list of the same network, append themselves and follow it.
const FOLLOWERS: [&str; 2] = ["cilium-cni", "antrea"];

/// A configuration directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// The files that [`is_configuration`] or [`is_parked`] holds for.
    pub files: Vec<File>,
    /// Our files in the networks' own directories.
    pub drop_ins: Vec<DropIn>,
}

/// One file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name, without the directory.
    pub name: String,
    /// Its text, or why it could not be read.
    pub text: Result<String, String>,
}

/// A drop-in of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropIn {
    /// The network, which is the name of the directory that it is in.
    pub network: String,
    /// Its text, or why it could not be read.
    pub text: Result<String, String>,
}

/// The primary CNI's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Primary<'a> {
    /// Nobody has written one.
    Absent {
        /// The meta-plugin's file that is there all the same.
        behind: Option<&'a str>,
    },
    /// It is there and cannot be understood: somebody may be writing it, so this is never taken for absence.
    Unreadable {
        /// Its name.
        name: &'a str,
        /// What is wrong with it.
        why: String,
    },
    /// It is this one.
    Found(Found<'a>),
}

/// A configuration that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The file's name.
    pub name: &'a str,
    /// The file's text.
    pub text: &'a str,
    /// The network's name.
    pub network: Option<String>,
    /// Whether it is a list, by name and content; the alternative is the configuration of a single plugin.
    pub list: bool,
    /// Whether the list lets runtimes add the files of the network's directory.
    pub takes_drop_ins: bool,
    /// The types of its plugins, ours left out.
    pub types: Vec<String>,
    /// The meta-plugin's file in front of it.
    pub behind: Option<&'a str>,
    /// The list that this one is a copy of, with its owner's plugin appended: what is done to this one is undone, and
    /// what is done to that one comes here. It may be parked.
    pub follows: Option<&'a str>,
}

/// Whether a runtime takes a file of this name for a configuration.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    // As Go's filepath.Ext: a hidden file counts too.
    name.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension))
}

/// Whether the file is a configuration that another program has put out of force by its name.
#[must_use]
pub fn is_parked(name: &str) -> bool {
    PARKED.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(is_configuration))
}

/// Whether the file is our own list, or was it before somebody parked it.
pub(super) fn is_owned(name: &str) -> bool {
    let name = PARKED.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    OWNED_NAMES.contains(&name)
}

impl Directory {
    /// The others' configurations, in the order in which runtimes look at them.
    pub(super) fn others(&self) -> Vec<&File> {
        let mut others: Vec<_> =
            self.files.iter().filter(|file| is_configuration(&file.name) && !is_owned(&file.name)).collect();
        others.sort_by(|a, b| a.name.cmp(&b.name));
        others
    }

    /// Which configuration is the primary's: the first that a runtime would take, our own and meta-plugins left out.
    #[must_use]
    pub fn primary(&self) -> Primary<'_> {
        let mut behind = None;
        for File { name, text } in self.others() {
            let unreadable = |why| Primary::Unreadable { name, why };
            let text = match text {
                Ok(text) => text,
                Err(why) => return unreadable(why.clone()),
            };
            let head = match Head::read(text) {
                Ok(head) => head,
                Err(why) => return unreadable(why.to_string()),
            };
            if head.kind.as_deref().is_some_and(|kind| META_PLUGINS.contains(&kind)) {
                behind = behind.or(Some(name.as_str()));
                continue;
            }
            return match Found::new(name, text, head, behind) {
                Ok(found) => Primary::Found(Found { follows: self.base_of(&found), ..found }),
                Err(why) => unreadable(why.to_string()),
            };
        }
        Primary::Absent { behind }
    }

    fn base_of(&self, copy: &Found<'_>) -> Option<&str> {
        let (last, base) = copy.types.split_last()?;
        if !copy.list || base.is_empty() || !FOLLOWERS.contains(&last.as_str()) {
            return None;
        }
        let mut lists = self.files.iter().filter(|File { name, text }| {
            let head = text.as_ref().ok().and_then(|text| Head::read(text).ok());
            let types = head.as_ref().and_then(|head| head.plugins.as_ref());
            let others = types.map(|types| types.iter().filter(|kind| *kind != super::PLUGIN_TYPE));
            name != copy.name
                && !is_owned(name)
                && head.as_ref().is_some_and(|head| head.name == copy.network)
                && others.is_some_and(|others| others.eq(base))
        });
        lists.next().map(|file| file.name.as_str())
    }
}

impl<'a> Found<'a> {
    fn new(name: &'a str, text: &'a str, head: Head, behind: Option<&'a str>) -> Result<Self, ConflistError> {
        // By the name a runtime decides how the file is read.
        let list = name.ends_with(".conflist");
        let types = match (list, head.plugins, head.kind) {
            (true, Some(plugins), _) => plugins,
            (true, None, _) => return Err(ConflistError::SinglePlugin),
            (false, _, Some(kind)) => vec![kind],
            (false, _, None) => {
                return Err(ConflistError::NotAList(
                    "by its name it is the configuration of a single plugin, and it has no \"type\""
                        .to_owned(),
                ));
            }
        };
        Ok(Self {
            name,
            text,
            network: head.name,
            list,
            takes_drop_ins: list && !head.only_inlined,
            types: types.into_iter().filter(|kind| kind != super::PLUGIN_TYPE).collect(),
            behind,
            follows: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> Directory {
        let file = |(name, text): &(&str, &str)| File { name: (*name).into(), text: Ok((*text).into()) };
        Directory { files: files.iter().map(file).collect(), drop_ins: Vec::new() }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;
    const MULTUS: &str = r#"{"cniVersion":"1.0.0","name":"m","type":"multus-shim"}"#;

    #[test]
    fn the_first_by_name_that_is_neither_ours_nor_a_meta_plugins() {
        let name = |files: &[(&str, &str)]| match directory(files).primary() {
            Primary::Found(found) => found.name.to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(name(&[("10-b.conflist", LIST), ("05-a.conflist", LIST)]), "05-a.conflist");
        assert_eq!(name(&[("10-b.conflist", LIST), ("00-sluice.conflist", LIST)]), "10-b.conflist");
        assert_eq!(name(&[("10-b.conflist", LIST), ("00-multus.conf", MULTUS)]), "10-b.conflist");
        assert_eq!(name(&[("10-b.conflist", LIST), ("1-k8s.conflist", LIST)]), "1-k8s.conflist");
        assert_eq!(name(&[("10-b.conflist", LIST), ("05-a.conflist.cilium_bak", LIST)]), "10-b.conflist");
        assert_eq!(name(&[("10-o.conflist", LIST), ("10-o.conf", r#"{"type":"o"}"#)]), "10-o.conf");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_passed_over() {
        for text in ["", "{", "{}", "[]", "garbage", r#"{"type":"single"}"#] {
            let directory = directory(&[("05-a.conflist", text), ("10-b.conflist", LIST)]);
            let primary = directory.primary();
            assert!(
                matches!(primary, Primary::Unreadable { name: "05-a.conflist", .. }),
                "{text}: {primary:?}"
            );
        }
    }

    #[test]
    fn only_a_meta_plugin_is_no_primary() {
        let primary = directory(&[("00-multus.conf", MULTUS)]);
        assert_eq!(primary.primary(), Primary::Absent { behind: Some("00-multus.conf") });
        assert_eq!(Directory::default().primary(), Primary::Absent { behind: None });
    }

    #[test]
    fn drop_ins_are_taken_by_lists_that_do_not_forbid_them() {
        let takes = |key: &str| {
            let text = LIST.replace("\"name\"", &format!("{key}\"name\""));
            match directory(&[("10-a.conflist", &text)]).primary() {
                Primary::Found(found) => found.takes_drop_ins,
                other => panic!("{other:?}"),
            }
        };
        assert!(takes(""));
        assert!(takes(r#""loadOnlyInlinedPlugins":false,"#));
        assert!(takes(r#""loadOnlyInlinedPlugins":"False","#));
        assert!(!takes(r#""loadOnlyInlinedPlugins":true,"#));
        assert!(!takes(r#""loadOnlyInlinedPlugins":"perhaps","#));
    }

    #[test]
    fn names() {
        for name in ["a.conf", "a.conflist", "a.json", ".conflist"] {
            assert!(is_configuration(name), "{name}");
        }
        for name in ["a", "a.conf.tmp", ".sluice-1.tmp", "calico-kubeconfig", "a.conflist~"] {
            assert!(!is_configuration(name), "{name}");
        }
        assert!(is_parked("a.conf.cilium_bak") && is_parked("a.conflist.mk_disabled"));
        assert!(!is_parked("a.cilium_bak") && !is_parked("a.conf"));
    }
}
