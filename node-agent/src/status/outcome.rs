//! What an API server's answer to a write means for what is done next.

use kube::core::Status;
use serde::Deserialize;
use std::time::Duration;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The object is gone, or another one has its name.
    Gone,
    /// Somebody else changed the object at the same time, or it is there already.
    Conflict(String),
    /// The API server has too much to do; it may say for how long.
    Throttled(Option<Duration>),
    /// The API server or something behind it failed: nothing is wrong with the request.
    Failed(String),
    /// No answer came: it may or may not have been done.
    Unanswered(String),
    /// The agent may not do this.
    Forbidden(String),
    /// The request is not acceptable, by a rule of the server's or by a policy.
    Refused(String),
}

/// Makes an outcome of an answer. `retry_after` is the header of that name.
#[must_use]
pub fn of(code: u16, retry_after: Option<&str>, body: &[u8]) -> Outcome {
    let status: Option<Status> = serde_json::from_slice(body).ok();
    let details = status.as_ref().and_then(|status| status.details.as_ref());
    let message = || match &status {
        Some(status) if !status.message.is_empty() => status.message.clone(),
        _ => format!("HTTP {code}: {}", first_line(body)),
    };
    match code {
        200..=299 => Outcome::Done,
        404 | 410 if is_a_status(body) => Outcome::Gone,
        // A load balancer's, say, with no API server behind it: it knows nothing of pods.
        404 | 410 => Outcome::Failed(message()),
        // A patch with another uid than the object's: 422, since a uid is immutable. 409 when a deletion or a server's own
        // precondition comes first.
        409 if ["UID in precondition", "uid mismatch"].iter().any(|words| message().contains(words)) => {
            Outcome::Gone
        }
        409 => Outcome::Conflict(message()),
        422 if details.is_some_and(|d| d.causes.iter().any(|cause| cause.field == "metadata.uid")) => {
            Outcome::Gone
        }
        429 => {
            let header = retry_after.and_then(|value| value.trim().parse().ok());
            let stated = header.or(details.map(|d| u64::from(d.retry_after_seconds)).filter(|s| *s > 0));
            Outcome::Throttled(stated.map(Duration::from_secs))
        }
        // A token that has just expired is read anew by the client.
        401 | 408 | 500..=599 => Outcome::Failed(message()),
        403 => Outcome::Forbidden(message()),
        _ => Outcome::Refused(message()),
    }
}

impl Outcome {
    /// The outcome in one word, for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Gone => "gone",
            Self::Conflict(_) => "conflict",
            Self::Throttled(_) => "throttled",
            Self::Failed(_) => "failed",
            Self::Unanswered(_) => "unanswered",
            Self::Forbidden(_) => "forbidden",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether the trouble is the server's, so that another request would meet it, too.
    #[must_use]
    pub const fn is_the_servers(&self) -> bool {
        matches!(self, Self::Throttled(_) | Self::Failed(_) | Self::Unanswered(_))
    }

    /// What went wrong, in words; `None` when it is nothing to speak of.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Done | Self::Gone => None,
            Self::Throttled(_) => Some("the API server has too much to do (429)".into()),
            Self::Unanswered(why) => Some(format!("the API server does not answer: {why}")),
            Self::Failed(why) => Some(format!("the API server failed: {why}")),
            Self::Conflict(why) | Self::Forbidden(why) | Self::Refused(why) => {
                Some(format!("the API server refused: {why}"))
            }
        }
    }
}

/// Whether an API server wrote this.
fn is_a_status(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    serde_json::from_slice(body).is_ok_and(|Kind { kind }| kind == "Status")
}

/// The start of a body that is no `Status`: a proxy's page, say.
fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str, details: &str) -> Vec<u8> {
        format!(
            r#"{{"kind":"Status","status":"Failure","code":{code},"message":"{message}","details":{details}}}"#
        )
        .into_bytes()
    }

    #[test]
    fn each_answer_leads_to_one_next_step() {
        let uid =
            r#"{"causes":[{"reason":"FieldValueInvalid","message":"immutable","field":"metadata.uid"}]}"#;
        let policy = r#"{"causes":[{"reason":"Invalid","message":"not your node"}]}"#;
        let precondition = "Operation cannot be fulfilled: Precondition failed: UID in precondition: a, UID in object meta: b";
        let table: [(u16, Vec<u8>, Outcome); 15] = [
            (200, b"{}".to_vec(), Outcome::Done),
            (201, Vec::new(), Outcome::Done),
            (404, status(404, "pods x not found", "{}"), Outcome::Gone),
            (
                404,
                b"default backend - 404".to_vec(),
                Outcome::Failed("HTTP 404: default backend - 404".into()),
            ),
            (404, b"{}".to_vec(), Outcome::Failed("HTTP 404: {}".into())),
            (409, status(409, precondition, "{}"), Outcome::Gone),
            (409, status(409, "uid mismatch: no existing object was found", "{}"), Outcome::Gone),
            (409, status(409, "try again", "{}"), Outcome::Conflict("try again".into())),
            (422, status(422, "invalid", uid), Outcome::Gone),
            (422, status(422, "denied", policy), Outcome::Refused("denied".into())),
            (403, status(403, "no", "{}"), Outcome::Forbidden("no".into())),
            (401, status(401, "Unauthorized", "{}"), Outcome::Failed("Unauthorized".into())),
            (
                503,
                b"upstream connect error\n...".to_vec(),
                Outcome::Failed("HTTP 503: upstream connect error".into()),
            ),
            (
                429,
                status(429, "slow", r#"{"retryAfterSeconds":3}"#),
                Outcome::Throttled(Some(Duration::from_secs(3))),
            ),
            (400, b"".to_vec(), Outcome::Refused("HTTP 400: ".into())),
        ];
        for (code, body, expected) in table {
            assert_eq!(of(code, None, &body), expected);
        }
    }

    #[test]
    fn the_header_says_how_long_to_wait() {
        assert_eq!(
            of(429, Some("7"), b"Too many requests"),
            Outcome::Throttled(Some(Duration::from_secs(7)))
        );
        assert_eq!(of(429, Some("soon"), b"Too many requests"), Outcome::Throttled(None));
    }
}
