//! A runtime's socket, honest or not: gRPC on HTTP/2, with messages of its own after the CRI API's `api.proto`.

use hyper::http::{HeaderMap, Request, Response};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;

/// A sandbox, as the runtime tells of it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub uid: String,
    pub name: String,
    pub attempt: u32,
    pub ready: bool,
    pub ip: String,
    /// The value of `info` in a verbose status.
    pub info: String,
}

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Takes every request and answers none.
    Hangs,
    /// Lists, and answers nothing more.
    HangsOnStatus,
    /// Gives a status of several megabytes.
    Huge,
    /// Gives bytes that are no message.
    Garbage,
    /// Gives the status of another sandbox than was asked for.
    OfAnother,
    /// Fails every call.
    Fails,
}

/// A listening runtime.
#[derive(Clone)]
pub struct Runtime {
    pub sandboxes: Arc<Mutex<Vec<Sandbox>>>,
    pub manner: Arc<Mutex<Manner>>,
    pub lists: Arc<AtomicUsize>,
    pub statuses: Arc<AtomicUsize>,
    /// Its name and version.
    pub version: Arc<Mutex<(String, String)>>,
    pub versions: Arc<AtomicUsize>,
}

impl Runtime {
    /// Listens. Call it within a tokio runtime.
    pub fn listen(socket: &Path, sandboxes: Vec<Sandbox>, manner: Manner) -> Self {
        let listener = UnixListener::bind(socket).expect("listen");
        let runtime = Self {
            sandboxes: Arc::new(Mutex::new(sandboxes)),
            manner: Arc::new(Mutex::new(manner)),
            lists: Arc::default(),
            statuses: Arc::default(),
            version: Arc::new(Mutex::new(("containerd".to_owned(), "v2.1.4".to_owned()))),
            versions: Arc::default(),
        };
        let served = runtime.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let runtime = served.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(runtime.clone().answer(request, respond));
                    }
                });
            }
        });
        runtime
    }

    async fn answer(self, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
        let host = request.uri().authority().map(ToString::to_string);
        assert_eq!(host.as_deref(), Some("localhost"), "containerd refuses a path for a name");
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        let mut asked = Vec::new();
        while let Some(Ok(chunk)) = body.data().await {
            asked.extend_from_slice(&chunk);
        }
        let manner = *self.manner.lock().expect("lock");
        let message = match path.as_str() {
            "/runtime.v1.RuntimeService/ListPodSandbox" => {
                self.lists.fetch_add(1, Ordering::SeqCst);
                self.list()
            }
            "/runtime.v1.RuntimeService/PodSandboxStatus" => {
                self.statuses.fetch_add(1, Ordering::SeqCst);
                if manner == Manner::HangsOnStatus {
                    return std::future::pending().await;
                }
                let asked = StatusRequest::decode(&asked[5..]).expect("a status request");
                assert!(asked.verbose);
                self.status(&asked.pod_sandbox_id, manner)
            }
            "/runtime.v1.RuntimeService/Version" => {
                self.versions.fetch_add(1, Ordering::SeqCst);
                let (name, version) = self.version.lock().expect("lock").clone();
                VersionResponse { name, version }.encode_to_vec()
            }
            other => panic!("{other} is not called"),
        };
        let (message, status) = match manner {
            Manner::Hangs => return std::future::pending().await,
            Manner::Fails => (Vec::new(), "13"),
            Manner::Garbage => (vec![0xff; 64], "0"),
            _ => (message, "0"),
        };
        let headers =
            Response::builder().header("content-type", "application/grpc").body(()).expect("headers");
        let mut stream = respond.send_response(headers, false).expect("respond");
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).expect("length").to_be_bytes());
        frame.extend_from_slice(&message);
        // Whoever has read enough may have reset the stream.
        let _ = stream.send_data(frame.into(), false);
        let _ = stream.send_trailers(HeaderMap::from_iter([(
            "grpc-status".parse().expect("a name"),
            status.parse().expect("a value"),
        )]));
    }

    fn list(&self) -> Vec<u8> {
        let sandboxes = self.sandboxes.lock().expect("lock");
        ListResponse { items: sandboxes.iter().map(Listed::from).collect() }.encode_to_vec()
    }

    fn status(&self, id: &str, manner: Manner) -> Vec<u8> {
        let sandboxes = self.sandboxes.lock().expect("lock");
        let wanted = |sandbox: &&Sandbox| (sandbox.id == id) != (manner == Manner::OfAnother);
        let Some(sandbox) = sandboxes.iter().find(wanted) else { return Vec::new() };
        let listed = Listed::from(sandbox);
        let padding = if manner == Manner::Huge { " ".repeat(4 << 20) } else { String::new() };
        StatusResponse {
            status: Some(Status {
                id: listed.id,
                metadata: listed.metadata,
                state: listed.state,
                network: Some(Network { ip: sandbox.ip.clone() }),
                labels: HashMap::from([("io.kubernetes.pod.uid".into(), sandbox.uid.clone())]),
            }),
            info: HashMap::from([("info".into(), format!("{}{padding}", sandbox.info))]),
        }
        .encode_to_vec()
    }
}

/// What containerd says of a sandbox whose namespace is at `path`.
pub fn info(path: &str, pid: u32) -> String {
    let namespaces = format!(r#"[{{"type":"pid"}},{{"type":"network","path":"{path}"}}]"#);
    format!(r#"{{"pid":{pid},"runtimeSpec":{{"ociVersion":"1.1.0","linux":{{"namespaces":{namespaces}}}}}}}"#)
}

impl From<&Sandbox> for Listed {
    fn from(sandbox: &Sandbox) -> Self {
        let Sandbox { id, uid, name, attempt, ready, .. } = sandbox.clone();
        let metadata = Some(Metadata { name, uid, namespace: "demo".into(), attempt });
        Self { id, metadata, state: i32::from(!ready), created_at: i64::from(attempt) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Listed>,
}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int64, tag = "4")]
    created_at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
    #[prost(map = "string, string", tag = "7")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
}
