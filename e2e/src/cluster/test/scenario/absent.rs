//! The agents are taken away: pods of the mesh wait, all others start.

use super::{each, of_ztunnel, told_of_end};
use crate::cluster::test::demo::{self, DEMO, OUTSIDE, PLAIN, PODS};
use crate::cluster::test::manifests::{AGENT, of_daemon_set};
use crate::cluster::test::shapes::Shape;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::lab::report::Report;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

const WAITING: &str = "waiting";
const FREE: &str = "free";
/// How long a pod outside the mesh may take to start on a busy machine.
const STARTS: Duration = Duration::from_secs(20);

/// The DaemonSet is deleted and comes back.
pub fn agent(stage: &mut Stage, report: &mut Report) {
    report.step("the DaemonSet is deleted; a pod of the mesh and one outside it are made");
    let wire = stage.listen();
    let away = || -> Result<demo::Counted> {
        demo::set_in_mesh(stage)?;
        let before = demo::counted(stage)?;
        stage.kubectl(&[
            "delete",
            "daemonset",
            "sluice-agent",
            "--namespace=sluice-system",
            "--wait=false",
        ])?;
        stage.until("the agents to go", PATIENCE, |seen| {
            let left = of_daemon_set(seen, AGENT).len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
        let targets = [stage.pod(DEMO, "server-1")?, stage.pod(OUTSIDE, PLAIN)?];
        let to = [demo::echo(&targets[0], true)?, demo::echo(&targets[1], true)?];
        let first = |name, namespace, to: &str| {
            let shape = Shape::idle(namespace, name).on("node1");
            shape.init("first", &["once", "--to", to, "--patience", "20"]).pod()
        };
        stage.apply(&[first(WAITING, DEMO, &to[0]), first(FREE, OUTSIDE, &to[1])])?;
        Ok(before)
    };
    let away = away();
    report.check("with no agent, a pod outside the mesh starts", || {
        stage.until("it to be Ready", STARTS, |seen| {
            let pod = seen.pod(OUTSIDE, FREE)?;
            ensure!(pod.ready, "it is {}", pod.phase);
            Ok("it is Ready".to_owned())
        })
    });
    report.check("with no agent, a pod of the mesh waits, and says for what", || {
        let said = stage.until("the runtime to be told that it has to wait", PATIENCE, |_| {
            let failed = stage.failed_sandboxes(DEMO)?;
            let failed = failed.0.into_keys().find(|said| said.starts_with(WAITING));
            failed.ok_or_else(|| anyhow::anyhow!("no event says so"))
        })?;
        let pod = stage.pod(DEMO, WAITING)?;
        ensure!(pod.phase == "Pending" && pod.ips.is_empty(), "it is {} with {:?}", pod.phase, pod.ips);
        ensure!(said.contains("sluice"), "{said}");
        Ok(said)
    });
    report.check("with no agent, those that are captured stay so, and lose nothing", || {
        let said = demo::until_paths(stage, true)?;
        away?.unharmed(stage)?;
        Ok(said)
    });
    report.step("the DaemonSet is back");
    let back = stage.reinstall();
    report.check("the agents are back, and the pod that waited is captured", || {
        back?;
        stage.until("it to be Ready and captured", PATIENCE * 2, |seen| {
            let pod = seen.pod(DEMO, WAITING)?;
            ensure!(pod.ready && pod.hbone(), "it is {} and {:?}", pod.phase, pod.redirection);
            Ok("it is Ready and enabled".to_owned())
        })
    });
    report.check("with no agent and after it: no uncaptured SYN", || {
        stage.until_captured(DEMO, &PODS, true)?;
        let about = [demo::talkers(stage)?, each([&stage.pod(DEMO, WAITING)?])].concat();
        stage.judge(wire)?.must_hold(&about)
    });
    report.check("both go, and neither agent nor ztunnel knows them any more", || both_go(stage));
}

/// Deletes the pods; returns when the API, the agent and, of the one that it served, ztunnel have let go of them.
fn both_go(stage: &Stage) -> Result<String> {
    let pods = [stage.pod(DEMO, WAITING)?, stage.pod(OUTSIDE, FREE)?];
    for pod in &pods {
        stage.kubectl(&["delete", "pod", "--namespace", &pod.namespace, &pod.name, "--wait=false"])?;
    }
    stage.until("both pods to go", PATIENCE, |seen| {
        let left = pods.iter().find(|pod| seen.pods.contains_key(&pod.uid));
        left.map_or(Ok(()), |pod| bail!("{} is left", pod.full_name()))
    })?;
    let node = stage.cluster().node(&pods[0].node)?;
    stage.until(&format!("the agent on {} to let go of both", node.name()), PATIENCE, |_| {
        let status = stage.status(node)?;
        let known = status.pods.iter().find(|known| pods.iter().any(|pod| known.uid.as_str() == pod.uid));
        known.map_or(Ok(()), |known| bail!("it knows {} as {}", known.name, known.state))
    })?;
    let told = told_of_end(stage, &pods[0])?;
    let other = of_ztunnel(stage, &pods[1])?;
    ensure!(other.is_empty(), "ztunnel was told of {FREE}, which is outside: {}", other[0]);
    Ok(format!("{told}; of {FREE} it was never told"))
}
