//! An API server in a box: pods with uid and annotations, Events, and whatever mood it is in.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Answers requests, and remembers them. Cloning shares it.
#[derive(Clone, Default)]
pub struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// `namespace/name` → uid and annotation.
    pods: BTreeMap<String, (String, Option<String>)>,
    events: BTreeMap<String, Value>,
    requests: Vec<Asked>,
    moods: VecDeque<Mood>,
    lasting: Option<Mood>,
    takes: Duration,
    /// Asked whenever an annotation is changed, just before it is.
    witness: Option<Witness>,
    testimony: Vec<usize>,
    under_way: usize,
    most: usize,
}

/// Looks at something else, and says a number.
type Witness = Box<dyn Fn() -> usize + Send>;

/// A request, as it came in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Instant,
    pub method: Method,
    pub path: String,
    pub body: Value,
}

/// How it answers.
#[derive(Clone, Debug)]
pub enum Mood {
    /// With this status, `Retry-After`, and message.
    Says(u16, Option<u64>, &'static str),
    /// What is in front of it answers with this status, and knows nothing of its objects.
    Proxied(u16),
    /// Not at all.
    Away,
    /// Never.
    Silent,
    /// It does what it is asked, and the answer is lost.
    Forgetful,
}

impl Asked {
    fn is_a_patch_of_a_pod(&self) -> bool {
        self.path.contains("/pods/")
    }
}

impl Server {
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.serve(request).await }
        });
        kube::Client::new(service, "default")
    }

    pub fn pod(&self, name: &str, uid: &str, annotation: Option<&str>) {
        self.lock().pods.insert(name.to_owned(), (uid.to_owned(), annotation.map(str::to_owned)));
    }

    pub fn annotation(&self, name: &str) -> Option<String> {
        self.lock().pods.get(name).and_then(|(_, annotation)| annotation.clone())
    }

    pub fn delete(&self, name: &str) {
        self.lock().pods.remove(name);
    }

    /// The next request is answered so.
    pub fn once(&self, mood: Mood) {
        self.lock().moods.push_back(mood);
    }

    /// All requests are answered so from now on.
    pub fn becomes(&self, mood: Option<Mood>) {
        self.lock().lasting = mood;
    }

    /// Each request takes so long.
    pub fn takes(&self, time: Duration) {
        self.lock().takes = time;
    }

    pub fn patches(&self) -> Vec<Asked> {
        self.requests().into_iter().filter(Asked::is_a_patch_of_a_pod).collect()
    }

    pub fn requests(&self) -> Vec<Asked> {
        self.lock().requests.clone()
    }

    /// Every Event: reason, count, and all of it.
    pub fn events(&self) -> Vec<(String, i64, Value)> {
        let events = self.lock().events.clone();
        let reason = |event: &Value| event["reason"].as_str().unwrap_or_default().to_owned();
        events
            .into_values()
            .map(|event| (reason(&event), event["count"].as_i64().unwrap_or(0), event))
            .collect()
    }

    /// Loses all Events, as a server does after an hour.
    pub fn forget_events(&self) {
        self.lock().events.clear();
    }

    /// Whenever an annotation is changed, just before it is, `witness` is asked.
    pub fn have_witnessed(&self, witness: impl Fn() -> usize + Send + 'static) {
        self.lock().witness = Some(Box::new(witness));
    }

    /// What the witness has said, each time.
    pub fn testimony(&self) -> Vec<usize> {
        self.lock().testimony.clone()
    }

    /// The most patches of pods that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.lock().most
    }

    async fn serve(&self, request: Request<Body>) -> Result<Response<Full<Bytes>>, tower::BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let asked = Asked {
            at: Instant::now(),
            method: head.method,
            path: head.uri.path().to_owned(),
            body: serde_json::from_slice(&body)?,
        };
        let (mood, takes) = {
            let mut inner = self.lock();
            inner.requests.push(asked.clone());
            inner.under_way += usize::from(asked.is_a_patch_of_a_pod());
            inner.most = inner.most.max(inner.under_way);
            (inner.moods.pop_front().or(inner.lasting.clone()), inner.takes)
        };
        tokio::time::sleep(takes).await;
        self.lock().under_way -= usize::from(asked.is_a_patch_of_a_pod());
        match mood {
            Some(Mood::Away) => Err("connection refused".into()),
            Some(Mood::Silent) => std::future::pending::<Result<_, Infallible>>().await.map_err(Into::into),
            Some(Mood::Says(code, wait, message)) => Ok(status(code, wait, message)),
            Some(Mood::Proxied(code)) => Ok(answer(code, &json!("default backend"))),
            Some(Mood::Forgetful) => {
                self.lock().act(&asked);
                Err("connection reset".into())
            }
            None => Ok(self.lock().act(&asked)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn act(&mut self, asked: &Asked) -> Response<Full<Bytes>> {
        let segments: Vec<_> = asked.path.trim_start_matches("/api/v1/namespaces/").split('/').collect();
        match (asked.method.as_str(), segments.as_slice()) {
            ("PATCH", [namespace, "pods", name, "status"]) => {
                let Some((uid, annotation)) = self.pods.get_mut(&format!("{namespace}/{name}")) else {
                    return status(404, None, "not found");
                };
                let metadata = &asked.body["metadata"];
                if metadata["uid"].as_str().is_some_and(|asked| asked != uid) {
                    let causes = json!([{"message": "field is immutable", "field": "metadata.uid"}]);
                    return answer(422, &json!({"kind": "Status", "details": {"causes": causes}}));
                }
                self.testimony.extend(self.witness.as_ref().map(|witness| witness()));
                *annotation =
                    metadata["annotations"]["ambient.istio.io/redirection"].as_str().map(str::to_owned);
                answer(200, &json!({"kind": "PartialObjectMetadata"}))
            }
            ("POST", [_, "events"]) => {
                let name = asked.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                self.events.insert(name, asked.body.clone());
                answer(201, &asked.body)
            }
            ("PATCH", [_, "events", name]) => match self.events.get_mut(*name) {
                Some(event) => {
                    for (key, value) in asked.body.as_object().into_iter().flatten() {
                        event[key] = value.clone();
                    }
                    answer(200, &json!({}))
                }
                None => status(404, None, "not found"),
            },
            _ => status(405, None, "no such request is expected of the agent"),
        }
    }
}

fn status(code: u16, wait: Option<u64>, message: &str) -> Response<Full<Bytes>> {
    let mut response = answer(code, &json!({"kind": "Status", "code": code, "message": message}));
    if let Some(wait) = wait {
        response.headers_mut().insert("retry-after", wait.into());
    }
    response
}

fn answer(code: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = code.try_into().unwrap();
    response
}
