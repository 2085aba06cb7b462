//! What a packet on the plugin's socket must be. Pure: bytes and descriptors in, a request or a refusal out.

use crate::visible::printable;
use serde::Deserialize;
use sluice_shared::cni::code;
use sluice_shared::ids::Ifname;
use sluice_shared::wire::{self, Attachment, AttachmentId, MAX_MESSAGE, Reply, Verb, WIRE_VERSION};
use std::os::fd::OwnedFd;

/// A request, and the netns that came along.
pub(super) type Request = (Verb, Option<OwnedFd>);

/// The longest container id, path or name taken, in bytes (`PATH_MAX`).
const MAX_TEXT: usize = 4096;
/// The most addresses that an attachment may have.
const MAX_IPS: usize = 64;

/// Why a message is not served, as a CNI error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// A CNI error code ([`sluice_shared::cni::code`]).
    pub code: u32,
    /// What is wrong, and what to do.
    pub why: String,
}

impl Refusal {
    pub(super) fn io(why: String) -> Self {
        Self { code: code::IO_FAILURE, why }
    }

    /// What is wrong may quote the message.
    fn decode(why: &str) -> Self {
        Self { code: code::DECODE_FAILURE, why: printable(why) }
    }

    fn environment(why: String) -> Self {
        Self { code: code::INVALID_ENVIRONMENT, why }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let msg = format!("the node agent refused the plugin's message: {}", refusal.why);
        Self::Error { code: refusal.code, msg, details: String::new() }
    }
}

/// Judges a whole packet as `recvmsg` gave it.
pub(super) fn read(
    bytes: &[u8],
    truncated: bool,
    fds: Vec<OwnedFd>,
    fds_truncated: bool,
) -> Result<Request, Refusal> {
    if truncated {
        return Err(Refusal::decode(&format!("the message is longer than {MAX_MESSAGE} bytes")));
    }
    let verb = decode(bytes)?;
    let netns = take_netns(&verb, fds, fds_truncated)?;
    Ok((verb, netns))
}

/// Reads a message.
///
/// # Errors
/// When it is not JSON, of another version, not a request, or has text that no runtime would send.
pub fn decode(bytes: &[u8]) -> Result<Verb, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // The version first: what another version means by the rest is not known.
    let versioned: Versioned = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::decode(&format!("not a JSON object with a version: {error}")))?;
    if versioned.version != WIRE_VERSION {
        let why = format!(
            "it is of version {}, and this agent speaks {WIRE_VERSION}; bring plugin and agent to the same release",
            versioned.version
        );
        return Err(Refusal { code: code::WIRE_VERSION, why });
    }
    let request: wire::Request = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::decode(&format!("not a request of version {WIRE_VERSION}: {error}")))?;
    match &request.verb {
        Verb::Add(attachment) | Verb::Del(attachment) | Verb::Check(attachment) => check(attachment)?,
        Verb::Gc { valid } => valid.iter().try_for_each(check_id)?,
        Verb::Status | Verb::Log { .. } => {}
    }
    Ok(request.verb)
}

/// Takes the one descriptor that a verb comes with. `incomplete` is `MSG_CTRUNC`. Every descriptor that is not returned
/// is closed.
///
/// # Errors
/// When there are more or fewer than the verb has.
pub fn take_netns(verb: &Verb, mut fds: Vec<OwnedFd>, incomplete: bool) -> Result<Option<OwnedFd>, Refusal> {
    let name = verb_name(verb);
    if incomplete && fds.is_empty() {
        let why = format!("{name}'s descriptor could not be taken: the agent may have too many open files");
        return Err(Refusal { code: code::TRY_AGAIN_LATER, why });
    }
    let allowed = match verb {
        Verb::Add(_) => 1..=1,
        Verb::Check(_) => 0..=1,
        Verb::Del(_) | Verb::Gc { .. } | Verb::Status | Verb::Log { .. } => 0..=0,
    };
    let count = fds.len();
    if incomplete || !allowed.contains(&count) {
        let takes = match (allowed.start(), allowed.end()) {
            (1, _) => "exactly one, the pod's network namespace",
            (_, 1) => "at most one, the pod's network namespace",
            _ => "none",
        };
        return Err(Refusal {
            code: code::WRONG_NETNS,
            why: format!("{name} came with {count} descriptors, and takes {takes}"),
        });
    }
    Ok(fds.pop())
}

/// The verb's name in the CNI spec.
pub(super) fn verb_name(verb: &Verb) -> &'static str {
    match verb {
        Verb::Add(_) => "ADD",
        Verb::Del(_) => "DEL",
        Verb::Check(_) => "CHECK",
        Verb::Gc { .. } => "GC",
        Verb::Status => "STATUS",
        Verb::Log { .. } => "log",
    }
}

/// The answer's bytes, cut to what one packet may hold.
pub(super) fn encode(reply: &Reply) -> Vec<u8> {
    let bytes = |reply: &Reply| serde_json::to_vec(reply).unwrap_or_default();
    let whole = bytes(reply);
    if whole.len() <= MAX_MESSAGE {
        return whole;
    }
    // A character of JSON text has at most six bytes.
    let cut = |text: &str| text.chars().take(MAX_MESSAGE / 16).collect::<String>();
    bytes(&match reply {
        Reply::Ok { outcome } => Reply::Ok { outcome: cut(outcome) },
        Reply::Error { code, msg, .. } => Reply::Error { code: *code, msg: cut(msg), details: String::new() },
    })
}

/// Takes a line of the plugin into our log.
pub(super) fn log(level: &str, message: &str) {
    let message = printable(message);
    match level {
        "error" => tracing::error!(target: "sluice_cni", "{message}"),
        "warn" => tracing::warn!(target: "sluice_cni", "{message}"),
        "debug" => tracing::debug!(target: "sluice_cni", "{message}"),
        _ => tracing::info!(target: "sluice_cni", "{message}"),
    }
}

fn check(attachment: &Attachment) -> Result<(), Refusal> {
    check_id(&attachment.id)?;
    text("CNI_NETNS", &attachment.netns)?;
    if let Some(pod) = &attachment.pod {
        text("K8S_POD_NAMESPACE", &pod.namespace)?;
        text("K8S_POD_NAME", &pod.name)?;
    }
    if attachment.ips.len() > MAX_IPS {
        return Err(Refusal::environment(format!("more than {MAX_IPS} addresses")));
    }
    Ok(())
}

fn check_id(id: &AttachmentId) -> Result<(), Refusal> {
    if id.container_id.is_empty() {
        return Err(Refusal::environment("CNI_CONTAINERID is empty".to_owned()));
    }
    text("CNI_CONTAINERID", &id.container_id)?;
    Ifname::new(id.ifname.as_str())
        .map(drop)
        .map_err(|error| Refusal::environment(format!("CNI_IFNAME: {error}")))
}

fn text(what: &str, value: &str) -> Result<(), Refusal> {
    if value.len() > MAX_TEXT || value.chars().any(char::is_control) {
        let shown = printable(&value.chars().take(80).collect::<String>());
        return Err(Refusal::environment(format!(
            "{what} \"{shown}\" has control characters, or more than {MAX_TEXT} bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const ADD: &str =
        r#"{"version":1,"verb":"add","containerId":"c1","ifname":"eth0","netns":"/n","ips":["10.0.0.1"]}"#;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn bad_messages_have_their_code_and_say_what_is_wrong() {
        let long = ADD.replace("/n", &"x".repeat(5000));
        let many = ADD.replace("\"10.0.0.1\"", &vec!["\"10.0.0.1\""; 65].join(","));
        let deep = format!("{{\"version\":1,\"verb\":{}", "[".repeat(5000));
        for (message, code, what) in [
            ("", code::DECODE_FAILURE, "not a JSON object"),
            ("\u{0}\u{1}", code::DECODE_FAILURE, "not a JSON object"),
            ("[]", code::DECODE_FAILURE, "not a JSON object"),
            ("{}", code::DECODE_FAILURE, "missing field `version`"),
            (r#"{"version":"1"}"#, code::DECODE_FAILURE, "invalid type"),
            (r#"{"version":-1}"#, code::DECODE_FAILURE, "invalid value"),
            (r#"{"version":2,"verb":"teleport"}"#, code::WIRE_VERSION, "version 2, and this agent speaks 1"),
            (r#"{"version":1}"#, code::DECODE_FAILURE, "missing field `verb`"),
            (r#"{"version":1,"verb":"teleport"}"#, code::DECODE_FAILURE, "unknown variant `teleport`"),
            (r#"{"version":1,"verb":"te\nleport"}"#, code::DECODE_FAILURE, "te\\nleport"),
            (r#"{"version":1,"verb":"add"}"#, code::DECODE_FAILURE, "missing field"),
            (&ADD.replace("c1", ""), code::INVALID_ENVIRONMENT, "CNI_CONTAINERID is empty"),
            (&ADD.replace("c1", "c\\n1"), code::INVALID_ENVIRONMENT, "CNI_CONTAINERID \"c\\n1\" has control"),
            (&ADD.replace("eth0", "eth0/../x"), code::INVALID_ENVIRONMENT, "CNI_IFNAME"),
            (&ADD.replace("10.0.0.1", "ten"), code::DECODE_FAILURE, "invalid IP address"),
            (&long, code::INVALID_ENVIRONMENT, "CNI_NETNS"),
            (&many, code::INVALID_ENVIRONMENT, "more than 64 addresses"),
            (&deep, code::DECODE_FAILURE, "EOF while parsing"),
            (&format!("{ADD}{ADD}"), code::DECODE_FAILURE, "trailing characters"),
        ] {
            let refusal = decode(message.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, code, "{message}: {refusal}");
            assert!(refusal.why.contains(what), "{message}: {refusal}");
            assert!(!refusal.why.contains(char::is_control), "{message}: {refusal}");
        }
        assert_eq!(read(ADD.as_bytes(), true, fds(1), false).unwrap_err().code, code::DECODE_FAILURE);
    }

    #[test]
    fn a_field_that_a_later_release_adds_is_no_mistake() {
        let message = ADD.replace("\"netns\"", "\"colour\":[1,2],\"netns\"");
        assert!(matches!(decode(message.as_bytes()), Ok(Verb::Add(_))));
    }

    #[test]
    fn each_verb_takes_its_number_of_descriptors() {
        let verb = |name: &str| decode(ADD.replace("add", name).as_bytes()).unwrap();
        for (name, takes) in [("add", vec![1]), ("check", vec![0, 1]), ("del", vec![0]), ("status", vec![0])]
        {
            for count in 0..4 {
                let taken = take_netns(&verb(name), fds(count), false);
                assert_eq!(taken.is_ok(), takes.contains(&count), "{name} with {count}: {taken:?}");
                if let Ok(netns) = taken {
                    assert_eq!(netns.is_some(), count == 1);
                }
            }
        }
        let refused = take_netns(&verb("add"), fds(2), false).unwrap_err();
        assert_eq!(refused.code, code::WRONG_NETNS);
        assert_eq!(
            refused.why,
            "ADD came with 2 descriptors, and takes exactly one, the pod's network namespace"
        );
        assert_eq!(take_netns(&verb("add"), fds(1), true).unwrap_err().code, code::WRONG_NETNS);
        // No room for a descriptor in our own table: not the caller's mistake.
        assert_eq!(take_netns(&verb("add"), fds(0), true).unwrap_err().code, code::TRY_AGAIN_LATER);
    }

    #[test]
    fn an_answer_is_one_packet_whatever_is_in_it() {
        let details = "\u{1}".repeat(MAX_MESSAGE);
        let reply = Reply::Error { code: 11, msg: details.clone(), details };
        let bytes = encode(&reply);
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
        let back: Reply = serde_json::from_slice(&bytes).unwrap();
        assert!(matches!(back, Reply::Error { code: 11, .. }));
    }
}
