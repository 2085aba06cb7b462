//! Many pods at once.

use super::{each, nothing_left, until_all};
use crate::cluster::test::audit::{self, Requests};
use crate::cluster::test::demo::{self, DEMO};
use crate::cluster::test::families::Ipv4Only;
use crate::cluster::test::shapes::{Shape, TOTALS, namespace};
use crate::cluster::test::stage::Stage;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use std::time::{Instant, SystemTime};

const SCALE: &str = "scale";
const BURST: &str = "burst";
const NODE: &str = "node2";

/// A Deployment is scaled from 1 to 60 on one node.
pub fn scale(stage: &mut Stage, report: &mut Report) {
    report.step(&format!("a Deployment of the mesh is scaled to 60 pods on {NODE}"));
    let wire = stage.listen();
    let made = || -> Result<(SystemTime, Vec<Pod>)> {
        stage.apply(&[namespace(SCALE, Some("ambient")), talkative(stage, SCALE)?.on(NODE).deployment(1)])?;
        until_all(stage, SCALE, 1, captured)?;
        let began = SystemTime::now();
        stage.kubectl(&["scale", "deployment", SCALE, "--namespace", SCALE, "--replicas=60"])?;
        Ok((began, until_all(stage, SCALE, 60, captured)?))
    };
    let made = made();
    let made = || made.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check(
        "a Deployment scaled to 60 pods: all captured, none restarted, no sandbox failed for us",
        || without_failures(stage, SCALE, &made()?.1),
    );
    report.check("60 new pods: none of their SYNs uncaptured", || {
        stage.judge(wire)?.must_hold(&each(&made()?.1))
    });
    report.check("in steady state, ADD costs the API server no request", || {
        let requests = requests(stage, made()?.0)?;
        ensure!(requests.others() + requests.events == 0, "{requests}");
        Ok(requests.to_string())
    });
    report.check("one status patch for each new pod: its state changed once", || {
        let requests = requests(stage, made()?.0)?;
        let patches = requests.patches_in(SCALE);
        ensure!(patches.len() >= 59, "only {} pods were patched", patches.len());
        for (pod, patches) in &patches {
            ensure!(*patches == 1, "{pod}: {patches} patches");
        }
        Ok(format!("{} pods, a patch each", patches.len()))
    });
    report.check("the agent's memory with 60 pods", || {
        Ok(format!("{} kB resident", super::memory(stage, NODE)?))
    });
    report.check("the 60 pods go, and nothing of them is left with agent or ztunnel", || {
        stage.remove(&[SCALE])?;
        nothing_left(stage, SCALE)
    });
}

/// 100 pods at once, on all nodes. Without IPv6, where the primary CNI lets us: then no sandbox may fail for whatever
/// reason.
pub fn burst(stage: &mut Stage, report: &mut Report) {
    report.step("100 pods of the mesh at once, on all nodes");
    let ipv4_only = Ipv4Only::set(stage);
    let wire = stage.listen();
    let begun = Instant::now();
    let made = || -> Result<Vec<Pod>> {
        ipv4_only.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        stage.apply(&[namespace(BURST, Some("ambient")), talkative(stage, BURST)?.deployment(100)])?;
        until_all(stage, BURST, 100, captured)
    };
    let made = made();
    let made = || made.as_ref().map_err(|why| anyhow!("{why:#}"));
    let took = begun.elapsed();
    report.check("a burst of 100 pods: all captured, none restarted, no sandbox failed", || {
        let said = without_failures(stage, BURST, made()?)?;
        let failed = stage.failed_sandboxes(BURST)?;
        let excused = matches!(ipv4_only, Ok(None));
        ensure!(
            excused || failed.count() == 0,
            "{} sandboxes failed: {:?}",
            failed.count(),
            failed.0.keys().next()
        );
        Ok(format!("{said}, after {:.0} s", took.as_secs_f32()))
    });
    drop(ipv4_only);
    report.check("a burst of 100 pods: none of their SYNs uncaptured", || {
        stage.judge(wire)?.must_hold(&each(made()?))
    });
    report.check("the 100 pods go, and nothing of them is left with agent or ztunnel", || {
        stage.remove(&[BURST])?;
        nothing_left(stage, BURST)
    });
}

/// One connection that stays, made as soon as the pod runs; the pod is Ready once it is open. Asked over HTTP: a program
/// in each of a hundred pods each second would be a load of its own.
fn talkative(stage: &Stage, name: &str) -> Result<Shape> {
    demo::set_in_mesh(stage)?;
    let to = demo::echo(&stage.pod(DEMO, "server-1")?, true)?;
    let args = ["client", "--live", "1", "--rate", "0", "--ping", "2", "--patience", "60", "--to", &to];
    let probe =
        json!({"httpGet": {"path": "/healthz", "port": TOTALS}, "periodSeconds": 2, "timeoutSeconds": 5});
    Ok(Shape::of(name, name, &args).with_in_container("readinessProbe", probe))
}

fn captured(pod: &Pod) -> bool {
    pod.ready && pod.hbone()
}

fn without_failures(stage: &Stage, namespace: &str, pods: &[Pod]) -> Result<String> {
    let tentative = stage.failed_sandboxes(namespace)?.must_be_the_primarys(pods.len())?;
    let restarted = pods.iter().filter(|pod| pod.restarts > 0).count();
    ensure!(restarted == 0, "{restarted} of {} were restarted", pods.len());
    Ok(format!(
        "{} pods Ready and enabled; {tentative} times the primary CNI waited 5 s in vain for its IPv6 addresses",
        pods.len()
    ))
}

fn requests(stage: &Stage, since: SystemTime) -> Result<Requests> {
    let requests = audit::of_agents(&stage.cluster().audit().requests()?, since..SystemTime::now())?;
    let agent = stage.agent(NODE)?.name;
    requests.get(&agent).cloned().ok_or_else(|| anyhow!("the audit log has nothing of {agent}"))
}
