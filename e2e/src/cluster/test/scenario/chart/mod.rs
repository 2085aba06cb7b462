//! The chart, through helm: installed, upgraded to another image, broken, rolled back and uninstalled, while clients talk
//! and pods come and go all the time. The installer chains the plugin here, not the test, and by each of its ways: a
//! drop-in behind node1's primary, in place behind node2's, which forbids drop-ins; then as [`other_ways`] has it.

mod nodes;
mod other_ways;
mod power;
mod through;

use super::until_all;
use crate::cluster::chain::Form;
use crate::cluster::node::Node;
use crate::cluster::test::demo::{self, OUTSIDE, PLAIN, PODS};
use crate::cluster::test::manifests::{self, AGENT};
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::lab::report::Report;
use anyhow::{Result, anyhow, bail, ensure};
use nodes::{Tree, must_be_chained};
use serde_json::json;
use sluice_shared::conflist::Way;
use through::{Meanwhile, through};

const RELEASE: &str = "sluice";
/// The product with other programs, as its next version has them (`e2e/cluster/images/sluice-next.yaml`).
const NEXT: &str = "docker.io/sluice/sluice:next";
/// Namespaces of a Deployment each, whose pods are replaced while something is done: in the mesh, and not.
const CHURN: [(&str, Option<&str>); 2] = [("churn-mesh", Some("ambient")), ("churn-plain", None)];
const REPLICAS: usize = 6;

/// From nothing of Sluice but the rules of pods that are captured, to the same, twice.
pub fn lifecycle(stage: &mut Stage, report: &mut Report) {
    let prepared = prepare(stage);
    if !report.check("the applications are in the mesh; what the manifests installed is taken away", || {
        prepared.as_ref().map(|_| PODS.join(", ")).map_err(|why| anyhow!("{why:#}"))
    }) {
        return;
    }
    let Ok(before) = prepared else { return };
    let ways = ways(stage);
    through(stage, report, "helm install", Meanwhile::Started, |stage| install(stage, &[]));
    report.check(
        "helm install: the installer has chained the plugin on every node, each by its own way",
        || must_be_chained(stage, &ways),
    );
    through(stage, report, "helm upgrade", Meanwhile::Captured, |stage| {
        install(stage, &["--set=logging.level=debug", &format!("--set=image={NEXT}")])
    });
    report.check("helm upgrade: every node has the next version's plugin, in the chain as before", || {
        nodes::until_plugin(stage, true)?;
        must_be_chained(stage, &ways)
    });
    broken_upgrade(stage, report);
    through(stage, report, "helm rollback", Meanwhile::Captured, |stage| {
        helm(stage, &["rollback", RELEASE, "1", "--wait", "--timeout=3m"], "")?;
        rolled_out(stage)
    });
    report.check("helm rollback: plugin and ways are as they were", || {
        nodes::until_plugin(stage, false)?;
        must_be_chained(stage, &ways)
    });
    through(stage, report, "helm uninstall", Meanwhile::Started, uninstall);
    report.check("helm uninstall: the runtime's directory is as it was before", || {
        nodes::must_be_as(stage, &before)
    });
    // The other ways take another form of list, which an agent that writes its own does not leave.
    if !daemons_own_list(stage) {
        other_ways::once_more(stage, report);
    }
    report.check("all of it goes", || stage.remove(&CHURN.map(|(name, _)| name)).map(|()| "removed".into()));
}

/// Leaves the applications and ztunnel, and nothing of Sluice but the rules of pods; returns the nodes' directories of
/// network configuration.
fn prepare(stage: &mut Stage) -> Result<Vec<Tree>> {
    stage.install()?;
    demo::set_in_mesh(stage)?;
    let to = demo::echo(&stage.pod(OUTSIDE, PLAIN)?, true)?;
    for (name, mode) in CHURN {
        // Each has one connection: past ztunnel or through it, as Sluice is there when it starts or not.
        let shape = Shape::idle(name, name).init("first", &["once", "--to", &to, "--patience", "20"]);
        let shape = shape.spread();
        stage.apply(&[namespace(name, mode), shape.deployment(REPLICAS)])?;
    }
    for (name, _) in CHURN {
        until_all(stage, name, REPLICAS, |pod| pod.ready)?;
    }
    stage.uninstall()?;
    if !daemons_own_list(stage) {
        stage.node(2)?.write_primary(Form::Inlined)?;
    }
    nodes::directories(stage)
}

/// Whether the primary CNI's list is its daemon's, which writes it anew when somebody else has.
fn daemons_own_list(stage: &Stage) -> bool {
    stage.cluster().nodes().iter().any(Node::has_daemons_list)
}

/// The ways into the nodes' chains, from node1 on.
fn ways(stage: &Stage) -> [Way; 2] {
    [Way::DropIn, if daemons_own_list(stage) { Way::DropIn } else { Way::InPlace }]
}

/// `helm upgrade --install` with the chart's own values, but that no image is pulled, and these.
fn install(stage: &Stage, set: &[&str]) -> Result<String> {
    let values = json!({"pullPolicy": "Never"}).to_string();
    let chart = manifests::chart()?.display().to_string();
    let args = ["upgrade", "--install", RELEASE, &chart, "--create-namespace", "--values=-"];
    helm(stage, &[&args[..], &["--wait", "--timeout=3m"], set].concat(), &values)?;
    rolled_out(stage)
}

/// Returns when every agent is gone.
fn uninstall(stage: &Stage) -> Result<String> {
    stage.taking_rights_away(|| {
        helm(stage, &["uninstall", RELEASE, "--wait", "--timeout=3m"], "")?;
        stage.until("the agents to go", PATIENCE, |seen| {
            let left = manifests::of_daemon_set(seen, AGENT).len();
            ensure!(left == 0, "{left} are left");
            Ok("the agents are gone".into())
        })
    })
}

fn helm(stage: &Stage, args: &[&str], values: &str) -> Result<String> {
    let namespace = format!("--namespace={}", AGENT.0);
    stage.cluster().helm(&[args, &[namespace.as_str()]].concat(), values)
}

/// helm takes a DaemonSet for ready when all pods but those that may be unavailable are.
fn rolled_out(stage: &Stage) -> Result<String> {
    let (namespace, daemon_set) = (format!("--namespace={}", AGENT.0), format!("daemonset/{}", AGENT.1));
    stage.kubectl(&["rollout", "status", &daemon_set, &namespace, "--timeout=120s"])?;
    stage.until_installed()?;
    Ok("every pod is Ready".into())
}

/// An image that is not there: helm says so, the nodes that it did not get to go on, and pods outside the mesh start.
fn broken_upgrade(stage: &Stage, report: &mut Report) {
    report.step("helm upgrade to an image that is not there");
    let counted = demo::counted(stage);
    let said = install_broken(stage);
    report.check("a broken upgrade: helm says that it failed", || said);
    report.check("a broken upgrade: a pod outside the mesh starts on every node", || {
        let names: Vec<_> =
            stage.cluster().nodes().iter().map(|node| format!("free-{}", node.name())).collect();
        for (node, name) in stage.cluster().nodes().iter().zip(&names) {
            stage.apply(&[Shape::idle(CHURN[1].0, name).on(node.name()).pod()])?;
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        stage.until_ready(CHURN[1].0, &names)?;
        Ok(names.join(", "))
    });
    report.check("a broken upgrade: those that are captured stay so, and lose nothing", || {
        let said = demo::until_paths(stage, true)?;
        counted?.unharmed(stage)?;
        Ok(said)
    });
}

fn install_broken(stage: &Stage) -> Result<String> {
    let values = json!({"image": "docker.io/sluice/sluice:broken", "pullPolicy": "Never"}).to_string();
    let chart = manifests::chart()?.display().to_string();
    let args = ["upgrade", RELEASE, &chart, "--values=-", "--wait", "--timeout=15s"];
    match helm(stage, &args, &values) {
        Ok(said) => bail!("it says {said:?}"),
        Err(why) => Ok(format!("{why:#}").lines().last().unwrap_or_default().to_owned()),
    }
}
