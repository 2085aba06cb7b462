//! Sluice comes to a cluster whose pods run already.

use super::AGENT;
use crate::cluster::test::audit;
use crate::cluster::test::patches;
use crate::cluster::test::processes;
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Context, Result, anyhow, ensure};
use std::time::{Duration, SystemTime};

const NAMESPACE: &str = "crowd";
const NODE: &str = "node1";
const PODS: usize = 110;
/// From the agent's start until the last pod is captured, with ztunnel there.
const LIMIT: Duration = Duration::from_secs(3);
/// Requests of one agent at its start, besides watches, status patches and events.
const REQUESTS: usize = 4;

/// 110 pods of one node are labelled before anything of Sluice is there.
pub fn install(stage: &mut Stage, report: &mut Report) {
    report
        .step(&format!("{PODS} pods run on {NODE} in a labelled namespace; no agent, no plugin, no ztunnel"));
    let crowd = || -> Result<()> {
        let shape = Shape::idle(NAMESPACE, NAMESPACE).on(NODE);
        stage.apply(&[namespace(NAMESPACE, Some("ambient")), shape.deployment(PODS)])?;
        super::until_all(stage, NAMESPACE, PODS, |pod| pod.ready).map(drop)
    };
    let crowd = crowd();
    report.check("pods run without Sluice, whatever their namespace's label", || {
        crowd?;
        // The control of what is said of bursts with Sluice.
        let failed = stage.failed_sandboxes(NAMESPACE)?;
        let first = failed.0.keys().next().map(|said| format!(", such as {said}")).unwrap_or_default();
        Ok(format!("{PODS} pods of {NODE} are Ready; {} sandboxes failed on the way{first}", failed.count()))
    });
    report.step("the agent is installed as a DaemonSet, with ztunnel beside it");
    let began = SystemTime::now();
    let installed = stage.install();
    let there = report.check("the agent runs as a DaemonSet on every node, and is Ready", || {
        installed?;
        Ok(stage.cluster().nodes().iter().map(|node| node.name().to_owned()).collect::<Vec<_>>().join(", "))
    });
    if !there {
        return;
    }
    let adopted = super::until_all(stage, NAMESPACE, PODS, Pod::hbone);
    report.check("pods that ran before the agent are captured without a restart", || {
        let pods = adopted.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        let restarted = pods.iter().filter(|pod| pod.restarts > 0).count();
        ensure!(restarted == 0, "{restarted} of {PODS} were restarted");
        Ok(format!("{PODS} pods are enabled, restart counts 0"))
    });
    report.check(
        &format!(
            "{PODS} pods are adopted within {} s of the agent's start and ztunnel's connection",
            LIMIT.as_secs()
        ),
        || {
            let took = adoption(stage)?;
            ensure!(took <= LIMIT, "it took {:.2} s", took.as_secs_f32());
            Ok(format!("the last one after {:.2} s", took.as_secs_f32()))
        },
    );
    report.check(&format!("at its start an agent sends at most {REQUESTS} requests besides watches"), || {
        let requests = audit::of_agents(&stage.cluster().audit().requests()?, began..SystemTime::now())?;
        ensure!(!requests.is_empty(), "the audit log has no request of an agent");
        for (pod, requests) in &requests {
            ensure!(requests.others() <= REQUESTS, "{pod}: {requests}");
            ensure!(requests.refused.is_empty(), "{pod}: {requests}");
        }
        let said = requests.iter().map(|(pod, requests)| format!("{pod}: {requests}"));
        Ok(said.collect::<Vec<_>>().join("\n"))
    });
    report.check(
        "a status patch for each change of a pod's state: pending where it had to wait, then enabled",
        || {
            // An entry may come a moment after its answer.
            stage.until("the audit log to have them all", PATIENCE, |_| {
                let patches = patches::of(&stage.cluster().audit().requests()?)?;
                patches::must_come_in_once(&patches, NAMESPACE, PODS)
            })
        },
    );
    report.check("the agent's memory", || {
        let none = super::memory(stage, "node2")?;
        Ok(format!("{} kB resident with {PODS} pods, {none} kB with none", super::memory(stage, NODE)?))
    });
    report.check("they all go, and nothing of them is left with agent or ztunnel", || {
        stage.remove(&[NAMESPACE])?;
        super::nothing_left(stage, NAMESPACE)
    });
}

/// From the agent's start, or ztunnel's connection if that was later, until the agent said that the last pod is
/// captured.
fn adoption(stage: &Stage) -> Result<Duration> {
    let (agent, ztunnel) = (stage.agent(NODE)?, stage.ztunnel(NODE)?);
    let started = processes::program(&agent, "sluice-agent")?.started()?;
    let connected = stage.said(&ztunnel, super::ZTUNNEL)?;
    let connected = connected.iter().find(|line| line.text.contains(r#""connected""#));
    let from = started.max(connected.context("ztunnel never connected")?.at);
    let said = stage.said(&agent, AGENT)?;
    let is_capture = |text: &str| {
        let enabled = text.contains("state=enabled") || text.contains(r#""state":"enabled""#);
        enabled && text.contains(&format!("{NAMESPACE}/"))
    };
    let captured: Vec<_> = said.iter().filter(|line| is_capture(&line.text)).collect();
    ensure!(captured.len() >= PODS, "the agent's log tells of {} of {PODS} captures", captured.len());
    let last = captured.iter().map(|line| line.at).max().unwrap_or(from);
    Ok(last.duration_since(from).unwrap_or_default())
}
