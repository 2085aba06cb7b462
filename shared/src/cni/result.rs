//! What a plugin prints: results, errors and its versions; and the addresses in somebody else's result.

use super::SpecVersion;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::net::IpAddr;

/// The addresses in a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Each once, in the result's order, whatever interface they are said to be on.
    pub ips: Vec<IpAddr>,
    /// What could not be read, in words.
    pub skipped: Vec<String>,
}

/// The error object of the spec, printed on stdout by a plugin that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    /// The spec version of this object.
    pub cni_version: String,
    /// A [`super::code`].
    pub code: u32,
    /// One line: what happened, to what, why, what to do.
    pub msg: String,
    /// More, for a log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// What VERSION answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    /// The spec version of this object.
    pub cni_version: String,
    /// All that we speak, oldest first.
    pub supported_versions: Vec<String>,
}

impl VersionInfo {
    /// Our answer. `asked` is the version in the caller's netconf, used for the answer when we speak it.
    #[must_use]
    pub fn answer(asked: Option<SpecVersion>) -> Self {
        Self {
            cni_version: asked.unwrap_or(SpecVersion::LATEST).to_string(),
            supported_versions: SpecVersion::ALL.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The result of a chain in which nobody before us had anything to say.
#[must_use]
pub fn empty_result(version: SpecVersion) -> String {
    format!(r#"{{"cniVersion":"{version}","dns":{{}}}}"#)
}

/// Reads the pod's addresses out of a result of any version from 0.3.0 on.
///
/// Results are not sane: some primaries put a VLAN id into `mac`, a device number into `sandbox` or an index of
/// nothing into `interface`. So only `ips[].address` is looked at, and an entry that cannot be read is skipped and
/// said, since the netns is what identifies the pod.
#[must_use]
pub fn addresses(result: &RawValue) -> Addresses {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow, default)]
        ips: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Entry {
        address: String,
    }
    let mut found = Addresses::default();
    let entries = match serde_json::from_str::<Outer<'_>>(result.get()) {
        Ok(Outer { ips: Some(ips) }) => serde_json::from_str::<Vec<&RawValue>>(ips.get()),
        Ok(Outer { ips: None }) => return found,
        Err(e) => Err(e),
    };
    let entries = entries.unwrap_or_else(|e| {
        found.skipped.push(format!("prevResult.ips: {}", without_position(&e)));
        Vec::new()
    });
    for (index, entry) in entries.into_iter().enumerate() {
        match serde_json::from_str::<Entry>(entry.get()) {
            Ok(Entry { address }) => match parse_address(&address) {
                Some(ip) if found.ips.contains(&ip) => {}
                Some(ip) => found.ips.push(ip),
                None => {
                    found.skipped.push(format!("prevResult.ips[{index}].address: {address:?} is no address"));
                }
            },
            Err(e) => found.skipped.push(format!("prevResult.ips[{index}]: {}", without_position(&e))),
        }
    }
    found
}

/// `10.0.0.5/24`, `10.0.0.5`, `fd00::5/64`, `fe80::5%eth0/64`. A mapped IPv4 address is written as IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address = address.split_once('%').map_or(address, |(address, _zone)| address);
    let ip: IpAddr = address.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    match prefix.map(str::parse::<u8>) {
        None => Some(ip.to_canonical()),
        Some(Ok(length)) if length <= longest => Some(ip.to_canonical()),
        Some(_) => None,
    }
}

/// serde_json's words without its position, which counts from the start of a part and would mislead.
pub(super) fn without_position(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.rfind(" at line ").map_or(text.clone(), |end| text[..end].to_owned())
}
