//! As much of an API server as lists take: one answer for each path, refused where there is none.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const CILIUM: &str = "/api/v1/namespaces/kube-system/configmaps/cilium-config";

pub struct ApiServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What it answers: by path the items of a list, or a whole object that is no list.
pub struct Answers {
    pub objects: BTreeMap<&'static str, Value>,
    /// Its clock, as the header `Date` has it; without one, clocks cannot be compared.
    pub date: Option<&'static str>,
}

impl Default for Answers {
    /// Two namespaces, one of them in the mesh, and whatever belongs to no finding.
    fn default() -> Self {
        let namespaces = json!([
            {"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}},
            {"metadata": {"name": "other"}},
        ]);
        let objects = BTreeMap::from([
            ("/version", json!({"major": "1"})),
            ("/api/v1/namespaces", namespaces),
            ("/apis/networking.k8s.io/v1/networkpolicies", json!([])),
            ("/apis/apps/v1/daemonsets", json!([])),
        ]);
        Self { objects, date: None }
    }
}

impl Answers {
    /// With this one too.
    pub fn and(mut self, path: &'static str, items: Value) -> Self {
        self.objects.insert(path, items);
        self
    }

    /// With `kube-system/cilium-config`.
    pub fn cilium(self, config: &Value) -> Self {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cilium-config"}, "data": config});
        self.and(CILIUM, object)
    }

    /// Refused to whoever asks.
    pub fn without(mut self, path: &'static str) -> Self {
        self.objects.remove(path);
        self
    }

    fn to(&self, path: &str) -> (&'static str, Value) {
        match self.objects.get(path) {
            Some(items @ Value::Array(_)) => {
                ("200 OK", json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            Some(object) => ("200 OK", object.clone()),
            None if path == CILIUM => {
                let gone =
                    json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"});
                ("404 Not Found", gone)
            }
            None => {
                let message = format!("User \"u\" cannot list {path}");
                let refusal =
                    json!({"kind": "Status", "code": 403, "reason": "Forbidden", "message": message});
                ("403 Forbidden", refusal)
            }
        }
    }
}

impl ApiServer {
    /// Serves until the test ends.
    pub fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answers) = (Arc::clone(&asked), Arc::new(answers));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                // A client that hangs up is none of the server's business.
                std::thread::spawn(move || _ = serve(stream, &log, &answers));
            }
        });
        Self { address, asked }
    }

    /// Writes a kubeconfig for it.
    pub fn kubeconfig(&self, file: &Path) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"http://{}\"}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
            self.address
        );
        std::fs::write(file, text).unwrap();
        file.to_owned()
    }

    /// The lines of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<String>>, answers: &Answers) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        log.lock().unwrap().push(first.trim().to_owned());
        let path = first.split(' ').nth(1).unwrap_or_default();
        let (status, body) = answers.to(path.split('?').next().unwrap_or_default());
        let date = answers.date.map(|date| format!("Date: {date}\r\n")).unwrap_or_default();
        let body = body.to_string();
        let length = body.len();
        write!(
            writer,
            "HTTP/1.1 {status}\r\n{date}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
}
