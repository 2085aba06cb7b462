//! As much of an API server as lists take: one answer for each path, refused where there is none.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub struct ApiServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ApiServer {
    /// Serves until the test ends.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                // A client that hangs up is none of the server's business.
                std::thread::spawn(move || _ = serve(stream, &log));
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

fn serve(stream: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
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
        let (status, body) = answer(path.split('?').next().unwrap_or_default());
        let body = body.to_string();
        let length = body.len();
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
}

fn answer(path: &str) -> (&'static str, Value) {
    let items = match path {
        // No header Date: its clock cannot be compared.
        "/version" => return ("200 OK", json!({"major": "1"})),
        "/api/v1/namespaces" => json!([
            {"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}},
            {"metadata": {"name": "other"}},
        ]),
        "/apis/networking.k8s.io/v1/networkpolicies" => json!([{
            "metadata": {"namespace": "shop", "name": "web", "uid": "1"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"protocol": "TCP", "port": 8080}]}]},
        }]),
        "/api/v1/namespaces/kube-system/configmaps/cilium-config" => {
            let gone = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"});
            return ("404 Not Found", gone);
        }
        _ => {
            let message = format!("User \"u\" cannot list {path}");
            return (
                "403 Forbidden",
                json!({"kind": "Status", "code": 403, "reason": "Forbidden", "message": message}),
            );
        }
    };
    ("200 OK", json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
}
