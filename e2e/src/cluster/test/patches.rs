//! What the agents wrote of pods, as the audit log has it: one patch for each change of a pod's state, and none that says
//! once more what the object says already.

use super::audit::is_ours;
use crate::cluster::audit::{AGENT, Request};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice_shared::contract::ANNOTATION_REDIRECTION;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::SystemTime;

/// A value of the annotation; `None` is none.
pub type Redirection = Option<String>;

/// A patch of a pod's annotation that the server carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// When the server received it.
    pub at: SystemTime,
    /// The uid of the pod that it was meant for; the tests name none.
    pub uid: Option<String>,
    /// What it says.
    pub value: Redirection,
    /// Whether it is a test's, with the agents' account.
    pub by_test: bool,
}

/// The patches of each pod, by `namespace/name`, in order.
pub type Patches = BTreeMap<String, Vec<Patch>>;

/// The patches of the annotation that came with the agents' account, and were carried out.
///
/// # Errors
/// When the log does not say what one of them says: then nothing is shown.
pub fn of(log: &[Request]) -> Result<Patches> {
    let mut patches = Patches::new();
    for request in log.iter().filter(|request| request.user.username == AGENT && request.verb == "patch") {
        let Some(object) = request.object_ref.as_ref().filter(|object| object.subresource == "status") else {
            continue;
        };
        let done = request.response_status.as_ref().is_some_and(|status| status.code < 300);
        if object.resource != "pods" || !done {
            continue;
        }
        let pod = format!("{}/{}", object.namespace, object.name);
        let said = request.request_object.as_ref();
        let said = said.with_context(|| format!("the audit log does not say how {pod} was patched"))?;
        let value = match said["metadata"]["annotations"].get(ANNOTATION_REDIRECTION) {
            Some(Value::String(value)) => Some(value.clone()),
            Some(Value::Null) => None,
            // The tests try others.
            _ if is_ours(request) => continue,
            _ => bail!("an agent patched {pod} with {said}"),
        };
        let uid = said["metadata"]["uid"].as_str().map(str::to_owned);
        let patch = Patch { at: request.received()?, uid, value, by_test: is_ours(request) };
        patches.entry(pod).or_default().push(patch);
    }
    for of_pod in patches.values_mut() {
        of_pod.sort_by_key(|patch| patch.at);
    }
    Ok(patches)
}

/// Fails if a patch of an agent says what the one before it said, or takes away what was never written. After an outage
/// it is not known what the server had carried out, nor what it had told of.
///
/// # Errors
/// The first such patches.
pub fn must_be_changes(patches: &Patches, outages: &[Range<SystemTime>]) -> Result<String> {
    let (mut all, mut idle) = (0, Vec::new());
    for (pod, of_pod) in patches {
        let mut before: Option<&Patch> = None;
        for patch in of_pod {
            let another =
                |known: &&Patch| patch.uid.is_some() && known.uid.is_some() && patch.uid != known.uid;
            before = before.filter(|known| !another(known));
            let has = before.map_or(&None, |known| &known.value);
            let since = before.map_or(SystemTime::UNIX_EPOCH, |known| known.at);
            let unsure = outages.iter().any(|outage| since <= outage.start && outage.start <= patch.at);
            if !patch.by_test {
                all += 1;
                if patch.value == *has && !unsure {
                    idle.push(format!("{pod} {has:?} again at {}", jiff::Timestamp::try_from(patch.at)?));
                }
            }
            before = Some(patch);
        }
    }
    ensure!(all > 0, "no pod was patched");
    ensure!(
        idle.is_empty(),
        "{} of {all} patches changed nothing: {}",
        idle.len(),
        idle[..idle.len().min(6)].join("; ")
    );
    Ok(format!("{all} patches of {} pods, each of which changed its value", patches.len()))
}

/// Fails unless each of `pods` pods of a namespace was patched to `enabled`, once, and before that to `pending` at most:
/// how a pod comes in that was there before.
///
/// # Errors
/// How many pods were patched, or which were otherwise, and how.
pub fn must_come_in_once(patches: &Patches, namespace: &str, pods: usize) -> Result<String> {
    let prefix = format!("{namespace}/");
    let here: Vec<_> = patches.iter().filter(|(pod, _)| pod.starts_with(&prefix)).collect();
    ensure!(here.len() == pods, "{} of {pods} pods were patched", here.len());
    let mut waited = 0;
    for (pod, of_pod) in here {
        let values: Vec<_> = of_pod.iter().map(|patch| patch.value.as_deref().unwrap_or("none")).collect();
        match values.as_slice() {
            ["enabled"] => {}
            ["pending", "enabled"] => waited += 1,
            _ => bail!("{pod} was patched to {}", values.join(", then ")),
        }
    }
    Ok(format!("{pods} pods: {} patches, as {waited} were pending first", pods + waited))
}

#[cfg(test)]
mod tests {
    use super::super::audit::TESTS;
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn at(second: u64) -> SystemTime {
        "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().map(SystemTime::from).unwrap()
            + Duration::from_secs(second)
    }

    fn request(second: u64, uid: &str, value: &Value, code: u16) -> Value {
        json!({
            "auditID": second.to_string(), "verb": "patch", "stage": "ResponseComplete", "requestURI": "/x",
            "user": {"username": AGENT}, "userAgent": "sluice-agent/1", "responseStatus": {"code": code},
            "objectRef": {"resource": "pods", "subresource": "status", "namespace": "demo", "name": "a"},
            "requestObject": {"metadata": {"uid": uid, "annotations": {ANNOTATION_REDIRECTION: value}}},
            "requestReceivedTimestamp": format!("2026-01-01T00:00:{second:02}.000000Z"),
        })
    }

    fn log(requests: &[Value]) -> Vec<Request> {
        requests.iter().map(|request| serde_json::from_value(request.clone()).unwrap()).collect()
    }

    /// What is said of these values, a second apart, with an outage in that second.
    fn judged(values: &[Value], outage: Option<u64>) -> String {
        let requests: Vec<_> =
            (1..).zip(values).map(|(second, value)| request(second, "u", value, 200)).collect();
        let outages: Vec<_> = outage.map(|second| at(second)..at(second + 1)).into_iter().collect();
        let said = must_be_changes(&of(&log(&requests)).unwrap(), &outages);
        said.unwrap_or_else(|why| format!("ERROR {why:#}"))
    }

    #[test]
    fn each_patch_changes_what_the_object_says() {
        let all = [json!("pending"), json!("enabled"), json!(null), json!("enabled")];
        assert_eq!(judged(&all, None), "4 patches of 1 pods, each of which changed its value");
        let twice = judged(&[json!("enabled"), json!("enabled")], None);
        assert!(
            twice.starts_with(r#"ERROR 1 of 2 patches changed nothing: demo/a Some("enabled") again"#),
            "{twice}"
        );
        assert!(judged(&[json!(null)], None).starts_with("ERROR 1 of 1"), "there was nothing to take away");
        assert!(judged(&[], None).starts_with("ERROR no pod"));
    }

    #[test]
    fn after_an_outage_nobody_knows_what_was_carried_out() {
        let twice = [json!("enabled"), json!("enabled")];
        assert!(judged(&twice, Some(1)).starts_with("2 patches"));
        assert!(judged(&twice, Some(3)).starts_with("ERROR"), "it was later");
    }

    #[test]
    fn a_pod_that_comes_back_begins_with_nothing() {
        let requests = [request(1, "u", &json!("enabled"), 200), request(2, "v", &json!("enabled"), 200)];
        must_be_changes(&of(&log(&requests)).unwrap(), &[]).unwrap();
    }

    #[test]
    fn what_was_refused_changed_nothing_and_what_a_test_wrote_may_be_undone() {
        let mut foreign = request(2, "", &json!("pending"), 200);
        foreign["userAgent"] = json!(TESTS);
        foreign["requestObject"]["metadata"].as_object_mut().unwrap().remove("uid");
        let mut other = foreign.clone();
        other["requestObject"]["metadata"]["annotations"] = json!({"other": "x"});
        let requests =
            [request(1, "u", &json!("enabled"), 409), foreign, other, request(3, "u", &json!(null), 200)];
        let said = must_be_changes(&of(&log(&requests)).unwrap(), &[]).unwrap();
        assert_eq!(said, "1 patches of 1 pods, each of which changed its value");
    }

    #[test]
    fn a_log_that_does_not_say_what_was_written_shows_nothing() {
        let mut silent = request(1, "u", &json!("enabled"), 200);
        silent.as_object_mut().unwrap().remove("requestObject");
        assert!(of(&log(&[silent])).unwrap_err().to_string().contains("does not say how demo/a was patched"));
        let mut other = request(1, "u", &json!("enabled"), 200);
        other["requestObject"] = json!({"status": {}});
        assert!(of(&log(&[other])).is_err());
    }

    #[test]
    fn a_pod_that_was_there_comes_in_once() {
        let come = |values: &[Value]| {
            let requests = (1..).zip(values).map(|(second, value)| request(second, "u", value, 200));
            must_come_in_once(&of(&log(&requests.collect::<Vec<_>>())).unwrap(), "demo", 1)
        };
        assert_eq!(come(&[json!("enabled")]).unwrap(), "1 pods: 1 patches, as 0 were pending first");
        assert_eq!(
            come(&[json!("pending"), json!("enabled")]).unwrap(),
            "1 pods: 2 patches, as 1 were pending first"
        );
        for bad in [
            vec![],
            vec![json!("pending")],
            vec![json!("enabled"), json!("pending"), json!("enabled")],
            vec![json!("pending"), json!("pending"), json!("enabled")],
        ] {
            come(&bad).unwrap_err();
        }
    }
}
