//! What a key may be set to: read from text (environment, flags, defaults) or YAML (the file), then checked.

use crate::names::{dns_label, dns_subdomain, qualified_name};
use crate::yaml::{self, Mistake, Step};
use serde::de::DeserializeOwned;
use sluice_shared::enroll::EnablementSelector;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// The longest path that a unix socket can have, in bytes (`sun_path`, less its end).
const MAX_SOCKET_PATH: usize = 107;

/// What kind of value a key takes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// An absolute path.
    Path,
    /// An absolute path, or nothing.
    OptionalPath,
    /// A path that a unix socket can have.
    Socket,
    /// An address that a host may use as a source.
    Ipv4,
    /// An address that a host may use as a source.
    Ipv6,
    /// Where to listen for TCP; empty for nowhere.
    Listen,
    /// A Kubernetes node's name.
    NodeName,
    /// The name of a Kubernetes object, or nothing.
    OptionalName,
    /// Keys of taints.
    TaintKeys,
    /// Namespaces.
    Namespaces,
    /// Enablement selectors.
    Selectors,
    /// `auto`, or an absolute path.
    AutoOrPath,
    /// `auto`, an absolute path, or nothing.
    AutoPathOrNone,
    /// Absolute paths.
    Paths,
    /// A `tracing` filter.
    LogFilter,
}

/// A value as it was written, checked by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Words, paths, addresses, names, filters.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Number(u64),
    /// Namespaces, paths, or keys of taints.
    Names(Vec<String>),
    /// Enablement selectors.
    Selectors(Vec<EnablementSelector>),
}

impl Kind {
    /// Reads a value from a variable, a flag or a default.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read_text(&self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Flag => Value::Flag(text.parse().map_err(|_| format!("{text:?} is not true or false"))?),
            Self::Number(_) => {
                Value::Number(text.parse().map_err(|_| format!("{text:?} is not a whole number"))?)
            }
            Self::Namespaces | Self::Paths | Self::TaintKeys => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Value::Names(names.map(str::to_owned).collect())
            }
            Self::Selectors => {
                Value::Selectors(yaml::parse(text).map_err(|mistake: Mistake| mistake.to_string())?)
            }
            _ => Value::Text(text.to_owned()),
        };
        self.check(&value)?;
        Ok(value)
    }

    /// Reads a value from the file, where it is found by `path`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read_yaml(&self, file: &str, path: &[Step], value: serde_norway::Value) -> Result<Value, Mistake> {
        fn typed<T: DeserializeOwned>(
            file: &str,
            path: &[Step],
            value: serde_norway::Value,
            wrap: fn(T) -> Value,
        ) -> Result<Value, Mistake> {
            yaml::parse_value(file, path, value).map(wrap)
        }
        let value = match self {
            Self::Flag => typed(file, path, value, Value::Flag),
            Self::Number(_) => typed(file, path, value, Value::Number),
            Self::Namespaces | Self::Paths | Self::TaintKeys => typed(file, path, value, Value::Names),
            Self::Selectors => typed(file, path, value, Value::Selectors),
            // `metricsAddress:` with nothing after it is how YAML says "empty".
            Self::Listen | Self::OptionalPath | Self::OptionalName | Self::AutoPathOrNone
                if value.is_null() =>
            {
                Ok(Value::Text(String::new()))
            }
            _ => typed(file, path, value, Value::Text),
        }?;
        self.check(&value).map_err(|why| Mistake::at_path(file, path, why))?;
        Ok(value)
    }

    /// What is allowed, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Word(words) => words.join(", "),
            Self::Flag => "true, false".to_owned(),
            Self::Number(range) => format!("a whole number from {} to {}", range.start(), range.end()),
            Self::Path => "an absolute path".to_owned(),
            Self::OptionalPath => "an absolute path, or empty".to_owned(),
            Self::Socket => format!("an absolute path of at most {MAX_SOCKET_PATH} bytes"),
            Self::Ipv4 => "an IPv4 address that a host can have, not loopback".to_owned(),
            Self::Ipv6 => "an IPv6 address that a host can have, not loopback".to_owned(),
            Self::Listen => "ADDRESS:PORT ([ADDRESS]:PORT for IPv6), or empty".to_owned(),
            Self::NodeName => "a DNS name, as Kubernetes names nodes".to_owned(),
            Self::OptionalName => "a DNS name, as Kubernetes names objects, or empty".to_owned(),
            Self::TaintKeys => "keys of taints ([PREFIX/]NAME); as text, joined by commas".to_owned(),
            Self::Namespaces => "namespaces; as text, joined by commas".to_owned(),
            Self::Selectors => "a list of {podSelector, namespaceSelector}, each a label selector \
                                with matchLabels and matchExpressions; as text, in YAML or JSON"
                .to_owned(),
            Self::AutoOrPath => "auto, or an absolute path".to_owned(),
            Self::AutoPathOrNone => "auto, an absolute path, or empty".to_owned(),
            Self::Paths => "absolute paths; as text, joined by commas".to_owned(),
            Self::LogFilter => "a level (error, warn, info, debug, trace), or target=level pairs joined by \
                                commas"
                .to_owned(),
        }
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::Number(range), Value::Number(number)) if !range.contains(number) => {
                Err(format!("{number} is out of range"))
            }
            (Self::Paths, Value::Names(paths)) => paths.iter().try_for_each(|path| absolute(path)),
            (Self::TaintKeys, Value::Names(keys)) => keys.iter().try_for_each(|key| qualified_name(key)),
            (_, Value::Names(names)) => names.iter().try_for_each(|name| dns_label(name)),
            (_, Value::Selectors(selectors)) => check_selectors(selectors),
            (_, Value::Text(text)) => self.check_text(text),
            (_, Value::Number(_) | Value::Flag(_)) => Ok(()),
        }
    }

    fn check_text(&self, text: &str) -> Result<(), String> {
        match self {
            Self::Word(words) => match words.contains(&text) {
                true => Ok(()),
                false => Err(format!("{text:?} is not one of them{}", did_you_mean(text, words))),
            },
            Self::Path => absolute(text),
            Self::OptionalPath if text.is_empty() => Ok(()),
            Self::OptionalPath => absolute(text),
            Self::AutoOrPath | Self::AutoPathOrNone if text == "auto" => Ok(()),
            Self::AutoPathOrNone if text.is_empty() => Ok(()),
            Self::AutoOrPath | Self::AutoPathOrNone => absolute(text),
            Self::Socket if text.len() > MAX_SOCKET_PATH => Err(format!("{text:?} is too long")),
            Self::Socket => absolute(text),
            Self::Ipv4 => source_v4(text),
            Self::Ipv6 => source_v6(text),
            Self::Listen if text.is_empty() => Ok(()),
            Self::Listen => parses::<SocketAddr>(text, "an address and port").map(drop),
            Self::OptionalName if text.is_empty() => Ok(()),
            Self::NodeName | Self::OptionalName => dns_subdomain(text),
            Self::LogFilter => match EnvFilter::try_new(text) {
                Ok(_) if !text.trim().is_empty() => Ok(()),
                Ok(_) => Err("it is empty".to_owned()),
                Err(error) => Err(format!("{text:?}: {error}")),
            },
            Self::Flag
            | Self::Number(_)
            | Self::Namespaces
            | Self::Paths
            | Self::TaintKeys
            | Self::Selectors => Ok(()),
        }
    }
}

/// ` (did you mean X?)`, when one of the words is close.
#[must_use]
pub fn did_you_mean(text: &str, words: &[&str]) -> String {
    closest(text, words).map(|word| format!(" (did you mean {word}?)")).unwrap_or_default()
}

/// The word that `text` is probably meant to be.
#[must_use]
pub fn closest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let limit = (text.len() / 3).max(2);
    let (far, word) = words.iter().map(|word| (distance(&lower, &word.to_lowercase()), *word)).min()?;
    let begun = words.iter().find(|word| text.len() > 2 && word.to_lowercase().starts_with(&lower));
    if far <= limit { Some(word) } else { begun.copied() }
}

/// How many characters must be added, dropped or replaced to get from one text to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn absolute(text: &str) -> Result<(), String> {
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(());
    }
    Err(format!("{text:?} is not an absolute path"))
}

fn parses<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not {what}"))
}

fn source_v4(text: &str) -> Result<(), String> {
    let ip: Ipv4Addr = parses(text, "an IPv4 address")?;
    let wrong = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast();
    if wrong { Err(format!("{ip} cannot be the source of a probe")) } else { Ok(()) }
}

fn source_v6(text: &str) -> Result<(), String> {
    let ip: Ipv6Addr = parses(text, "an IPv6 address")?;
    let wrong = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.to_ipv4_mapped().is_some();
    if wrong { Err(format!("{ip} cannot be the source of a probe")) } else { Ok(()) }
}

fn check_selectors(selectors: &[EnablementSelector]) -> Result<(), String> {
    for (index, selector) in selectors.iter().enumerate() {
        for (part, labels) in
            [("podSelector", &selector.pod_selector), ("namespaceSelector", &selector.namespace_selector)]
        {
            labels.validate().map_err(|error| format!("[{index}].{part}: {error}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_words_are_suggested_and_distant_ones_are_not() {
        let words = ["nftables", "iptables", "auto"];
        assert_eq!(did_you_mean("nftable", &words), " (did you mean nftables?)");
        assert_eq!(did_you_mean("nft", &words), " (did you mean nftables?)");
        assert_eq!(did_you_mean("IPTables", &words), " (did you mean iptables?)");
        assert_eq!(did_you_mean("bpf-based", &words), "");
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }
}
