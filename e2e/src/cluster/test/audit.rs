//! What the agents asked of the API server, counted from its audit log: the server's own account, which no agent can
//! embellish.

use crate::cluster::audit::{AGENT, Request, Status};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

/// The requests of one agent in a span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Watches; a list that is streamed is one.
    pub watches: usize,
    /// Patches of `pods/status`, by `namespace/name`.
    pub status_patches: BTreeMap<String, usize>,
    /// Events that were written.
    pub events: usize,
    /// Everything else, as `verb resource`.
    pub others: BTreeMap<String, usize>,
    /// Of all of them, those that the server refused, by what and the HTTP status code; not those about something that
    /// was gone or going by then.
    pub refused: BTreeMap<(String, u16), usize>,
}

/// How the tests call themselves where they use a token of the agents' account.
pub const TESTS: &str = "sluice-test";
/// Where the server says which pod a bound token was made for.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// How the names of the DaemonSet's pods begin.
const POD_PREFIX: &str = "sluice-agent-";

/// The agents' requests that the server received within `span`, by the agent's pod.
///
/// # Errors
/// When a request has a time that is none, or comes from no agent's pod: nobody else has a token of their account.
pub fn of_agents(log: &[Request], span: Range<SystemTime>) -> Result<BTreeMap<String, Requests>> {
    let (mut counted, mut by_pod) = (BTreeSet::new(), BTreeMap::new());
    for request in log.iter().filter(|request| request.user.username == AGENT && !is_ours(request)) {
        if !span.contains(&request.received()?) {
            continue;
        }
        let pod = request.user.extra.get(POD_NAME).and_then(|names| names.first());
        let pod = pod.filter(|pod| pod.starts_with(POD_PREFIX)).with_context(|| {
            let whose = pod.map_or("no pod", String::as_str);
            format!("{} ({}) comes with the agents' account from {whose}", what(request), request.user_agent)
        })?;
        let requests: &mut Requests = by_pod.entry(pod.clone()).or_default();
        // A watch is there when it begins and when it ends.
        if counted.insert(&request.id) {
            requests.count(request);
        }
    }
    Ok(by_pod)
}

/// Whether a test sent it, with a token of the agents' account.
#[must_use]
pub fn is_ours(request: &Request) -> bool {
    request.user_agent == TESTS
}

/// A pod, or its namespace, may go while something is said of it: that is nobody's fault.
fn is_refusal(status: &Status) -> bool {
    let gone = status.code == 404 || status.message.contains("is being terminated");
    status.code >= 400 && !gone
}

fn what(request: &Request) -> String {
    let object = request.object_ref.clone().unwrap_or_default();
    match (object.resource.as_str(), object.subresource.as_str()) {
        ("", _) => format!("{} {}", request.verb, request.uri),
        (resource, "") => format!("{} {resource}", request.verb),
        (resource, part) => format!("{} {resource}/{part}", request.verb),
    }
}

impl Requests {
    fn count(&mut self, request: &Request) {
        if let Some(status) = request.response_status.as_ref().filter(|status| is_refusal(status)) {
            *self.refused.entry((what(request), status.code)).or_default() += 1;
        }
        let object = request.object_ref.clone().unwrap_or_default();
        match (request.verb.as_str(), object.resource.as_str(), object.subresource.as_str()) {
            ("watch", ..) => self.watches += 1,
            ("create" | "patch" | "update", "events", "") => self.events += 1,
            ("patch", "pods", "status") => {
                let pod = format!("{}/{}", object.namespace, object.name);
                *self.status_patches.entry(pod).or_default() += 1;
            }
            _ => *self.others.entry(what(request)).or_default() += 1,
        }
    }

    /// Requests besides watches, status patches and events.
    #[must_use]
    pub fn others(&self) -> usize {
        self.others.values().sum()
    }

    /// Status patches of pods of a namespace.
    #[must_use]
    pub fn patches_in(&self, namespace: &str) -> Vec<(&str, usize)> {
        let prefix = format!("{namespace}/");
        let here = self.status_patches.iter().filter(|(pod, _)| pod.starts_with(&prefix));
        here.map(|(pod, count)| (pod.as_str(), *count)).collect()
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patches: usize = self.status_patches.values().sum();
        write!(f, "{} watches, {patches} status patches, {} events", self.watches, self.events)?;
        for (what, count) in &self.others {
            write!(f, ", {count} {what}")?;
        }
        for ((what, code), count) in &self.refused {
            write!(f, ", refused with {code}: {count} {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line(id: u32, second: u32, verb: &str, object: &str, more: &str) -> String {
        format!(
            r#"{{"kind":"Event","auditID":"{id}","verb":"{verb}","stage":"ResponseComplete","requestURI":"/x",
            "user":{{"username":"{AGENT}","extra":{{"{POD_NAME}":["sluice-agent-1"]}}}},{more}
            "objectRef":{object},"requestReceivedTimestamp":"2026-01-01T00:00:{second:02}.123456Z"}}"#
        )
        .replace('\n', "")
    }

    fn requests(log: &[String]) -> Requests {
        let log: Vec<Request> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let start: SystemTime = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap().into();
        of_agents(&log, start..start + Duration::from_secs(30))
            .unwrap()
            .remove("sluice-agent-1")
            .unwrap_or_default()
    }

    #[test]
    fn requests_are_told_apart_and_both_ends_of_a_watch_are_one() {
        let pods = r#"{"resource":"pods"}"#;
        let status = r#"{"resource":"pods","subresource":"status","namespace":"demo","name":"a"}"#;
        let found = requests(&[
            line(1, 1, "watch", pods, ""),
            line(1, 1, "watch", pods, ""),
            line(2, 2, "patch", status, ""),
            line(3, 3, "patch", status, ""),
            line(4, 4, "create", r#"{"resource":"events"}"#, ""),
            line(5, 5, "get", pods, ""),
            line(6, 6, "list", r#"{"resource":"nodes"}"#, r#""responseStatus":{"code":403},"#),
            line(7, 45, "get", pods, ""),
        ]);
        assert_eq!((found.watches, found.events, found.others()), (1, 1, 2));
        assert_eq!(found.patches_in("demo"), [("demo/a", 2)]);
        assert_eq!(found.refused, BTreeMap::from([(("list nodes".to_owned(), 403), 1)]));
        assert!(found.patches_in("dem").is_empty());
    }

    #[test]
    fn others_are_not_the_agent() {
        let other = line(1, 1, "get", "{}", "").replace(AGENT, "kubernetes-admin");
        assert_eq!(requests(&[other]), Requests::default());
    }

    #[test]
    fn the_agents_account_is_for_agents_pods() {
        let log = |line: String| vec![serde_json::from_str::<Request>(&line).unwrap()];
        let all = SystemTime::UNIX_EPOCH..SystemTime::now();
        let nobody = line(1, 1, "get", "{}", "").replace(POD_NAME, "another-key");
        let why = of_agents(&log(nobody.clone()), all.clone()).unwrap_err().to_string();
        assert!(why.contains("from no pod"), "{why}");
        let impostor = line(1, 1, "get", "{}", "").replace("sluice-agent-1", "impostor");
        assert!(of_agents(&log(impostor), all.clone()).unwrap_err().to_string().contains("from impostor"));
        let ours = nobody.replace(r#""verb""#, &format!(r#""userAgent":"{TESTS}","verb""#));
        assert!(of_agents(&log(ours), all).unwrap().is_empty());
    }
}
