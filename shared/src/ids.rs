//! Small values that cannot be confused with each other, checked once where they enter.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A pod's `metadata.uid`. Checked so that it can name a file: 1 to 64 of `[A-Za-z0-9._-]`, not starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(String);

/// A pod by name, as people say it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// The namespace, a DNS label.
    pub namespace: String,
    /// The name, a DNS subdomain.
    pub name: String,
}

/// The identity of a network namespace: two handles are the same namespace if, and only if, this is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsId {
    /// `st_dev` of the nsfs inode.
    pub dev: u64,
    /// `st_ino` of the nsfs inode.
    pub inode: u64,
}

/// An interface name: 1 to 15 bytes, no `/`, no white space (`dev_valid_name` in net/core/dev.c).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ifname(String);

/// A packet or connection mark under a mask. Only the masked bits are ever compared or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The bits to compare or write; within the mask.
    pub value: u32,
    /// Which bits are ours.
    pub mask: u32,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Why a value was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {why}")]
pub struct InvalidId {
    /// Which kind of value it should have been.
    pub what: &'static str,
    /// What was given, shortened to 80 characters.
    pub value: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, value: &str, why: &'static str) -> Self {
        Self { what, value: value.chars().take(80).collect(), why }
    }
}

impl PodUid {
    /// Checks and takes a uid.
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
        let value = value.into();
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if value.is_empty() || value.len() > 64 {
            return Err(InvalidId::new("pod uid", &value, "it must have 1 to 64 characters"));
        }
        if value.starts_with('.') || !value.chars().all(fine) {
            return Err(InvalidId::new(
                "pod uid",
                &value,
                "only letters, digits, '.', '_' and '-' are allowed, and no dot in front",
            ));
        }
        Ok(Self(value))
    }

    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ifname {
    /// Checks and takes an interface name.
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
        let value = value.into();
        if value.is_empty() || value.len() > 15 {
            return Err(InvalidId::new("interface name", &value, "it must have 1 to 15 bytes"));
        }
        if value == "." || value == ".." || value.contains(['/', ':']) || value.contains(char::is_whitespace)
        {
            return Err(InvalidId::new("interface name", &value, "no '/', ':' or white space is allowed"));
        }
        if !value.chars().all(|c| c.is_ascii_graphic()) {
            return Err(InvalidId::new("interface name", &value, "only printable ASCII is allowed"));
        }
        Ok(Self(value))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Mark {
    /// Whether `mark` carries this value under this mask.
    #[must_use]
    pub const fn matches(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }

    /// `mark` with this value written under this mask, the other bits kept.
    #[must_use]
    pub const fn write(self, mark: u32) -> u32 {
        (mark & !self.mask) | self.value
    }
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl PodRef {
    /// A pod by namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl TryFrom<String> for PodUid {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        Self::new(value)
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.0
    }
}

impl TryFrom<String> for Ifname {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        Self::new(value)
    }
}

impl From<Ifname> for String {
    fn from(name: Ifname) -> Self {
        name.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Ifname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
