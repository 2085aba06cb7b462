//! Sluice comes to a cluster whose pods run already.

use super::{AGENT, each};
use crate::cluster::test::demo::{self, OUTSIDE, PLAIN};
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::{audit, patches, processes};
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Context, Result, anyhow, ensure};
use std::time::{Duration, SystemTime};

const NAMESPACE: &str = "crowd";
const NODE: &str = "node1";
const PODS: usize = 110;
/// From the agent's start until the last pod is captured, with ztunnel there.
const LIMIT: Duration = Duration::from_secs(3);
/// How many of them are made to connect.
const ASKED: usize = 5;
/// What the agent says when it has found a pod's namespace, and whose word it had.
const FOUND: &str = "found the network namespace of a running pod";
const RUNTIME: &str = "the runtime";
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
            let Adoption { took, ztunnel_after, found_by_runtime } = adoption(stage)?;
            let (took_s, after) = (took.as_secs_f32(), ztunnel_after.as_secs_f32());
            ensure!(took <= LIMIT, "it took {took_s:.2} s; ztunnel came {after:.2} s after the agent");
            ensure!(found_by_runtime >= PODS, "the runtime named the namespaces of {found_by_runtime} only");
            Ok(format!(
                "the last one after {took_s:.2} s; ztunnel came {after:.2} s after the agent; all by the runtime's word"
            ))
        },
    );
    let wire = stage.listen();
    report.check("their connections go through ztunnel from then on", || {
        let adopted = adopted.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        demo::set(stage)?;
        let to = demo::echo(&stage.pod(OUTSIDE, PLAIN)?, true)?;
        let some: Vec<_> = adopted.iter().step_by(PODS / ASKED).collect();
        for pod in &some {
            let program = ["/usr/local/bin/sluice-app", "once", "--to", &to, "--expect", "proxied"];
            stage.kubectl(&[&["exec", "--namespace", NAMESPACE, &pod.name, "--"][..], &program].concat())?;
        }
        stage.judge(wire)?.must_hold(&each(some.iter().copied()))
    });
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

/// How the crowd was adopted.
struct Adoption {
    /// From the agent's start, or ztunnel's connection if that was later, until the agent said that the last pod is
    /// captured: how soon a ztunnel comes that waited for an agent is up to its own back-off.
    took: Duration,
    /// From the agent's start until ztunnel's connection.
    ztunnel_after: Duration,
    /// How many namespaces were found by the runtime's word, the strongest there is.
    found_by_runtime: usize,
}

fn adoption(stage: &Stage) -> Result<Adoption> {
    let (agent, ztunnel) = (stage.agent(NODE)?, stage.ztunnel(NODE)?);
    let started = processes::program(&agent, "sluice-agent")?.started()?;
    let connected = stage.said(&ztunnel, super::ZTUNNEL)?;
    let connected = connected.iter().find(|line| line.text.contains(r#""connected""#));
    let connected = connected.context("ztunnel never connected")?.at;
    let from = started.max(connected);
    let said = stage.said(&agent, AGENT)?;
    let of_crowd = said.iter().filter(|line| line.text.contains(&format!("{NAMESPACE}/")));
    let (mut captured, mut found_by_runtime) = (Vec::new(), 0);
    for line in of_crowd {
        let says = |key: &str, value: &str| {
            line.text.contains(&format!("{key}={value}"))
                || line.text.contains(&format!(r#""{key}":"{value}"#))
        };
        if says("state", "enabled") {
            captured.push(line.at);
        }
        found_by_runtime += usize::from(line.text.contains(FOUND) && says("way", RUNTIME));
    }
    ensure!(captured.len() >= PODS, "the agent's log tells of {} of {PODS} captures", captured.len());
    let last = captured.into_iter().max().unwrap_or(from);
    Ok(Adoption {
        took: last.duration_since(from).unwrap_or_default(),
        ztunnel_after: connected.duration_since(started).unwrap_or_default(),
        found_by_runtime,
    })
}
