//! The requests that the agent writes with: a patch of a pod's status, a new Event, a patch of an Event, and a patch of its
//! node.

use super::annotation::Action;
use super::outcome::{self, Outcome};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::core::Request;
use serde_json::{Value, json};
use sluice_shared::contract::ANNOTATION_REDIRECTION;
use sluice_shared::ids::PodUid;
use std::time::Duration;

/// Who wrote a field, in `metadata.managedFields`; also who reports Events.
pub const WRITER: &str = "sluice-agent";
/// How long a request may take. The client's own limit is for watches, and far longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most of an answer that is read.
const MAX_ANSWER: usize = 1 << 20;
/// An answer without spec and status: the pod is of no interest.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";

/// The way to the API server.
#[derive(Clone)]
pub struct Api(kube::Client);

impl Api {
    /// By this client. It should not try again by itself: what is tried again here is always the newest.
    #[must_use]
    pub const fn new(client: kube::Client) -> Self {
        Self(client)
    }

    /// Sets or removes the annotation of the pod that has this uid.
    pub async fn annotate(&self, namespace: &str, name: &str, uid: &PodUid, action: Action) -> Outcome {
        let patch = annotation_patch(uid, action);
        let request = segments(&[namespace, name]).and_then(|()| {
            let pods = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
            let params = PatchParams { field_manager: Some(WRITER.to_owned()), ..PatchParams::default() };
            let made = pods.patch_subresource("status", name, &params, &Patch::Merge(&patch));
            made.map_err(|error| error.to_string())
        });
        match request {
            Ok(mut request) => {
                request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA_ONLY));
                self.send(request).await
            }
            Err(why) => Outcome::Refused(why),
        }
    }

    /// Makes an Event, in its own namespace.
    pub async fn create_event(&self, event: &Event) -> Outcome {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let request = segments(&[namespace]).and_then(|()| {
            let body = serde_json::to_vec(event).map_err(|error| error.to_string())?;
            let params = PostParams { field_manager: Some(WRITER.to_owned()), ..PostParams::default() };
            events(namespace).create(&params, body).map_err(|error| error.to_string())
        });
        self.send_if(request).await
    }

    /// Says that an Event has happened again.
    pub async fn repeat_event(&self, namespace: &str, name: &str, patch: &Value) -> Outcome {
        let request = segments(&[namespace, name]).and_then(|()| {
            let params = PatchParams { field_manager: Some(WRITER.to_owned()), ..PatchParams::default() };
            events(namespace).patch(name, &params, &Patch::Merge(patch)).map_err(|error| error.to_string())
        });
        self.send_if(request).await
    }

    /// Changes a node by this JSON patch (RFC 6902), whose tests are its preconditions.
    pub async fn patch_node(&self, name: &str, patch: &Value) -> Outcome {
        let request = segments(&[name]).and_then(|()| {
            let body = serde_json::to_vec(patch).map_err(|error| error.to_string())?;
            let request = hyper::Request::patch(format!("/api/v1/nodes/{name}?fieldManager={WRITER}"))
                .header(CONTENT_TYPE, "application/json-patch+json")
                .header(ACCEPT, METADATA_ONLY);
            request.body(body).map_err(|error| error.to_string())
        });
        self.send_if(request).await
    }

    async fn send_if(&self, request: Result<hyper::Request<Vec<u8>>, String>) -> Outcome {
        match request {
            Ok(request) => self.send(request).await,
            Err(why) => Outcome::Refused(why),
        }
    }

    async fn send(&self, mut request: hyper::Request<Vec<u8>>) -> Outcome {
        request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let answer = async {
            let response = self.0.send(request.map(Body::from)).await.map_err(|error| chain(&error))?;
            let (head, body) = response.into_parts();
            // What the answer is does not depend on its body; and one read to its end frees the connection.
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
            let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            Ok::<_, String>(outcome::of(head.status.as_u16(), retry_after, &body))
        };
        match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => Outcome::Unanswered(why),
            Err(_) => Outcome::Unanswered(format!("nothing within {} s", TIMEOUT.as_secs())),
        }
    }
}

/// A merge patch for `pods/status`. The uid is a precondition: a pod of the same name with another one is not touched.
fn annotation_patch(uid: &PodUid, action: Action) -> Value {
    let value = match action {
        Action::Write(value) => Value::from(value.as_str()),
        Action::Remove => Value::Null,
    };
    let mut patch = json!({ "metadata": { "annotations": { ANNOTATION_REDIRECTION: value } } });
    if is_the_objects(uid) {
        patch["metadata"]["uid"] = uid.as_str().into();
    }
    patch
}

/// Whether a uid was given by the API server, which makes UUIDs. A static pod's is a hash, made by the kubelet, and its
/// object has another one; such a pod's name is its own on its node.
pub fn is_the_objects(uid: &PodUid) -> bool {
    let groups: Vec<_> = uid.as_str().split('-').collect();
    let hex = |group: &&str| group.chars().all(|c| c.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(hex)
}

fn events(namespace: &str) -> Request {
    Request::new(format!("/api/v1/namespaces/{namespace}/events"))
}

/// Whether these can be segments of a path: names come from ADD, too.
fn segments(names: &[&str]) -> Result<(), String> {
    let good = |name: &str| {
        !name.is_empty()
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
    };
    match names.iter().find(|name| !good(name)) {
        Some(name) => Err(format!("{name:?} is no name of a Kubernetes object")),
        None => Ok(()),
    }
}

/// An error with its causes: the outermost mostly says only that something went wrong.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::annotation::Redirection;
    use super::*;

    #[test]
    fn a_patch_names_the_uid_and_nothing_else_than_the_annotation() {
        let uid = PodUid::new("6d9f3a52-0c8e-4b1e-9a57-1f0c5d3e7b42").unwrap();
        let written = annotation_patch(&uid, Action::Write(Redirection::Pending));
        assert_eq!(
            written.to_string(),
            r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"pending"},"uid":"6d9f3a52-0c8e-4b1e-9a57-1f0c5d3e7b42"}}"#
        );
        let removed = annotation_patch(&uid, Action::Remove);
        assert!(removed["metadata"]["annotations"][ANNOTATION_REDIRECTION].is_null());
    }

    #[test]
    fn a_static_pod_is_known_by_its_name() {
        let uid = PodUid::new("0a1b2c3d4e5f60718293a4b5c6d7e8f9").unwrap();
        let written = annotation_patch(&uid, Action::Write(Redirection::Enabled));
        assert_eq!(written["metadata"].as_object().unwrap().len(), 1, "{written}");
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        for name in ["", "..", "a/b", "a?b", "a%2fb", "A"] {
            assert!(segments(&["demo", name]).is_err(), "{name}");
        }
        segments(&["demo", "pod-0.x"]).unwrap();
    }
}
