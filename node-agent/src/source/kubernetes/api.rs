//! Requests to the API server, each with an end: a deadline for the answer, a bound on its size.
//!
//! They are made by hand rather than by kube's typed client: that fails a whole list for one object that it cannot read,
//! and keeps full objects where a few fields are wanted.

use super::lines::Lines;
use http::header::{ACCEPT, ACCEPT_ENCODING, DATE, RETRY_AFTER};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::timeout;

/// How long the API server may take until it begins to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer taken, in bytes. A node of 500 pods has less than a tenth.
const MAX_ANSWER: usize = 128 * 1024 * 1024;
/// The longest refusal that is read, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// The way to the API server.
#[derive(Clone)]
pub(crate) struct Api(Client);

/// A path with its query.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    uri: String,
    separator: char,
    accept: &'static str,
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The API server refused, or cannot at the moment.
    #[error("the API server answers {code}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The HTTP status, or the one that a watch ended with.
        code: u16,
        /// What it says, for people.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// There is no connection, or it broke.
    #[error("the API server cannot be reached: {0}")]
    Transport(String),
    /// Nothing came in time.
    #[error("the API server did not answer within {0:?}")]
    Late(Duration),
    /// What came is not what the API is.
    #[error("the answer is none of the Kubernetes API: {0}")]
    Garbage(String),
}

/// `metav1.Status`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    kind: String,
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Target {
    /// A resource's path, asked for in this form.
    pub(crate) fn new(path: impl Into<String>, accept: &'static str) -> Self {
        Self { uri: path.into(), separator: '?', accept }
    }

    /// With one more parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.uri.push(self.separator);
        self.separator = '&';
        self.uri.push_str(name);
        self.uri.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                self.uri.push(char::from(byte));
            } else {
                let _ = write!(self.uri, "%{byte:02X}");
            }
        }
        self
    }
}

impl Api {
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Asks for all of an answer.
    pub(crate) async fn fetch(&self, target: &Target, within: Duration) -> Result<Vec<u8>, Failure> {
        let whole = async {
            let answer = self.open(target).await?;
            collect(answer.into_body(), MAX_ANSWER).await
        };
        timeout(within, whole).await.unwrap_or(Err(Failure::Late(within)))
    }

    /// When it answered, by its own clock: the header `Date` of an answer that anybody may have.
    pub(crate) async fn date(&self) -> Result<Option<String>, Failure> {
        let answer = self.open(&Target::new("/version", "application/json")).await?;
        Ok(answer.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned))
    }

    /// Asks for an answer that has no end, line by line.
    pub(crate) async fn follow(&self, target: &Target) -> Result<Lines, Failure> {
        Ok(Lines::new(self.open(target).await?.into_body()))
    }

    async fn open(&self, target: &Target) -> Result<Response<Body>, Failure> {
        let request = Request::get(&target.uri)
            .header(ACCEPT, target.accept)
            .header(ACCEPT_ENCODING, "identity")
            .body(Body::empty())
            .map_err(|error| Failure::Transport(format!("{}: {error}", target.uri)))?;
        let answer = timeout(ANSWER_WITHIN, self.0.send(request)).await;
        let answer = answer.map_err(|_| Failure::Late(ANSWER_WITHIN))?.map_err(|error| transport(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (code, retry_after) = (answer.status().as_u16(), retry_after(answer.headers()));
        let body = timeout(ANSWER_WITHIN, collect(answer.into_body(), MAX_REFUSAL)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let status = serde_json::from_slice::<Status>(&body).unwrap_or_default();
        if matches!(code, 404 | 410) && !status.is_one() {
            // A load balancer's, say, with no API server behind it: nothing is gone by its word.
            return Err(Failure::Garbage(format!("HTTP {code} without a Status")));
        }
        Err(Failure::Status { code, message: shortened(&status.message), retry_after })
    }
}

impl Failure {
    /// Whether this is the answer to a version that the API server no longer has.
    pub(crate) fn is_expired(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }

    /// When the server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What came could not be read, and how it begins.
    pub(crate) fn garbage(error: &serde_json::Error, text: &[u8]) -> Self {
        let start = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
        Self::Garbage(format!("{error}, in {:?}", shortened(&start)))
    }
}

impl Status {
    /// Whether a body that was read as one is one.
    pub(crate) fn is_one(&self) -> bool {
        self.kind == "Status"
    }

    /// What a watch that ends in this says. Some servers give a reason with no code.
    pub(crate) fn into_failure(self) -> Failure {
        let expired = matches!(self.reason.as_str(), "Expired" | "Gone");
        let code = if expired { 410 } else { self.code };
        Failure::Status { code, message: shortened(&self.message), retry_after: None }
    }
}

async fn collect(mut body: Body, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Failure::Transport(with_causes(&*Box::<dyn std::error::Error>::from(error))))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(Failure::Garbage(format!("it is longer than {limit} bytes")));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn transport(error: &kube::Error) -> Failure {
    Failure::Transport(with_causes(error))
}

/// An error and what is below it: "client error (Connect): tcp connect error: Connection refused".
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        below = cause.source();
    }
    text
}

/// Others' text, fit for one line of ours.
fn shortened(text: &str) -> String {
    crate::visible::printable(&text.chars().take(300).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_escaped() {
        let target = Target::new("/api/v1/pods", "")
            .with("watch", "true")
            .with("fieldSelector", "spec.nodeName=a&b=é");
        assert_eq!(target.uri, "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Da%26b%3D%C3%A9");
    }

    #[test]
    fn an_expired_version_is_known_in_each_form() {
        for (status, expired) in [
            (r#"{"kind":"Status","code":410,"reason":"Expired"}"#, true),
            (r#"{"kind":"Status","code":410,"reason":"Gone"}"#, true),
            (r#"{"kind":"Status","reason":"Expired"}"#, true),
            (r#"{"kind":"Status","code":500,"reason":"InternalError"}"#, false),
            (r#"{"kind":"Status"}"#, false),
        ] {
            let status: Status = serde_json::from_str(status).unwrap();
            assert!(status.is_one());
            assert_eq!(status.into_failure().is_expired(), expired);
        }
    }
}
