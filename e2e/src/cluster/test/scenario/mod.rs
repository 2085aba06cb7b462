//! The scenarios, in the order in which they run: each leaves the cluster as the next needs it.

mod absent;
mod admission;
mod chart;
mod cookie;
mod crowd;
mod faults;
mod fresh;
mod kinds;
mod label;
mod late;
mod lives;
mod probes;
mod reboot;
mod requests;

use super::leaks::Talker;
use super::manifests::{self, of_daemon_set};
use super::processes;
use super::stage::{CROWD, PATIENCE, Stage};
use crate::cluster::node::Node;
use crate::cluster::watch::Seen;
use crate::cluster::watch::seen::Pod;
use crate::lab::eventually;
use crate::lab::report::Report;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_shared::admin::State;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The container of ztunnel's pod.
const ZTUNNEL: &str = "istio-proxy";
/// The container of the agent's pod, and its program.
const AGENT: &str = "agent";

/// A scenario: what it is called, what it does, and whether it installs Sluice itself.
pub struct Scenario {
    /// For `--only`.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Stage, &mut Report),
    /// Whether Sluice must not be there when it begins.
    pub before_install: bool,
}

const fn scenario(name: &'static str, run: fn(&mut Stage, &mut Report)) -> Scenario {
    Scenario { name, run, before_install: false }
}

/// All of them.
pub const ALL: [Scenario; 18] = [
    Scenario { name: "late-install", run: late::install, before_install: true },
    scenario("admission", admission::policies),
    scenario("label", label::join_and_leave),
    scenario("fresh", fresh::first_packet),
    scenario("outside", kinds::outside),
    scenario("probes", probes::pass),
    scenario("cookie", cookie::pass),
    scenario("scale", crowd::scale),
    scenario("burst", crowd::burst),
    scenario("job", lives::job),
    scenario("stateful", lives::stateful),
    scenario("forced", lives::forced),
    scenario("restarts", faults::restarts),
    scenario("api-server", faults::api_server),
    scenario("absent", absent::agent),
    scenario("reboot", reboot::node),
    scenario("chart", chart::lifecycle),
    // It looks at all that was before.
    scenario("requests", requests::whole_run),
];

/// Pods that begin one connection at least.
fn each<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Talker> {
    pods.into_iter().map(|pod| Talker::new(pod, 1)).collect()
}

/// Waits until ztunnel was told that a pod is no longer its own.
///
/// # Errors
/// When it was not.
fn told_of_end(stage: &Stage, pod: &Pod) -> Result<String> {
    let begun = Instant::now();
    eventually(
        &format!("ztunnel on {} to be told of {}'s end", pod.node, pod.full_name()),
        PATIENCE,
        || {
            let events = of_ztunnel(stage, pod)?;
            let mut ends = events
                .iter()
                .filter(|event| matches!(event["event"].as_str(), Some("del" | "reconciled-away")));
            ends.next().map(drop).context("it was not").inspect_err(|_| sleep(Duration::from_millis(200)))
        },
    )?;
    Ok(format!("ztunnel was told of the end of {} after {:.1} s", pod.name, begun.elapsed().as_secs_f32()))
}

/// What ztunnel on a pod's node said of it.
fn of_ztunnel(stage: &Stage, pod: &Pod) -> Result<Vec<Value>> {
    let said = stage.said(&stage.ztunnel(&pod.node)?, ZTUNNEL)?;
    let events = said.iter().filter_map(|line| serde_json::from_str::<Value>(&line.text).ok());
    Ok(events.filter(|event| event["uid"] == pod.uid.as_str()).collect())
}

/// Waits until a Deployment's pods, `app: NAMESPACE` in the namespace of the same name, are `count`, and all as wanted.
///
/// # Errors
/// How many are.
fn until_all(stage: &Stage, namespace: &str, count: usize, as_wanted: fn(&Pod) -> bool) -> Result<Vec<Pod>> {
    stage.until(&format!("{count} pods of {namespace}"), CROWD, |seen| {
        let pods = seen.labelled(namespace, "app", namespace);
        let ready = pods.iter().filter(|pod| as_wanted(pod)).count();
        ensure!(ready == count && pods.len() == count, "{ready} of {} are as they should be", pods.len());
        Ok(pods.into_iter().cloned().collect())
    })
}

/// Waits until every pod of these namespaces that was on a node `before` its power cut runs there again; returns them.
/// Until the kubelet has looked, the API shows them as they were.
///
/// # Errors
/// Which pod does not run, or was not started again.
fn until_started_again(stage: &Stage, node: &Node, before: &Seen, namespaces: &[&str]) -> Result<Vec<Pod>> {
    let was_here = |pod: &&Pod| {
        pod.node == node.name()
            && !pod.host_network
            && !pod.deleting
            && namespaces.contains(&pod.namespace.as_str())
    };
    let were: Vec<&Pod> = before.pods.values().filter(was_here).collect();
    ensure!(!were.is_empty(), "no pod was on {}", node.name());
    stage.until(&format!("the pods of {} to be started again", node.name()), PATIENCE * 3, |seen| {
        let again = were.iter().map(|was| {
            let pod = seen.pod(&was.namespace, &was.name)?;
            ensure!(
                pod.uid == was.uid && pod.restarts > was.restarts && pod.ready,
                "{} is {}, {} restarts",
                pod.full_name(),
                pod.phase,
                pod.restarts
            );
            Ok(pod.clone())
        });
        again.collect()
    })
}

/// Waits until the agent on a node says that a pod is captured: the annotation may still be the one from before a reboot.
///
/// # Errors
/// What the agent says instead.
fn until_enabled(stage: &Stage, node: &Node, pod: &Pod) -> Result<()> {
    stage.until(&format!("{} to be captured", pod.full_name()), PATIENCE, |_| {
        let status = stage.status(node)?;
        let found = status.pods.iter().find(|found| found.uid.as_str() == pod.uid);
        let state = found.map(|found| found.state);
        ensure!(state == Some(State::Enabled), "the agent says {state:?}");
        Ok(())
    })
}

/// Has the agents replaced, one after the other, as after a change of their configuration; returns when others are Ready
/// in their places.
///
/// # Errors
/// How many are.
fn restart_agents(stage: &Stage) -> Result<()> {
    let agents = |seen: &Seen| of_daemon_set(seen, manifests::AGENT);
    let before: Vec<String> = agents(&stage.seen()).into_iter().map(|pod| pod.uid).collect();
    stage.kubectl(&["rollout", "restart", "daemonset/sluice-agent", "--namespace=sluice-system"])?;
    stage.until("other agents to be Ready", PATIENCE * 2, |seen| {
        let now = agents(seen);
        let new = now.iter().filter(|pod| pod.ready && !before.contains(&pod.uid)).count();
        ensure!(new == before.len() && now.len() == new, "{new} of {} are", before.len());
        Ok(())
    })
}

/// The resident memory of the agent on a node, in kB.
///
/// # Errors
/// When it does not run.
fn memory(stage: &Stage, node: &str) -> Result<u64> {
    processes::program(&stage.agent(node)?, "sluice-agent")?.resident()
}

/// Waits until no agent knows a pod of a namespace any more.
///
/// # Errors
/// Which it still knows.
fn nothing_left(stage: &Stage, namespace: &str) -> Result<String> {
    for node in stage.cluster().nodes() {
        stage.until(&format!("the agent on {} to let them go", node.name()), PATIENCE, |_| {
            let status = stage.status(node)?;
            let left: Vec<_> = status.pods.iter().filter(|pod| pod.namespace == namespace).collect();
            ensure!(left.is_empty(), "{} are left: {} is {}", left.len(), left[0].name, left[0].state);
            Ok(())
        })?;
    }
    Ok("no agent knows them any more".into())
}

/// Fails if a pod of these was restarted.
///
/// # Errors
/// Which, and how often.
fn must_not_restart(stage: &Stage, namespace: &str, names: &[&str]) -> Result<String> {
    let seen = stage.seen();
    for name in names {
        let pod = seen.pod(namespace, name)?;
        ensure!(pod.restarts == 0, "{} was restarted {} times", pod.full_name(), pod.restarts);
    }
    Ok(format!("{} containers, restart counts 0", names.len()))
}
