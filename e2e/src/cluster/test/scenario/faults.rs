//! Parts of the node and of the control plane that end and come back, while pods of the mesh talk.

use super::{each, must_not_restart, restart_agents};
use crate::cluster::test::demo::{self, Counted, DEMO, PODS};
use crate::cluster::test::processes;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::wire::Wire;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Result, anyhow, ensure};
use std::thread::sleep;
use std::time::Duration;

/// Longer than the API server's clients wait before they give up, and than an ADD may take.
const API_OUTAGE: Duration = Duration::from_secs(60);
const CRASHER: &str = "crasher";

/// The agents, then each node's kubelet, then each node's containerd.
pub fn restarts(stage: &mut Stage, report: &mut Report) {
    let prepared = demo::set_in_mesh(stage);
    report.check("the applications are in the mesh", || prepared.map(|()| PODS.join(", ")));
    through(stage, report, "a restart of the DaemonSet", |stage| {
        restart_agents(stage)?;
        Ok(("two new agents are Ready".into(), Vec::new()))
    });
    through(stage, report, "a kubelet's restart", |stage| {
        for index in [1, 2] {
            stage.node(index)?.kill_kubelet()?;
            sleep(Duration::from_secs(1));
            stage.node(index)?.start_kubelet()?;
        }
        fresh_pod(stage, "after-kubelet")
    });
    through(stage, report, "a restart of containerd", |stage| {
        for index in [1, 2] {
            stage.node(index)?.kill_containerd()?;
            sleep(Duration::from_secs(1));
            stage.node(index)?.start_containerd()?;
        }
        fresh_pod(stage, "after-containerd")
    });
}

/// The API server is away for a minute; a container ends and is started again meanwhile.
pub fn api_server(stage: &mut Stage, report: &mut Report) {
    let prepared = || -> Result<()> {
        demo::set_in_mesh(stage)?;
        let to = demo::echo(&stage.pod(DEMO, "server-2")?, true)?;
        stage.apply(&[demo::client(DEMO, CRASHER, &[to]).on("node1").pod()])?;
        stage.until_ready(DEMO, &[CRASHER])?;
        stage.until_captured(DEMO, &[CRASHER], true).map(drop)
    };
    let prepared = prepared();
    report.check("the applications are in the mesh, and one more that will crash", || {
        prepared.map(|()| CRASHER.into())
    });
    through(stage, report, "an API server that is away for 60 s", |stage| {
        stage.cluster().stop_apiserver()?;
        let crashed = crash(stage);
        sleep(API_OUTAGE);
        let works = crashed.and_then(|pod| Ok((crasher_works(&pod)?, Vec::new())));
        stage.cluster().start_apiserver()?;
        works
    });
    report.check("after its return everything converges: a new pod of the mesh is captured", || {
        stage.until("the crash to be told", PATIENCE, |seen| {
            let pod = seen.pod(DEMO, CRASHER)?;
            ensure!(pod.restarts == 1 && pod.ready, "{} restarts, ready: {}", pod.restarts, pod.ready);
            Ok(())
        })?;
        stage.until_captured(DEMO, &PODS, true)?;
        fresh_pod(stage, "after-api-server").map(|(said, _)| said)
    });
    report.check("the one that crashed goes", || {
        stage
            .kubectl(&["delete", "pod", "--namespace", DEMO, CRASHER, "--wait=false"])
            .map(|_| "removed".into())
    });
}

/// Ends the application in its pod, as a crash does.
fn crash(stage: &Stage) -> Result<Pod> {
    let pod = stage.pod(DEMO, CRASHER)?;
    processes::program(&pod, "sluice-app")?.kill()?;
    Ok(pod)
}

fn crasher_works(pod: &Pod) -> Result<String> {
    let before = processes::totals(pod)?.new;
    sleep(Duration::from_secs(2));
    let now = processes::totals(pod)?.new;
    ensure!(now.direct == 0 && now.failed == 0, "after its restart: {now:?}");
    ensure!(now.proxied > before.proxied, "after its restart it makes no connections");
    Ok(format!(
        "a container that crashed meanwhile runs again, with {} connections through ztunnel",
        now.proxied
    ))
}

/// What must hold whenever something ends and comes back. `fault` says what was seen, and which pods of the mesh began
/// anew after it, and talked.
fn through(
    stage: &Stage,
    report: &mut Report,
    what: &str,
    fault: impl FnOnce(&Stage) -> Result<(String, Vec<Pod>)>,
) {
    report.step(what);
    let begin = || -> Result<(Wire, Counted)> { Ok((stage.listen()?, demo::counted(stage)?)) };
    let begun = begin();
    let done = fault(stage);
    let done = || done.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check(&format!("{what}: all of it comes back"), || Ok(done()?.0.clone()));
    let (wire, before) = match begun {
        Ok((wire, before)) => (Ok(wire), Ok(before)),
        Err(why) => (Err(anyhow!("{why:#}")), Err(why)),
    };
    report.check(&format!("{what}: new connections go through ztunnel"), || demo::until_paths(stage, true));
    report.check(&format!("{what}: open connections are kept, no new one fails"), || before?.unharmed(stage));
    report.check(&format!("{what}: no pod is restarted"), || must_not_restart(stage, DEMO, &PODS));
    report.check(&format!("{what}: no uncaptured SYN"), || {
        let about = [demo::talkers(stage)?, each(&done()?.1)].concat();
        stage.judge(wire)?.must_hold(&about)
    });
}

/// A new client of the mesh on each node comes up and is captured, and goes again.
fn fresh_pod(stage: &Stage, name: &str) -> Result<(String, Vec<Pod>)> {
    let to = demo::echo(&stage.pod(DEMO, "server-1")?, true)?;
    for (index, node) in ["node1", "node2"].iter().enumerate() {
        let shape = demo::client(DEMO, &format!("{name}-{}", index + 1), std::slice::from_ref(&to));
        stage.apply(&[shape.on(node).pod()])?;
    }
    let names = [format!("{name}-1"), format!("{name}-2")];
    let names = [names[0].as_str(), names[1].as_str()];
    // A scheduler that has lost the API server lists pods anew after up to a minute and a half of its own back-off.
    stage.until("the scheduler to find nodes for them", PATIENCE * 3, |seen| {
        let waiting = names.iter().filter(|name| seen.pod(DEMO, name).is_ok_and(|pod| !pod.node.is_empty()));
        ensure!(waiting.count() == names.len(), "it has not for all of {}", names.join(", "));
        Ok(())
    })?;
    stage.until_ready(DEMO, &names)?;
    let pods = stage.until_captured(DEMO, &names, true)?;
    let clients = names.map(|name| (DEMO, name));
    let (direct, proxied) = demo::paths(stage, &clients)?;
    ensure!(direct == 0 && proxied > 0, "{direct} of its connections are direct, {proxied} proxied");
    stage.kubectl(&["delete", "pod", "--namespace", DEMO, names[0], names[1], "--wait=false"])?;
    Ok((format!("a new pod on each node has {proxied} connections through ztunnel"), pods))
}
