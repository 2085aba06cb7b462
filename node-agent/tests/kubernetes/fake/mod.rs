//! A small API server for tests: LIST, WATCH with bookmarks and streaming lists, GET, PATCH and POST over plain HTTP on
//! loopback, with its misbehaviour scripted and its requests noted.
//!
//! It keeps every object and the history of changes, as etcd does, so that a watch may begin at any version that has not
//! been compacted.

mod serve;
mod tls;

use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The server. Dropping it stops it.
pub struct FakeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Bound, and never listened on: while the server is stopped nobody else gets its port, not even a client that
    /// would then be connected to itself.
    _reserved: TcpSocket,
    serving: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// How the server takes a request for a streaming list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    Supported,
    /// As a server that knows the parameter and has it switched off.
    Refused(u16),
    /// As one that has never heard of it: a watch from now on.
    Ignored,
}

/// What a scripted request gets instead of its answer.
#[derive(Clone, Debug)]
pub enum Scripted {
    /// A `Status` with this code and reason.
    Status(u16, &'static str),
    /// This code from what is in front of the API server, which is none.
    Proxied(u16),
    /// 200 with this body, which then ends.
    Body(String),
    /// No answer at all.
    Hang,
}

struct Shared {
    state: Mutex<State>,
    /// Counts whatever watches must look at.
    changed: watch::Sender<u64>,
}

struct State {
    objects: BTreeMap<(&'static str, String), Value>,
    history: Vec<Change>,
    version: u64,
    /// Watches from before this version get 410.
    oldest: u64,
    streaming: Streaming,
    /// Whether 410 comes as the answer's status, rather than as the watch's first event.
    gone_as_status: bool,
    script: VecDeque<(&'static str, Scripted)>,
    requests: Vec<Seen>,
    /// Raised to make open watches end with this line, or with none.
    end_watches: (u64, Option<String>),
}

#[derive(Clone)]
struct Change {
    version: u64,
    resource: &'static str,
    kind: &'static str,
    object: Value,
}

impl FakeApi {
    pub async fn start() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            history: Vec::new(),
            version: 100,
            oldest: 0,
            streaming: Streaming::Supported,
            gone_as_status: true,
            script: VecDeque::new(),
            requests: Vec::new(),
            end_watches: (0, None),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0) });
        let reserved = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reserved.local_addr().unwrap();
        let serving = Some(tokio::spawn(serve::serve(listening(address), Arc::clone(&shared))));
        let dir = tempfile::tempdir().unwrap();
        let api = Self { shared, address, _reserved: reserved, serving, dir };
        api.write_kubeconfig(&format!("{{server: 'http://{address}'}}"));
        api
    }

    fn write_kubeconfig(&self, cluster: &str) {
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
             contexts: [{{name: t, context: {{cluster: t, user: t}}}}]\n\
             users: [{{name: t, user: {{token: secret}}}}]\n\
             clusters: [{{name: t, cluster: {cluster}}}]\n"
        );
        std::fs::write(self.kubeconfig(), kubeconfig).unwrap();
    }

    /// A client of this server, made as the agent makes its own.
    pub async fn client(&self) -> kube::Client {
        sluice_agent::source::kubernetes::connect(Some(&self.kubeconfig())).await.unwrap()
    }

    pub fn kubeconfig(&self) -> std::path::PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub fn streaming(&self, streaming: Streaming) {
        self.state().streaming = streaming;
    }

    pub fn gone_as_status(&self, as_status: bool) {
        self.state().gone_as_status = as_status;
    }

    /// Puts an object there, or another in its place.
    pub fn apply(&self, object: Value) {
        self.state().apply(object);
        self.wake();
    }

    /// `delete("pods", "shop/web-0")`
    pub fn delete(&self, resource: &'static str, key: &str) {
        self.state().delete(resource, key);
        self.wake();
    }

    pub fn object(&self, resource: &'static str, key: &str) -> Option<Value> {
        self.state().objects.get(&(resource, key.to_owned())).cloned()
    }

    /// Every watch hears the version.
    pub fn bookmark(&self) {
        let mut state = self.state();
        let version = state.version;
        for resource in ["pods", "namespaces"] {
            let object = json!({"metadata": {"resourceVersion": version.to_string()}});
            state.history.push(Change { version, resource, kind: "BOOKMARK", object });
        }
        drop(state);
        self.wake();
    }

    /// Changes up to now are forgotten: whoever comes with a version from before gets 410.
    pub fn compact(&self) {
        let mut state = self.state();
        state.version += 10;
        state.oldest = state.version;
    }

    /// Open watches end, with this line first.
    pub fn end_watches(&self, last_line: Option<Value>) {
        let mut state = self.state();
        state.end_watches = (state.end_watches.0 + 1, last_line.map(|line| line.to_string()));
        drop(state);
        self.wake();
    }

    /// The next request of this kind ([`Seen::what`]) gets this.
    pub fn script(&self, what: &'static str, answer: Scripted) {
        self.state().script.push_back((what, answer));
    }

    /// Nobody listens any more; what is open breaks.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Listens again, at the same address.
    pub async fn resume(&mut self) {
        self.serving = Some(tokio::spawn(serve::serve(listening(self.address), Arc::clone(&self.shared))));
    }

    /// What came so far, in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.state().requests.clone()
    }

    /// `WATCH pods` and so on, in order.
    pub fn asked(&self) -> Vec<String> {
        self.requests().iter().map(Seen::what).collect()
    }

    pub fn count(&self, what: &str) -> usize {
        self.asked().iter().filter(|asked| *asked == what).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

/// As several sockets may be, of which one listens.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listening(address: SocketAddr) -> TcpListener {
    bound(address).listen(1024).unwrap()
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn apply(&mut self, mut object: Value) {
        self.version += 1;
        let version = self.version;
        let resource = match object["kind"].as_str() {
            Some("Namespace") => "namespaces",
            Some("Node") => "nodes",
            Some("DaemonSet") => "daemonsets",
            _ => "pods",
        };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = key(&object);
        let before = self.objects.insert((resource, key), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.history.push(Change { version, resource, kind, object });
    }

    fn delete(&mut self, resource: &'static str, key: &str) {
        self.version += 1;
        let version = self.version;
        let mut object = self.objects.remove(&(resource, key.to_owned())).expect("no such object");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.history.push(Change { version, resource, kind: "DELETED", object });
    }

    /// What is to be done otherwise for this request.
    fn scripted(&mut self, what: &str) -> Option<Scripted> {
        let index = self.script.iter().position(|(wanted, _)| *wanted == what)?;
        self.script.remove(index).map(|(_, answer)| answer)
    }
}

impl Seen {
    /// `WATCH pods`, `LIST namespaces`, `GET pod`, `PATCH pod`, `POST event`, `GET daemonset`, `PATCH node`.
    pub fn what(&self) -> String {
        let path = self.path.trim_start_matches("/api/v1/").trim_start_matches("/apis/apps/v1/");
        let parts: Vec<_> = path.split('/').collect();
        let verb = match (self.method.as_str(), parts.len()) {
            ("GET", 1) if self.query.get("watch").is_some_and(|watch| watch == "true") => "WATCH",
            ("GET", 1) => "LIST",
            (method, _) => method,
        };
        let what = match parts.as_slice() {
            [resource] => resource,
            [_, _, "pods", ..] => "pod",
            [_, _, "events", ..] => "event",
            [_, _, "daemonsets", _] => "daemonset",
            ["nodes", _] => "node",
            _ => "something else",
        };
        format!("{verb} {what}")
    }
}

/// `namespace/name`, or the name alone.
fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    match text("namespace") {
        namespace if namespace.is_empty() => text("name"),
        namespace => format!("{namespace}/{}", text("name")),
    }
}

/// A pod that runs on `node1`: `pod("shop/web-0", "u1")`.
pub fn pod(key: &str, uid: &str) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": name},
                     "managedFields": [{"manager": "kubelet", "operation": "Update"}]},
        "spec": {"nodeName": "node1", "serviceAccountName": "app", "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]},
    })
}

/// A node with these labels and taints.
pub fn node(name: &str, labels: &Value, taints: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("node-{name}"), "labels": labels},
           "spec": {"podCIDR": "10.77.1.0/24", "taints": taints}, "status": {"nodeInfo": {"architecture": "amd64"}}})
}

/// A DaemonSet whose pods are of this `spec`.
pub fn daemon_set(key: &str, uid: &str, spec: &Value) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
           "metadata": {"name": name, "namespace": namespace, "uid": uid},
           "spec": {"selector": {"matchLabels": {"app": name}},
                    "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

/// A namespace, with this dataplane mode.
pub fn namespace(name: &str, mode: Option<&str>) -> Value {
    let labels = mode.map(|mode| json!({"istio.io/dataplane-mode": mode})).unwrap_or_else(|| json!({}));
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": format!("ns-{name}"), "labels": labels},
           "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}
