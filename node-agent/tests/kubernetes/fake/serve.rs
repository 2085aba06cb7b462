//! The HTTP side of the fake API server.

use super::{Change, Scripted, Seen, Shared, Streaming};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Collected, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

type Body = BoxBody<Bytes, Infallible>;
type Answer = Result<Response<Body>, Infallible>;

pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and everything that is open with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&shared)));
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

pub async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().split('&').filter_map(parameter).collect(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let scripted = {
        let mut state = shared.state();
        state.requests.push(seen.clone());
        state.scripted(&seen.what())
    };
    match scripted {
        Some(Scripted::Status(code, reason)) => return status(code, reason, "scripted"),
        Some(Scripted::Proxied(code)) => {
            return Ok(Response::builder().status(code).body(whole("default backend".to_owned())).unwrap());
        }
        Some(Scripted::Body(body)) => return ok(body),
        Some(Scripted::Hang) => std::future::pending().await,
        None => {}
    }
    match seen.what().as_str() {
        "LIST pods" => list("pods", &seen, &shared),
        "LIST namespaces" => list("namespaces", &seen, &shared),
        "WATCH pods" => watch("pods", &seen, &shared),
        "WATCH namespaces" => watch("namespaces", &seen, &shared),
        "GET pod" => one("pods", &seen, &shared),
        "GET daemonset" => one("daemonsets", &seen, &shared),
        "GET node" => one("nodes", &seen, &shared),
        "WATCH nodes" => watch("nodes", &seen, &shared),
        "PATCH node" => json_patch(&seen, &shared),
        "PATCH pod" => patch(&seen, &shared),
        "POST event" => Ok(Response::builder().status(201).body(whole(seen.body)).unwrap()),
        what => status(404, "NotFound", what),
    }
}

fn list(resource: &'static str, seen: &Seen, shared: &Shared) -> Answer {
    let state = shared.state();
    let objects = state.objects.iter().filter(|((of, _), _)| *of == resource).map(|(_, object)| object);
    let mut items: Vec<Value> =
        objects.filter(|object| selected(object, seen)).map(|o| cut(o, seen)).collect();
    let from: usize = seen.query.get("continue").map_or(0, |text| text.parse().unwrap());
    let mut items = items.split_off(from);
    let limit = seen.query.get("limit").map_or(usize::MAX, |text| text.parse().unwrap());
    let mut metadata = json!({"resourceVersion": state.version.to_string()});
    if items.len() > limit {
        items.truncate(limit);
        metadata["continue"] = json!((from + limit).to_string());
    }
    ok(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
}

fn one(resource: &'static str, seen: &Seen, shared: &Shared) -> Answer {
    let parts: Vec<_> = seen.path.split('/').skip_while(|part| *part != "namespaces").collect();
    let key = match parts.as_slice() {
        [_, namespace, _, name, ..] => format!("{namespace}/{name}"),
        _ => seen.path.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    match shared.state().objects.get(&(resource, key)) {
        Some(object) => ok(cut(object, seen).to_string()),
        None => status(404, "NotFound", "no such object"),
    }
}

/// A JSON merge patch (RFC 7386) of a pod.
fn patch(seen: &Seen, shared: &Shared) -> Answer {
    let parts: Vec<_> = seen.path.split('/').collect();
    let [_, _, _, _, namespace, _, name, ..] = parts.as_slice() else {
        return status(404, "NotFound", "path");
    };
    let key = format!("{namespace}/{name}");
    let Ok(patch) = serde_json::from_str::<Value>(&seen.body) else {
        return status(400, "BadRequest", "json");
    };
    let mut state = shared.state();
    let Some(mut object) = state.objects.get(&("pods", key)).cloned() else {
        return status(404, "NotFound", "no such pod");
    };
    if patch["metadata"].get("uid").is_some_and(|uid| *uid != object["metadata"]["uid"]) {
        // As the real one does: a uid is immutable.
        let mut object = status_object(422, "Invalid", "metadata.uid: field is immutable");
        object["details"] = json!({"causes": [{"field": "metadata.uid", "message": "field is immutable"}]});
        return Ok(Response::builder().status(422).body(whole(object.to_string())).unwrap());
    }
    merge(&mut object, &patch);
    state.apply(object.clone());
    drop(state);
    shared.changed.send_modify(|count| *count += 1);
    ok(object.to_string())
}

/// A JSON patch (RFC 6902) of a node: `test` and `remove`, the second of a list's element.
fn json_patch(seen: &Seen, shared: &Shared) -> Answer {
    assert_eq!(seen.headers["content-type"], "application/json-patch+json");
    let name = seen.path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut state = shared.state();
    let Some(mut object) = state.objects.get(&("nodes", name)).cloned() else {
        return status(404, "NotFound", "no such node");
    };
    for step in serde_json::from_str::<Vec<Value>>(&seen.body).unwrap() {
        let path = step["path"].as_str().unwrap();
        let found = object.pointer(path);
        match step["op"].as_str() {
            Some("test") if found == Some(&step["value"]) => {}
            Some("remove") if found.is_some() => {
                let (list, index) = path.rsplit_once('/').unwrap();
                object.pointer_mut(list).unwrap().as_array_mut().unwrap().remove(index.parse().unwrap());
            }
            _ => return status(422, "Invalid", "testing path failed"),
        }
    }
    state.apply(object.clone());
    drop(state);
    shared.changed.send_modify(|count| *count += 1);
    ok(object.to_string())
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(name)),
            value => merge(&mut into[name], value),
        }
    }
}

fn watch(resource: &'static str, seen: &Seen, shared: &Arc<Shared>) -> Answer {
    let state = shared.state();
    let asks_for_list = seen.query.contains_key("sendInitialEvents");
    let with_list = asks_for_list && state.streaming == Streaming::Supported;
    if let (true, Streaming::Refused(code)) = (asks_for_list, state.streaming) {
        return status(code, "Invalid", "sendInitialEvents is forbidden");
    }
    // 0 is whatever the server has at hand, and what changes from then on.
    let at_hand = seen.query.get("resourceVersion").is_some_and(|text| text == "0");
    let with_list = with_list || at_hand;
    let from = seen.query.get("resourceVersion").map(|text| text.parse::<u64>().unwrap());
    let from = from.filter(|_| !at_hand);
    let too_old = from.is_some_and(|from| from < state.oldest);
    if too_old && state.gone_as_status {
        return status(410, "Expired", "too old resource version");
    }
    let (lines, body) = mpsc::unbounded_channel::<String>();
    if too_old {
        let _ = lines.send(line("ERROR", &status_object(410, "Expired", "too old resource version")));
        return stream(body);
    }
    if with_list {
        let objects = state.objects.iter().filter(|((of, _), _)| *of == resource).map(|(_, object)| object);
        for object in objects.filter(|object| selected(object, seen)) {
            let _ = lines.send(line("ADDED", &cut(object, seen)));
        }
    }
    if with_list && !at_hand {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let end =
            json!({"metadata": {"resourceVersion": state.version.to_string(), "annotations": annotations}});
        let _ = lines.send(line("BOOKMARK", &end));
    }
    let cursor = from.unwrap_or(state.version);
    let history = match from {
        Some(from) => {
            state.history.iter().position(|change| change.version > from).unwrap_or(state.history.len())
        }
        None => state.history.len(),
    };
    let ends = state.end_watches.0;
    drop(state);
    tokio::spawn(push(resource, seen.clone(), Arc::clone(shared), lines, cursor, history, ends));
    stream(body)
}

/// Sends what changes, until the watch is to end or nobody listens.
async fn push(
    resource: &'static str,
    seen: Seen,
    shared: Arc<Shared>,
    lines: mpsc::UnboundedSender<String>,
    cursor: u64,
    mut next: usize,
    ends: u64,
) {
    let mut changed = shared.changed.subscribe();
    loop {
        let (changes, over): (Vec<Change>, _) = {
            let state = shared.state();
            let changes = state.history[next..].to_vec();
            next = state.history.len();
            (changes, (state.end_watches.0 > ends).then(|| state.end_watches.1.clone()))
        };
        for change in changes.iter().filter(|change| change.resource == resource && change.version >= cursor)
        {
            if change.kind == "BOOKMARK" {
                let _ = lines.send(line("BOOKMARK", &change.object));
            } else if selected(&change.object, &seen) {
                let _ = lines.send(line(change.kind, &cut(&change.object, &seen)));
            }
        }
        if let Some(last) = over {
            let _ = last.map(|last| lines.send(last + "\n"));
            return;
        }
        tokio::select! {
            alive = changed.changed() => if alive.is_err() { return },
            () = lines.closed() => return,
        }
    }
}

/// Whether the field selector selects it.
fn selected(object: &Value, seen: &Seen) -> bool {
    match seen.query.get("fieldSelector").map(|text| text.split_once('=').unwrap()) {
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"] == node,
        Some(("metadata.name", name)) => object["metadata"]["name"] == name,
        other => other.is_none(),
    }
}

/// Cut down to its metadata, if that was asked for.
fn cut(object: &Value, seen: &Seen) -> Value {
    match seen.headers.get("accept").is_some_and(|accept| accept.contains("as=PartialObjectMetadata")) {
        true => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
        }
        false => object.clone(),
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn stream(mut lines: mpsc::UnboundedReceiver<String>) -> Answer {
    let frames = futures_util::stream::poll_fn(move |cx| {
        lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(Bytes::from(line)))))
    });
    Ok(Response::new(StreamBody::new(frames).boxed()))
}

fn ok(text: String) -> Answer {
    Ok(Response::new(whole(text)))
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let body = whole(status_object(code, reason, message).to_string());
    Ok(Response::builder().status(code).body(body).unwrap())
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed()
}

fn parameter(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let hex = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Some((name.to_owned(), String::from_utf8(bytes).ok()?))
}
