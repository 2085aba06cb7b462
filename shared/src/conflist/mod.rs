//! Puts our entry into somebody else's network configuration list, and takes it out again, as text.
//!
//! The primary CNI's file is its own: strings where numbers would be expected, odd keys and their order mean something
//! to whoever wrote them. So the list is read only to find places in the text, and every byte that is not our entry
//! (or the comma in front of it) stays. What [`insert`] did, [`remove`] undoes to the byte.

//!
//! | module | what it decides |
//! |---|---|
//! | `directory` | which file is the primary's |
//! | `way` | drop-in, in place or a list of our own |
//! | `chain` | what is to be written and removed, in which order |
//! | `pace` | when to write, and whether somebody fights us |
//! | `writer` | who that may be |
//! | `succession` | what goes of an istio-cni that was here before |

mod chain;
mod directory;
mod pace;
mod succession;
#[cfg(test)]
mod tests;
mod way;
mod writer;

pub use chain::{Chained, Plan, Step, Wish, leave, plan};
pub use directory::{
    DROP_IN_FILE, Directory, DropIn, File, Found, OWNED_NAMES, Primary, is_configuration, is_parked,
};
pub use pace::{Fight, Pace};
pub use way::{DropIns, Runtime, Way};
pub use writer::suspect;

use crate::cni::{ExemptPod, LogLevel, NetConf, NetConfError, SpecVersion};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::ops::Range;

/// The `type` of our entry: the plugin's file name.
pub const PLUGIN_TYPE: &str = "sluice-cni";
/// The longest list that is edited, in bytes.
pub const MAX_CONFLIST: usize = 1024 * 1024;

/// Our entry. What is `None` or empty is left out, and the plugin's default holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The agent's socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_socket: Option<String>,
    /// Where the membership file is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    /// How long ADD waits for the agent, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// How much the plugin logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// Pods that start without asking.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exempt_pods: Vec<ExemptPod>,
}

/// Why a list was not edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// It ends too early: perhaps somebody is just writing it.
    #[error("it is cut off: {0}")]
    CutOff(String),
    /// It cannot be read.
    #[error("it is no network configuration list: {0}")]
    NotAList(String),
    /// It has no `plugins`.
    #[error("it is the configuration of a single plugin (.conf) and has no list of plugins to join")]
    SinglePlugin,
    /// There is nobody to be chained behind.
    #[error("its list of plugins is empty, so there is no primary plugin to be chained behind")]
    NoPlugins,
    /// With us in it, no pod would start.
    #[error(
        "it has cniVersion {0:?}, which sluice-cni does not speak: with it in the list no pod would start"
    )]
    Version(String),
    /// What we were told to put into it is wrong.
    #[error("our entry would be wrong: {0}")]
    Entry(NetConfError),
    /// Longer than [`MAX_CONFLIST`].
    #[error("it has more than {MAX_CONFLIST} bytes")]
    TooLong,
}

const WHITE_SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// What an entry says of whose it is.
#[derive(Deserialize)]
struct Plugin {
    r#type: String,
    /// istio-cni's: whether it captures for ambient mode. It redirects sidecars' pods too, which is nobody else's business.
    #[serde(default)]
    ambient_enabled: serde_json::Value,
}

fn is_ours(plugin: &Plugin) -> bool {
    plugin.r#type == PLUGIN_TYPE
}

/// Where things are in the text of a list.
struct List {
    /// `cniVersion`, and `cniVersions` of newer lists.
    versions: Vec<String>,
    /// The plugins' places in the text, and whether they are ours, or whoever's is looked for.
    plugins: Vec<(Range<usize>, bool)>,
}

/// The list with our entry as its last plugin, exactly once.
///
/// An entry of ours that says the same in the same place is left as it is; any other one is taken out first.
///
/// # Errors
/// When the text is not a list that we could be part of, or the entry is one that the plugin would refuse.
pub fn insert(text: &str, entry: &Entry) -> Result<String, ConflistError> {
    let list = List::read(text)?;
    list.speaks_our_versions()?;
    let entry = entry.to_text()?;
    let alone = list.plugins.iter().filter(|(_, ours)| *ours).count() == 1;
    if let Some((place, true)) = list.plugins.last()
        && alone
        && same_json(&text[place.clone()], &entry)
    {
        return Ok(text.to_owned());
    }
    let text = remove(text)?;
    let list = List::read(&text)?;
    let (last, _) = list.plugins.last().ok_or(ConflistError::NoPlugins)?;
    // In the style of the neighbour: the same white space in front.
    let before = &text[..last.start];
    let space = &before[before.trim_end_matches(WHITE_SPACE).len()..];
    Ok(format!("{},{space}{entry}{}", &text[..last.end], &text[last.end..]))
}

/// The list without our entry.
///
/// # Errors
/// When the text is not a list.
pub fn remove(text: &str) -> Result<String, ConflistError> {
    without(text, is_ours)
}

/// The list without the entries that this holds for.
fn without(text: &str, whose: fn(&Plugin) -> bool) -> Result<String, ConflistError> {
    let mut text = text.to_owned();
    while let Some(place) = List::with_entries_of(&text, whose)?.entry_with_its_comma() {
        text.replace_range(place, "");
    }
    Ok(text)
}

/// Whether the list has an entry of ours.
///
/// # Errors
/// When the text is not a list.
pub fn contains(text: &str) -> Result<bool, ConflistError> {
    Ok(List::read(text)?.plugins.iter().any(|(_, ours)| *ours))
}

/// Whether our entry is in the list once, says what it should, and is behind somebody.
///
/// It need not be the last: another mesh that appends itself behind us is no reason to write, and two that both insist
/// on the last place would never end.
///
/// # Errors
/// When the text is not a list, or the entry is one that the plugin would refuse.
pub fn stands(text: &str, entry: &Entry) -> Result<bool, ConflistError> {
    let (list, entry) = (List::read(text)?, entry.to_text()?);
    let mut ours = list.plugins.iter().enumerate().filter(|(_, (_, ours))| *ours);
    Ok(match (ours.next(), ours.next()) {
        (Some((1.., (place, _))), None) => same_json(&text[place.clone()], &entry),
        _ => false,
    })
}

/// A list made of the configuration of a single plugin (`.conf`), which stays in it to the byte, and our entry.
/// Network name and version are those of the plugin: a runtime takes the list for the same network.
///
/// # Errors
/// When the text is not such a configuration, or speaks a version that we do not.
pub fn wrap(text: &str, entry: &Entry) -> Result<String, ConflistError> {
    #[derive(Deserialize)]
    struct Single<'a> {
        #[serde(borrow, rename = "cniVersion", default)]
        version: Option<&'a RawValue>,
        #[serde(borrow)]
        name: &'a RawValue,
    }
    let head = Head::read(text)?;
    if head.plugins.is_some() {
        return Err(ConflistError::NotAList("it is a list already".to_owned()));
    }
    let single: Single<'_> = serde_json::from_str(text).map_err(|e| unread(&e))?;
    let version = single.version.ok_or_else(|| ConflistError::Version(String::new()))?.get();
    let spoken = serde_json::from_str::<String>(version).ok();
    if spoken.as_deref().and_then(SpecVersion::parse).is_none() {
        return Err(ConflistError::Version(spoken.unwrap_or_else(|| version.to_owned())));
    }
    let (name, body, entry) = (single.name.get(), text.trim_matches(WHITE_SPACE), entry.to_text()?);
    Ok(format!("{{\"cniVersion\":{version},\"name\":{name},\"plugins\":[{body},{entry}]}}\n"))
}

/// Our entry as a file of its own, for runtimes that add the files of a directory to a list.
///
/// # Errors
/// When it is one that the plugin would refuse.
pub fn drop_in(entry: &Entry) -> Result<String, ConflistError> {
    Ok(entry.to_text()? + "\n")
}

/// What a configuration says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    /// The network's name.
    name: Option<String>,
    /// The types of its plugins; `None` for the configuration of a single one.
    plugins: Option<Vec<String>>,
    /// The type of a single plugin.
    kind: Option<String>,
    /// `loadOnlyInlinedPlugins`, which some write as a string.
    only_inlined: bool,
}

impl Head {
    fn read(text: &str) -> Result<Self, ConflistError> {
        if text.len() > MAX_CONFLIST {
            return Err(ConflistError::TooLong);
        }
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| unread(&e))?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let plugins = value.get("plugins").map(|plugins| {
            let plugins = plugins.as_array().map(Vec::as_slice).unwrap_or_default();
            plugins.iter().filter_map(|plugin| plugin.get("type").and_then(text)).collect()
        });
        let only_inlined = value.get("loadOnlyInlinedPlugins");
        let head = Self {
            name: value.get("name").and_then(text),
            plugins,
            kind: value.get("type").and_then(text),
            // Whatever is not clearly "no" counts as "yes".
            only_inlined: !only_inlined.is_none_or(|value| {
                value.as_bool() == Some(false)
                    || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("false"))
            }),
        };
        match (&head.plugins, &head.kind) {
            (None, None) => {
                Err(ConflistError::NotAList("it has neither \"plugins\" nor \"type\"".to_owned()))
            }
            _ => Ok(head),
        }
    }
}

fn unread(e: &serde_json::Error) -> ConflistError {
    match e.is_eof() {
        true => ConflistError::CutOff(e.to_string()),
        false => ConflistError::NotAList(e.to_string()),
    }
}

impl List {
    fn read(text: &str) -> Result<Self, ConflistError> {
        Self::with_entries_of(text, is_ours)
    }

    fn with_entries_of(text: &str, whose: fn(&Plugin) -> bool) -> Result<Self, ConflistError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            #[serde(default)]
            cni_version: Option<String>,
            #[serde(default)]
            cni_versions: Option<Vec<String>>,
            #[serde(borrow, default)]
            plugins: Option<Vec<&'a RawValue>>,
            #[serde(borrow, default)]
            r#type: Option<&'a RawValue>,
        }
        if text.len() > MAX_CONFLIST {
            return Err(ConflistError::TooLong);
        }
        let document: Document<'_> = serde_json::from_str(text).map_err(|e| unread(&e))?;
        let plugins = match (document.plugins, document.r#type) {
            (Some(plugins), _) => plugins,
            (None, Some(_)) => return Err(ConflistError::SinglePlugin),
            (None, None) => return Err(ConflistError::NotAList("it has no key \"plugins\"".to_owned())),
        };
        let placed = plugins.into_iter().enumerate().map(|(index, raw)| {
            let plugin: Plugin = serde_json::from_str(raw.get())
                .map_err(|e| ConflistError::NotAList(format!("plugins[{index}] is no plugin: {e}")))?;
            // A borrowed raw value is a part of the text it was read from.
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            Ok((start..start + raw.get().len(), whose(&plugin)))
        });
        Ok(Self {
            plugins: placed.collect::<Result<_, _>>()?,
            versions: document
                .cni_versions
                .unwrap_or_default()
                .into_iter()
                .chain(document.cni_version)
                .collect(),
        })
    }

    /// The runtime picks one of the versions, and not we.
    fn speaks_our_versions(&self) -> Result<(), ConflistError> {
        if self.versions.is_empty() {
            return Err(ConflistError::Version(String::new()));
        }
        match self.versions.iter().find(|version| SpecVersion::parse(version).is_none()) {
            Some(foreign) => Err(ConflistError::Version(foreign.clone())),
            None => Ok(()),
        }
    }

    /// What is to be cut out for the first of those entries: it and the comma on one of its sides.
    fn entry_with_its_comma(&self) -> Option<Range<usize>> {
        let index = self.plugins.iter().position(|(_, ours)| *ours)?;
        let place = |index: usize| self.plugins.get(index).map(|(place, _)| place.clone());
        let ours = place(index)?;
        let before = index.checked_sub(1).and_then(place);
        Some(match (before, place(index + 1)) {
            (Some(before), _) => before.end..ours.end,
            (None, Some(after)) => ours.start..after.start,
            (None, None) => ours,
        })
    }
}

impl Entry {
    /// As it is written into a list, on one line.
    fn to_text(&self) -> Result<String, ConflistError> {
        #[derive(Serialize)]
        struct Typed<'a> {
            r#type: &'static str,
            #[serde(flatten)]
            entry: &'a Entry,
        }
        let text = serde_json::to_string(&Typed { r#type: PLUGIN_TYPE, entry: self })
            .map_err(|e| ConflistError::NotAList(e.to_string()))?;
        // The plugin itself is asked what it would say to it.
        let netconf = format!("{{\"cniVersion\":\"{}\",{}", SpecVersion::LATEST, &text[1..]);
        NetConf::parse(netconf.as_bytes()).and_then(|conf| conf.settings()).map_err(ConflistError::Entry)?;
        Ok(text)
    }
}

impl ConflistError {
    /// Whether somebody may be just writing the file, so that looking again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::CutOff(_) | Self::NotAList(_))
    }
}

fn same_json(a: &str, b: &str) -> bool {
    let value = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    value(a) == value(b)
}
