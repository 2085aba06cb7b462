//! What the configuration reads of its surroundings, so that tests need not change the process's own.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// The surroundings.
pub trait Env {
    /// A variable.
    fn var(&self, name: &str) -> Option<OsString>;
    /// The names of all variables that are text.
    fn names(&self) -> Vec<String>;
    /// The host's name, as `uname -n` has it.
    fn hostname(&self) -> Option<String>;
}

/// The process's own.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEnv;

/// Variables from a map, on a host that is called `HOSTNAME` there.
impl Env for BTreeMap<&str, &str> {
    fn var(&self, name: &str) -> Option<OsString> {
        self.get(name).map(OsString::from)
    }

    fn names(&self) -> Vec<String> {
        self.keys().map(|name| (*name).to_owned()).collect()
    }

    fn hostname(&self) -> Option<String> {
        self.get("HOSTNAME").map(|name| (*name).to_owned())
    }
}

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }

    fn hostname(&self) -> Option<String> {
        nix::sys::utsname::uname().ok()?.nodename().to_str().map(str::to_owned)
    }
}
