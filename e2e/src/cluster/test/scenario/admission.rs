//! The admission policies of `install/manifests/admission`: what the agent's own rights do not forbid, they do. Asked
//! with a token of the agent's service account, by somebody who has taken node1 over. They stay in force, so that
//! whatever runs after this runs under them.

use crate::cluster::address::{API_PORT, CONTROL_PLANE_V4};
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::{audit, manifests};
use crate::lab::eventually;
use crate::lab::report::Report;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_shared::contract::ANNOTATION_REDIRECTION;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// The pod whose token is used.
const IMPOSTOR: &str = "impostor";
const SYSTEM: &str = manifests::AGENT.0;
const TIED: &str = "tied";
/// On node1, as the token's pod is, and on node2.
const HERE: &str = "here";
const THERE: &str = "there";

/// A write, and whether it is let through.
struct Write {
    what: &'static str,
    request: Request,
    allowed: bool,
}

enum Request {
    /// A merge patch of a pod's status.
    Patch(&'static str, Value),
    /// An Event as the agent on node1 makes it, with this changed.
    Event(Value),
}

fn writes() -> Vec<Write> {
    let annotations = |annotations: Value| json!({"metadata": {"annotations": annotations}});
    let redirection = |value: &str| annotations(json!({ANNOTATION_REDIRECTION: value}));
    let yes = |what, request| Write { what, request, allowed: true };
    let no = |what, request| Write { what, request, allowed: false };
    use Request::{Event, Patch};
    vec![
        yes("the annotation of a pod of its own node", Patch(HERE, redirection("pending"))),
        yes("its removal", Patch(HERE, annotations(json!({ANNOTATION_REDIRECTION: null})))),
        no("the annotation of a pod of another node", Patch(THERE, redirection("enabled"))),
        no("another value", Patch(HERE, redirection("yes"))),
        no("another annotation", Patch(HERE, annotations(json!({"other": "x"})))),
        no("the removal of another annotation", Patch(HERE, annotations(json!({"keep": null})))),
        no("a label", Patch(HERE, json!({"metadata": {"labels": {"other": "x"}}}))),
        no("a finalizer", Patch(HERE, json!({"metadata": {"finalizers": ["example.org/x"]}}))),
        no("the phase", Patch(HERE, json!({"status": {"phase": "Failed"}}))),
        yes("an Event of its own node", Event(json!({}))),
        no("an Event of another node", Event(json!({"reportingInstance": "node2"}))),
        no("an Event whose source is another node", Event(json!({"source": {"host": "node2"}}))),
        no("an Event of the kubelet's", Event(kubelets())),
        no("an Event about a Secret", Event(json!({"involvedObject": {"kind": "Secret"}}))),
        no(
            "an Event about a container",
            Event(json!({"involvedObject": {"fieldPath": "spec.containers{app}"}})),
        ),
        no("an Event for a reason that is not the agent's", Event(json!({"reason": "Killing"}))),
        // A policy sees what is written, and not the pod that it is about (docs/install.md).
        yes(
            "an Event about a pod of another node, which says that it comes from this one,",
            Event(json!({"involvedObject": {"name": THERE}})),
        ),
    ]
}

fn kubelets() -> Value {
    json!({"reportingComponent": "kubelet", "source": {"component": "kubelet"}})
}

/// Tries each write.
pub fn policies(stage: &mut Stage, report: &mut Report) {
    report.step("the agent's writes, tied to its own node by the admission policies");
    let token = prepare(stage);
    report.check("the policies are in force", || {
        let token = token.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"))?;
        let foreign = Request::Event(kubelets());
        eventually("the API server to follow the policies", PATIENCE, || {
            let code = send(stage, token, &foreign)?;
            let refused = || {
                ensure!(code == 403, "an Event of the kubelet's is answered with {code}");
                Ok(())
            };
            refused().inspect_err(|_| sleep(Duration::from_millis(200)))
        })?;
        Ok("an Event of the kubelet's is refused".into())
    });
    let Ok(token) = token else { return };
    for Write { what, request, allowed } in writes() {
        let verdict = if allowed { "is let through" } else { "is refused" };
        report.check(&format!("{what} {verdict}"), || {
            let code = send(stage, &token, &request)?;
            ensure!(if allowed { code < 300 } else { code == 403 }, "it is answered with {code}");
            Ok(format!("{code}"))
        });
    }
    report.check("a token that names no node writes nothing", || {
        let token = stage.kubectl(&["create", "token", manifests::AGENT.1, "--namespace", SYSTEM])?;
        let request =
            Request::Patch(HERE, json!({"metadata": {"annotations": {ANNOTATION_REDIRECTION: "pending"}}}));
        let code = send(stage, token.trim(), &request)?;
        ensure!(code == 403, "it is answered with {code}");
        Ok(format!("{code}"))
    });
    report.check("what the tests made for it is gone", || {
        stage.kubectl(&["delete", "pod", IMPOSTOR, "--namespace", SYSTEM])?;
        stage.remove(&[TIED]).map(|()| "pods and namespace deleted".into())
    });
}

/// Applies the policies and makes the pods; returns the token of the one on node1.
fn prepare(stage: &Stage) -> Result<String> {
    for manifest in manifests::admission()? {
        stage.cluster().apply(&manifest)?;
    }
    let idle = |namespace: &str, name: &str, node: &str| Shape::idle(namespace, name).on(node);
    let mut here = idle(TIED, HERE, "node1").pod();
    here["metadata"]["annotations"] = json!({"keep": "this"});
    let impostor = idle(SYSTEM, IMPOSTOR, "node1").with("serviceAccountName", json!(manifests::AGENT.1));
    stage.apply(&[namespace(TIED, None), here, idle(TIED, THERE, "node2").pod(), impostor.pod()])?;
    stage.until_ready(TIED, &[HERE, THERE])?;
    stage.until_ready(SYSTEM, &[IMPOSTOR])?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", IMPOSTOR];
    let token = stage
        .kubectl(&[&["create", "token", manifests::AGENT.1, "--namespace", SYSTEM], &bound[..]].concat());
    Ok(token?.trim().to_owned())
}

/// Sends one request with a token, and nothing before it, as kubectl would; returns the HTTP status.
fn send(stage: &Stage, token: &str, request: &Request) -> Result<u16> {
    let (method, path, kind, body) = match request {
        Request::Patch(pod, patch) => {
            ("PATCH", format!("pods/{pod}/status"), "merge-patch+json", patch.clone())
        }
        Request::Event(changes) => {
            let mut object = json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "tied-", "namespace": TIED},
                "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": TIED, "name": HERE},
                "reason": "Captured", "message": "by a test", "type": "Normal",
                "reportingComponent": "sluice-agent", "reportingInstance": "node1",
                "source": {"component": "sluice-agent", "host": "node1"},
            });
            merge(&mut object, changes);
            ("POST", "events".to_owned(), "json", object)
        }
    };
    let mut curl = Command::new("curl");
    curl.args(["--user-agent", audit::TESTS]);
    curl.args(["--silent", "--show-error", "--max-time", "20", "--output", "/dev/null"]);
    curl.args(["--write-out", "%{http_code}", "--data", "@-", "--request", method]);
    curl.arg("--cacert").arg(stage.cluster().dir().join("pki/ca.crt"));
    curl.args(["--header", &format!("content-type: application/{kind}")]);
    curl.args(["--header", &format!("authorization: Bearer {token}")]);
    curl.arg(format!("https://{CONTROL_PLANE_V4}:{API_PORT}/api/v1/namespaces/{TIED}/{path}"));
    let output = stage.cluster().fabric().output(&mut curl, body.to_string().as_bytes())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl: {}", said.trim());
    String::from_utf8_lossy(&output.stdout).parse().context("curl prints no HTTP status")
}

/// Changes an object by what a patch has (RFC 7386), which takes nothing away here.
fn merge(object: &mut Value, changes: &Value) {
    match changes {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| merge(&mut object[key], value)),
        other => *object = other.clone(),
    }
}
