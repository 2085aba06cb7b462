//! The `CNI_*` variables.

use crate::answer::Failure;
use sluice_shared::cni::{PodArgs, code};
use sluice_shared::ids::Ifname;
use sluice_shared::wire::{Attachment, AttachmentId};
use std::net::IpAddr;

/// The longest container id taken, in characters. Runtimes use 64.
const MAX_CONTAINER_ID: usize = 256;
/// `PATH_MAX`, in bytes.
const MAX_PATH: usize = 4096;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The sandbox that a verb is about.
#[derive(Debug)]
pub struct Sandbox {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`
    pub id: AttachmentId,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_ARGS`
    pub args: PodArgs,
}

/// Reads `CNI_COMMAND`.
pub fn command() -> Result<Command, Failure> {
    let text = variable("CNI_COMMAND")?.ok_or_else(|| {
        let version = env!("CARGO_PKG_VERSION");
        wrong(format!(
            "CNI_COMMAND is missing: this is the CNI plugin of Sluice {version}, to be run by a container runtime"
        ))
    })?;
    Ok(match text.as_str() {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => Command::Version,
        _ => {
            let text: String = text.chars().take(80).collect();
            return Err(wrong(format!(
                "CNI_COMMAND {text:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION"
            )));
        }
    })
}

impl Sandbox {
    /// All that ADD and CHECK need.
    pub fn read() -> Result<Self, Failure> {
        let mut missing = Vec::new();
        let mut required = |name: &'static str| {
            let value = variable(name)?;
            if value.is_none() {
                missing.push(name);
            }
            Ok::<_, Failure>(value.unwrap_or_default())
        };
        let container_id = required("CNI_CONTAINERID")?;
        let netns = required("CNI_NETNS")?;
        let ifname = required("CNI_IFNAME")?;
        if !missing.is_empty() {
            return Err(wrong(format!("{} must be set in the environment", missing.join(", "))));
        }
        Ok(Self { id: attachment_id(container_id, ifname)?, netns: netns_path(netns)?, args: pod_args()? })
    }

    /// What a DEL brings: only the attachment's id is needed, the rest may be missing or wrong.
    pub fn read_for_del() -> Result<Self, Failure> {
        let value = |name| variable(name).map(Option::unwrap_or_default);
        let id = attachment_id(value("CNI_CONTAINERID")?, value("CNI_IFNAME")?)?;
        let netns = value("CNI_NETNS").and_then(netns_path).unwrap_or_default();
        Ok(Self { id, netns, args: pod_args().unwrap_or_default() })
    }

    /// The sandbox as the agent is told of it.
    pub fn attachment(&self, ips: Vec<IpAddr>) -> Attachment {
        Attachment {
            id: self.id.clone(),
            netns: self.netns.clone(),
            pod: self.args.pod.clone(),
            uid: self.args.uid.clone(),
            ips,
        }
    }
}

/// An empty variable counts as a missing one, as in the CNI library.
fn variable(name: &'static str) -> Result<Option<String>, Failure> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value.into_string().map(Some).map_err(|_| wrong(format!("{name} is not UTF-8"))),
    }
}

fn pod_args() -> Result<PodArgs, Failure> {
    PodArgs::parse(&variable("CNI_ARGS")?.unwrap_or_default()).map_err(wrong)
}

/// The rules of the spec's "Parameters" section, and a bound.
fn attachment_id(container_id: String, ifname: String) -> Result<AttachmentId, Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || container_id.len() > MAX_CONTAINER_ID || !container_id.chars().all(fine) {
        let shown: String = container_id.chars().take(80).collect();
        return Err(wrong(format!(
            "CNI_CONTAINERID {shown:?} is no container id: 1 to {MAX_CONTAINER_ID} of letters, digits, '.', '_' \
             and '-', beginning with a letter or digit"
        )));
    }
    let ifname = Ifname::new(ifname).map_err(|e| wrong(format!("CNI_IFNAME: {e}")))?;
    Ok(AttachmentId { container_id, ifname: ifname.as_str().to_owned() })
}

fn netns_path(path: String) -> Result<String, Failure> {
    if path.len() <= MAX_PATH {
        Ok(path)
    } else {
        Err(wrong(format!("CNI_NETNS has {} bytes; a path has at most {MAX_PATH}", path.len())))
    }
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_ENVIRONMENT, what)
}
