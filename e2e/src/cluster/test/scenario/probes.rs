//! The kubelet's probes reach captured pods: startup, readiness and liveness, by HTTP, TCP, gRPC and a program.

use crate::cluster::test::shapes::{ECHO, GRPC, HTTP, Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::lab::report::Report;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::Duration;

const PROBES: &str = "probes";
const KINDS: [&str; 4] = ["http", "tcp", "grpc", "exec"];
/// Several periods of every probe.
const WHILE: Duration = Duration::from_secs(6);

/// All kinds pass, and one that should not does not.
pub fn pass(stage: &mut Stage, report: &mut Report) {
    report.step(
        "pods of the mesh with startup, readiness and liveness probes: http, tcp, grpc, exec, on both nodes",
    );
    let made = || -> Result<()> {
        let mut objects = vec![namespace(PROBES, Some("ambient"))];
        for node in ["node1", "node2"] {
            let pods = KINDS.map(|kind| {
                probed(&Shape::server(PROBES, &format!("{kind}-{node}")), kind, 3).on(node).pod()
            });
            objects.extend(pods);
        }
        stage.apply(&objects)
    };
    let made = made();
    let made = || made.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"));
    for kind in KINDS {
        report.check(&format!("{kind} probes pass under capture, restart counts 0"), || {
            made()?;
            let names = [format!("{kind}-node1"), format!("{kind}-node2")];
            let names = [names[0].as_str(), names[1].as_str()];
            stage.until_ready(PROBES, &names)?;
            stage.until_captured(PROBES, &names, true)?;
            sleep(if kind == KINDS[0] { WHILE } else { Duration::ZERO });
            for pod in stage.until_ready(PROBES, &names)? {
                ensure!(pod.restarts == 0, "{} was restarted {} times", pod.name, pod.restarts);
            }
            Ok("startup, readiness and liveness, each second, on node1 and node2".into())
        });
    }
    report.check("control: an application that says that it is not well is not Ready", || {
        made()?;
        let pod = stage.pod(PROBES, "http-node1")?;
        let process = crate::cluster::test::processes::program(&pod, "sluice-app")?;
        process.ask("POST", HTTP, "/healthz/fail")?;
        stage.until("http-node1 to be not Ready", PATIENCE, |seen| {
            let pod = seen.pod(PROBES, "http-node1")?;
            ensure!(!pod.ready || pod.restarts > 0, "it is Ready");
            Ok(())
        })?;
        Ok("the readiness probe sees it".into())
    });
    report.check("the probed pods go", || stage.remove(&[PROBES]).map(|()| "removed".into()));
}

/// With probes of a kind, each second; the container starts anew after so many liveness probes that fail.
pub(super) fn probed(shape: &Shape, kind: &str, failures: u32) -> Shape {
    let how = match kind {
        "http" => json!({"httpGet": {"path": "/healthz", "port": HTTP}}),
        "tcp" => json!({"tcpSocket": {"port": ECHO}}),
        "grpc" => json!({"grpc": {"port": GRPC}}),
        _ => json!({"exec": {"command": ["/usr/local/bin/sluice-app", "check", "--http", HTTP.to_string()]}}),
    };
    let probe = |failures: u32| -> Value {
        let mut probe = how.clone();
        // A busy machine is no reason to fail: an exec probe starts a program through the runtime.
        for (key, value) in [("periodSeconds", 1), ("timeoutSeconds", 5), ("failureThreshold", failures)] {
            probe[key] = json!(value);
        }
        probe
    };
    let shape = shape.clone();
    ["startupProbe", "readinessProbe", "livenessProbe"].into_iter().fold(shape, |shape, name| {
        let failures = match name {
            "startupProbe" => 30,
            "livenessProbe" => failures,
            _ => 3,
        };
        shape.with_in_container(name, probe(failures))
    })
}
