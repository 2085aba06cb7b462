//! What was written, where: a value for each key, and where it came from. The later source wins: defaults, the file,
//! the environment, flags.

use super::ConfigError;
use super::args::Invocation;
use super::env::Env;
use super::keys::{Default, KEYS, Key};
use super::value::{self, Value, did_you_mean};
use crate::yaml::{self, Mistake, Position, Step};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The variable that names the file when `--config` does not.
pub(super) const FILE_VARIABLE: &str = "SLUICE_CONFIG";
/// The prefix of all of our variables.
const PREFIX: &str = "SLUICE_";

/// Every key's value, and where it came from.
#[derive(Clone, Debug)]
pub struct RawConfig {
    settings: BTreeMap<&'static str, Setting>,
    /// What is suspicious and yet no mistake, for the log.
    pub warnings: Vec<String>,
}

/// One key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As it was written.
    pub value: Value,
    /// Where.
    pub origin: Origin,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file.
    File(PathBuf, Option<Position>),
    /// In this variable.
    Variable(String),
    /// In this flag.
    Flag(String),
}

impl RawConfig {
    /// Gathers all that was written.
    ///
    /// # Errors
    /// The first mistake: where it is, which key, what is wrong, what is allowed.
    pub fn gather(invocation: &Invocation, env: &dyn Env) -> Result<Self, ConfigError> {
        let mut raw = Self { settings: BTreeMap::new(), warnings: unknown_variables(env) };
        if let Some(path) = &invocation.file {
            raw.read_file(path)?;
        }
        for key in KEYS {
            let Some(text) = env.var(&key.variable()) else { continue };
            let origin = Origin::Variable(key.variable());
            let text = text.into_string().map_err(|_| invalid(key, &origin, "it is not UTF-8"))?;
            raw.set_text(key, &text, origin)?;
        }
        for (key, text) in &invocation.flags {
            raw.set_text(key, text, Origin::Flag(key.flag()))?;
        }
        // Last, so that a host whose name is no node's name is a mistake only where nobody says another.
        for key in KEYS {
            if raw.settings.contains_key(key.name) {
                continue;
            }
            let text = match key.default {
                Default::Text(text) => text.to_owned(),
                Default::Computed(compute, _) => compute(env),
            };
            raw.set_text(key, &text, Origin::Default)?;
        }
        Ok(raw)
    }

    /// A key's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    /// An error about a value that is right by itself and cannot be used all the same.
    pub(super) fn refuse(&self, name: &str, why: impl Into<String>) -> ConfigError {
        let origin = self.get(name).map_or(Origin::Default, |setting| setting.origin.clone());
        ConfigError::Refused { origin, key: name.to_owned(), why: why.into() }
    }

    fn set_text(&mut self, key: &'static Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = key.kind.read_text(text).map_err(|why| invalid(key, &origin, &why))?;
        self.settings.insert(key.name, Setting { value, origin });
        Ok(())
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        self.take_file(path, &text)
    }

    /// Takes every value of a file. A file with nothing in it sets nothing.
    pub(super) fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let wrong = |mistake| ConfigError::Yaml { path: path.to_owned(), mistake };
        let document: Option<serde_norway::Mapping> = yaml::parse(text).map_err(wrong)?;
        for (name, value) in document.unwrap_or_default() {
            let Some(name) = name.as_str() else {
                let message = format!("{name:?} is not a key");
                return Err(wrong(Mistake { at: None, field: String::new(), message }));
            };
            let at = [Step::Key(name.to_owned())];
            let Some(key) = Key::named(name) else {
                let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
                let message = format!("there is no such key{}", did_you_mean(name, &names));
                return Err(wrong(Mistake::at_path(text, &at, message)));
            };
            let value = key.kind.read_yaml(text, &at, value).map_err(|mistake| ConfigError::Invalid {
                place: format!("{}: {mistake}", path.display()),
                allowed: key.kind.allowed(),
            })?;
            let origin = Origin::File(path.to_owned(), yaml::locate(text, &at));
            self.settings.insert(key.name, Setting { value, origin });
        }
        Ok(())
    }
}

fn invalid(key: &Key, origin: &Origin, why: &str) -> ConfigError {
    ConfigError::Invalid { place: format!("{origin}: {}: {why}", key.name), allowed: key.kind.allowed() }
}

/// Variables that look like a misspelt key. Others with our prefix are none of our business: Kubernetes sets
/// `SLUICE_AGENT_PORT_…` where there is a Service `sluice-agent`.
fn unknown_variables(env: &dyn Env) -> Vec<String> {
    let known: Vec<String> = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]).collect();
    let bare: Vec<&str> = known.iter().filter_map(|name| name.strip_prefix(PREFIX)).collect();
    let suspicious = |name: String| {
        let close = value::closest(name.strip_prefix(PREFIX)?, &bare)?;
        (!known.contains(&name))
            .then(|| format!("the variable {name} sets no key; did you mean {PREFIX}{close}?"))
    };
    env.names().into_iter().filter_map(suspicious).collect()
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, Some(at)) => write!(f, "{}: {at}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}
