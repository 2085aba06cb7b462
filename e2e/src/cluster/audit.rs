//! What was asked of the API server, as its audit log says: every request, once, when it was answered.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Who the agents are.
pub const AGENT: &str = "system:serviceaccount:sluice-system:sluice-agent";

/// The policy that the API server logs by: every request once, when it is answered, with who, what and the answer's code
/// (level Metadata); and of the agents' patches of `pods/status` what they say (level Request).
#[must_use]
pub fn policy() -> String {
    let patches = json!({
        "level": "Request", "users": [AGENT], "verbs": ["patch"],
        "resources": [{"group": "", "resources": ["pods/status"]}],
    });
    let rules = json!([patches, {"level": "Metadata"}]);
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules,
    });
    policy.to_string()
}

/// The log, from some point on.
#[derive(Clone, Debug)]
pub struct Audit {
    path: PathBuf,
    from: u64,
}

/// One request (`audit.k8s.io/v1`). A watch is there twice: when it begins (`ResponseStarted`) and when
/// it ends (`ResponseComplete`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// What both entries of a watch have in common.
    #[serde(rename = "auditID")]
    pub id: String,
    /// `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: String,
    /// The path and the query.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, …
    pub verb: String,
    /// Who asked.
    pub user: User,
    /// What the client calls itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it is about; none for `/readyz` and the like.
    pub object_ref: Option<Object>,
    /// What it says, where [`policy`] has that kept.
    pub request_object: Option<Value>,
    /// What was answered.
    pub response_status: Option<Status>,
    /// When it came, RFC 3339 with microseconds.
    pub request_received_timestamp: String,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// `system:serviceaccount:sluice-system:sluice-agent`, `system:node:node1`, `admin`, …; empty where the server could
    /// not tell, and answered 401.
    #[serde(default)]
    pub username: String,
    /// What the server knows of them beside: for a pod's bound token, the pod.
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request is about. What it does not name is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Object {
    /// `pods`, …
    pub resource: String,
    /// `status`, …
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// An answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// Of an error, what was said.
    #[serde(default)]
    pub message: String,
}

impl Request {
    /// When the server received it.
    ///
    /// # Errors
    /// When what the log says is no time.
    pub fn received(&self) -> Result<SystemTime> {
        let text = &self.request_received_timestamp;
        let at: jiff::Timestamp = text.parse().with_context(|| format!("{text} is no time"))?;
        Ok(at.into())
    }
}

impl Audit {
    /// The whole log.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        Self { path: path.to_path_buf(), from: 0 }
    }

    /// The log from now on.
    #[must_use]
    pub fn from_now(&self) -> Self {
        let from = std::fs::metadata(&self.path).map_or(0, |found| found.len());
        Self { path: self.path.clone(), from }
    }

    /// The requests that are in it by now. An entry may come a moment after its answer.
    ///
    /// # Errors
    /// When the log cannot be read, or a line is no entry.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let mut file = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        parse(&text)
    }

    /// Those of one user.
    ///
    /// # Errors
    /// As [`Audit::requests`].
    pub fn requests_of(&self, username: &str) -> Result<Vec<Request>> {
        let mut requests = self.requests()?;
        requests.retain(|request| request.user.username == username);
        Ok(requests)
    }
}

/// The last line may be half written.
fn parse(text: &str) -> Result<Vec<Request>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let entry = |line| serde_json::from_str(line).with_context(|| format!("not an audit entry: {line}"));
    whole.lines().filter(|line| !line.is_empty()).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"f2c6","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/demo/pods/a/status","verb":"patch","user":{"username":"system:serviceaccount:sluice-system:sluice-agent","groups":["system:authenticated"]},"sourceIPs":["172.30.0.11"],"userAgent":"sluice-agent/0.1","objectRef":{"resource":"pods","namespace":"demo","name":"a","apiVersion":"v1","subresource":"status"},"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2026-01-01T00:00:00.000000Z","stageTimestamp":"2026-01-01T00:00:00.001000Z"}"#;

    #[test]
    fn an_entry_says_who_asked_what() {
        let requests = parse(&format!("{ENTRY}\n")).unwrap();
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        let object = request.object_ref.as_ref().unwrap();
        assert_eq!((request.verb.as_str(), object.subresource.as_str()), ("patch", "status"));
        assert_eq!(request.response_status.as_ref().unwrap().code, 200);
    }

    #[test]
    fn whom_the_server_does_not_know_is_nobody() {
        let (before, rest) = ENTRY.split_once(r#""user":{"#).unwrap();
        let after = rest.split_once("},").unwrap().1;
        let requests = parse(&format!("{before}\"user\":{{}},{after}\n")).unwrap();
        assert_eq!(requests[0].user.username, "");
    }

    #[test]
    fn what_a_patch_says_is_kept() {
        let said = r#""requestObject":{"metadata":{"uid":"u"}},"responseStatus""#;
        let requests = parse(&format!("{}\n{ENTRY}\n", ENTRY.replace(r#""responseStatus""#, said))).unwrap();
        assert_eq!(requests[0].request_object, Some(json!({"metadata": {"uid": "u"}})));
        assert_eq!(requests[1].request_object, None);
    }

    #[test]
    fn what_is_half_written_is_left_for_later() {
        let text = format!("{ENTRY}\n{}", &ENTRY[..40]);
        assert_eq!(parse(&text).unwrap().len(), 1);
        assert_eq!(parse(&ENTRY[..40]).unwrap().len(), 0);
    }
}
