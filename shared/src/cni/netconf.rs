//! The netconf of our chain entry, as a runtime hands it over on stdin.

use super::result::without_position;
use super::{SpecVersion, code};
use crate::contract::{AGENT_SOCKET, STATE_DIR};
use crate::wire::AttachmentId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

/// How long ADD waits for the agent when the netconf does not say (docs/decisions/0012-add-waits.md).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that `timeoutSeconds` may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest path that fits into `sockaddr_un.sun_path` with its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A netconf. It borrows from the bytes on stdin, so that `prevResult` stays exactly what the runtime gave.
///
/// Our own keys are read in a second step ([`NetConf::settings`]): a mistake in them must neither stop a DEL nor the
/// start of the pod that would repair it. Keys that we do not know (`capabilities`, `runtimeConfig`, `ipam`, …) are
/// ignored.
#[derive(Clone, Copy, Debug)]
pub struct NetConf<'a> {
    /// `cniVersion`: what our result must be written in.
    pub version: SpecVersion,
    /// `prevResult`, an object, byte for byte.
    pub prev_result: Option<&'a RawValue>,
    document: Document<'a>,
}

/// What our own keys of the netconf say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `agentSocket`
    pub agent_socket: String,
    /// `stateDir`
    pub state_dir: String,
    /// `timeoutSeconds`, 1 to 60
    pub timeout: Duration,
    /// `logLevel`
    pub log_level: LogLevel,
    /// `exemptPods`
    pub exempt_pods: Vec<ExemptPod>,
}

/// Pods that are never in the mesh and start without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExemptPod {
    /// Their namespace, exactly.
    pub namespace: String,
    /// What their names begin with.
    pub name_prefix: String,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what was done.
    #[default]
    Info,
    /// And why.
    Debug,
}

/// Why a netconf was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetConfError {
    /// Not JSON, or cut off.
    #[error("the netconf on stdin is not JSON: {0}")]
    NotJson(String),
    /// JSON, but no netconf.
    #[error("the netconf on stdin is no netconf: {0}")]
    NotANetconf(String),
    /// A spec version that we do not speak.
    #[error("the netconf asks for cniVersion {0:?}; sluice-cni speaks 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version(String),
    /// One key is wrong.
    #[error("netconf key {key}: {why}")]
    Key {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The keys that we know, unread.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    #[serde(borrow, default)]
    cni_version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prev_result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    agent_socket: Option<&'a RawValue>,
    #[serde(borrow, default)]
    state_dir: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timeout_seconds: Option<&'a RawValue>,
    #[serde(borrow, default)]
    log_level: Option<&'a RawValue>,
    #[serde(borrow, default)]
    exempt_pods: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<&'a RawValue>,
}

impl<'a> NetConf<'a> {
    /// Reads a netconf.
    ///
    /// # Errors
    /// Names the line and column when it is not JSON, and the key when one is wrong.
    pub fn parse(stdin: &'a [u8]) -> Result<Self, NetConfError> {
        let document: Document<'a> = serde_json::from_slice(stdin).map_err(|e| {
            if e.is_data() {
                NetConfError::NotANetconf(e.to_string())
            } else if stdin.iter().all(u8::is_ascii_whitespace) {
                NetConfError::NotJson("it is empty".to_owned())
            } else {
                NetConfError::NotJson(e.to_string())
            }
        })?;
        let version: Option<String> = read("cniVersion", document.cni_version)?;
        let version = version.unwrap_or_default();
        let version = SpecVersion::parse(&version)
            .ok_or_else(|| NetConfError::Version(version.chars().take(80).collect()))?;
        if document.prev_result.is_some_and(|raw| !raw.get().starts_with('{')) {
            return Err(NetConfError::Key { key: "prevResult", why: "it must be an object".to_owned() });
        }
        Ok(Self { version, prev_result: document.prev_result, document })
    }

    /// Reads our own keys.
    ///
    /// # Errors
    /// Names the key that is wrong.
    pub fn settings(&self) -> Result<Settings, NetConfError> {
        let defaults = Settings::default();
        let document = &self.document;
        let agent_socket = path("agentSocket", document.agent_socket, defaults.agent_socket)?;
        if agent_socket.len() > MAX_SOCKET_PATH {
            let why =
                format!("a socket's path has at most {MAX_SOCKET_PATH} bytes, not {}", agent_socket.len());
            return Err(NetConfError::Key { key: "agentSocket", why });
        }
        let exempt_pods: Vec<ExemptPod> = read("exemptPods", document.exempt_pods)?.unwrap_or_default();
        if exempt_pods.iter().any(|pods| pods.namespace.is_empty() || pods.name_prefix.is_empty()) {
            let why = "namespace and namePrefix must not be empty, or whole namespaces would bypass the mesh";
            return Err(NetConfError::Key { key: "exemptPods", why: why.to_owned() });
        }
        Ok(Settings {
            agent_socket,
            state_dir: path("stateDir", document.state_dir, defaults.state_dir)?,
            timeout: timeout(document.timeout_seconds)?,
            log_level: read("logLevel", document.log_level)?.unwrap_or_default(),
            exempt_pods,
        })
    }

    /// GC's list of what is still valid; `None` when the runtime gave none, which proves nothing.
    ///
    /// # Errors
    /// When the list is there and is no list of attachments.
    pub fn valid_attachments(&self) -> Result<Option<Vec<AttachmentId>>, NetConfError> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let key = "cni.dev/valid-attachments";
        let entries: Option<Vec<Entry>> = read(key, self.document.valid_attachments)?;
        Ok(entries.map(|entries| {
            let id = |entry: Entry| AttachmentId { container_id: entry.container_id, ifname: entry.ifname };
            entries.into_iter().map(id).collect()
        }))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            agent_socket: AGENT_SOCKET.to_owned(),
            state_dir: STATE_DIR.to_owned(),
            timeout: DEFAULT_TIMEOUT,
            log_level: LogLevel::default(),
            exempt_pods: Vec::new(),
        }
    }
}

impl LogLevel {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl NetConfError {
    /// Its code in a CNI error object.
    #[must_use]
    pub const fn code(&self) -> u32 {
        match self {
            Self::NotJson(_) => code::DECODE_FAILURE,
            Self::NotANetconf(_) | Self::Key { .. } => code::INVALID_NETCONF,
            Self::Version(_) => code::INCOMPATIBLE_VERSION,
        }
    }
}

fn read<'a, T: Deserialize<'a>>(
    key: &'static str,
    raw: Option<&'a RawValue>,
) -> Result<Option<T>, NetConfError> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|e| NetConfError::Key { key, why: without_position(&e) })
}

fn path(key: &'static str, raw: Option<&RawValue>, default: String) -> Result<String, NetConfError> {
    let path: String = read(key, raw)?.unwrap_or(default);
    if path.starts_with('/') && !path.contains('\0') {
        Ok(path)
    } else {
        Err(NetConfError::Key { key, why: format!("{path:?} is not an absolute path") })
    }
}

fn timeout(raw: Option<&RawValue>) -> Result<Duration, NetConfError> {
    let Some(seconds) = read::<u64>("timeoutSeconds", raw)? else { return Ok(DEFAULT_TIMEOUT) };
    if (1..=MAX_TIMEOUT.as_secs()).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        let why = format!("{seconds} is out of range: 1 to {}", MAX_TIMEOUT.as_secs());
        Err(NetConfError::Key { key: "timeoutSeconds", why })
    }
}
