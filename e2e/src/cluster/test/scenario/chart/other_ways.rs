//! The same chart where it gets into the chain otherwise: behind the configuration of a single plugin, by the value that
//! asks for a list of our own; under its own seccomp profile; on a node that leaves the selector and comes back with a
//! taint.

use super::nodes::{self, Tree, must_be_chained};
use super::through::{Meanwhile, through};
use super::{CHURN, REPLICAS, install, power, rolled_out, uninstall};
use crate::cluster::chain::Form;
use crate::cluster::node::Node;
use crate::cluster::test::demo;
use crate::cluster::test::manifests::{self, AGENT};
use crate::cluster::test::scenario::{each, until_all};
use crate::cluster::test::shapes::Shape;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use crate::lab::{eventually, write_whole};
use anyhow::{Context, Result, anyhow, ensure};
use sluice_shared::conflist::Way;
use std::thread::sleep;
use std::time::Duration;

/// The node that leaves, as [`Stage::node`] counts.
pub(super) const LEAVES: usize = 2;
/// The label by which the DaemonSet selects its nodes here, with its value.
const SELECTED: &str = "sluice-node=yes";
/// The taint that nodes of Istio's users register with.
const TAINT: &str = "cni.istio.io/not-ready";
/// Where the kubelet looks for the chart's seccomp profile, by the chart's own default.
const PROFILE: &str = "var/lib/kubelet/seccomp/sluice/seccomp.json";

/// From nothing of Sluice on the nodes, to the same.
pub fn once_more(stage: &Stage, report: &mut Report) {
    let prepared = prepare(stage);
    if !report.check("node2 has a primary of a single plugin now; every node has the seccomp profile", || {
        prepared.as_ref().map(|_| "written".into()).map_err(|why| anyhow!("{why:#}"))
    }) {
        return;
    }
    let Ok(before) = prepared else { return };
    through(stage, report, "helm install, once more", Meanwhile::Started, |stage| upgrade(stage, &[]));
    report.check("helm install, once more: a list of our own behind the single plugin", || {
        must_be_chained(stage, &[Way::DropIn, Way::Owned])
    });
    report.check("helm install, once more: what started without it is captured", || all_captured(stage));
    // What goes, goes before what comes: for a moment there is no way (decisions/0009-install.md).
    through(stage, report, "helm upgrade to lists of our own", Meanwhile::Started, |stage| {
        upgrade(stage, &["--set=install.way=owned", "--set=install.rebootGraceSeconds=0"])
    });
    report.check("helm upgrade to lists of our own: all pods are captured, new ones too", || {
        all_captured(stage)?;
        must_be_chained(stage, &[Way::Owned, Way::Owned])
    });
    power::primary_is_gone(stage, report);
    through(stage, report, "helm upgrade, of lists of our own", Meanwhile::Captured, |stage| {
        // Longer than any machine that runs this is up: its clock is not set back by a power cut of a node.
        upgrade(stage, &["--set=install.way=owned", "--set=install.rebootGraceSeconds=100000000"])
    });
    power::primary_has_changed(stage, report);
    power::primary_comes_later(stage, report);
    leave(stage, report, &before);
    come_back(stage, report);
    through(stage, report, "helm uninstall, of lists of our own", Meanwhile::Started, uninstall);
    report.check("helm uninstall, of lists of our own: the runtime's directory is as it was before", || {
        nodes::must_be_as(stage, &before)
    });
}

/// Returns the nodes' directories of network configuration.
fn prepare(stage: &Stage) -> Result<Vec<Tree>> {
    stage.node(LEAVES)?.write_primary(Form::Single)?;
    let profile = manifests::chart()?.join("files/seccomp.json");
    let profile = std::fs::read_to_string(&profile).with_context(|| format!("read {}", profile.display()))?;
    for node in stage.cluster().nodes() {
        let path = node.disk(PROFILE);
        std::fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        write_whole(&path, &profile)?;
        stage.kubectl(&["label", "node", node.name(), SELECTED])?;
    }
    nodes::directories(stage)
}

/// With the chart's own seccomp profile, on nodes with the label, from which the taint is taken away.
fn upgrade(stage: &Stage, set: &[&str]) -> Result<String> {
    let selector = format!("--set-string=nodeSelector.{SELECTED}");
    let taint = format!("--set=taint.keys[0]={}", TAINT.replace('.', "\\."));
    install(stage, &[&["--set=seccomp.type=Localhost", &selector, &taint], set].concat())
}

fn all_captured(stage: &Stage) -> Result<String> {
    let pods = until_all(stage, CHURN[0].0, REPLICAS, Pod::hbone)?;
    Ok(format!("{} pods are enabled", pods.len()))
}

/// A pod of each kind on the node.
pub(super) fn start_on(stage: &Stage, node: &Node, name: &str) -> Result<Vec<Pod>> {
    let mut started = Vec::new();
    for (namespace, _) in CHURN {
        stage.apply(&[Shape::idle(namespace, name).on(node.name()).pod()])?;
        started.extend(stage.until_ready(namespace, &[name])?);
    }
    Ok(started)
}

fn leave(stage: &Stage, report: &mut Report, before: &[Tree]) {
    report.step("node2 leaves the DaemonSet's selector");
    let counted = demo::counted(stage);
    report.check("a node leaves: its agent goes, and the runtime's directory is as it was before", || {
        let node = stage.node(LEAVES)?;
        let (label, _) = SELECTED.split_once('=').context("a label without a value")?;
        stage.kubectl(&["label", "node", node.name(), &format!("{label}-")])?;
        stage.until("the agent to go", PATIENCE, |seen| {
            let left = manifests::of_daemon_set(seen, AGENT);
            ensure!(left.iter().all(|pod| pod.node != node.name()), "it is still there");
            Ok(())
        })?;
        nodes::must_be(node, &before[LEAVES - 1])?;
        Ok(format!("the same files, bytes and modes on {}", node.name()))
    });
    report.check("a node leaves: the others stay chained", || must_be_chained(stage, &[Way::Owned]));
    report.check("a node leaves: pods start there, of the mesh and others", || {
        let pods = start_on(stage, stage.node(LEAVES)?, "left")?;
        Ok(format!("{} pods are Ready", pods.len()))
    });
    report.check("a node leaves: open connections are kept, no new one fails", || counted?.unharmed(stage));
}

fn come_back(stage: &Stage, report: &mut Report) {
    report.step("node2 comes back, with a taint");
    let wire = stage.listen();
    report.check("a node comes back: a pod of the mesh waits for the taint to go", || {
        let node = stage.node(LEAVES)?;
        stage.kubectl(&["taint", "node", node.name(), &format!("{TAINT}=:NoSchedule")])?;
        let to = demo::echo(&stage.pod(demo::OUTSIDE, demo::PLAIN)?, true)?;
        let waits = Shape::idle(CHURN[0].0, "waits").on(node.name());
        stage.apply(&[waits.init("first", &["once", "--to", &to, "--patience", "20"]).pod()])?;
        let reason = "-o=jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].reason}";
        let args = ["get", "pod", "waits", "--namespace", CHURN[0].0, reason];
        eventually("the scheduler to refuse it", PATIENCE, || {
            let said = stage.kubectl(&args)?;
            // kubectl need not be asked a hundred times a second.
            sleep(Duration::from_millis(200));
            ensure!(said == "Unschedulable", "it says {said:?}");
            Ok(said)
        })
    });
    report.check("a node comes back: its agent takes the taint away, once it is in the chain", || {
        let node = stage.node(LEAVES)?;
        stage.kubectl(&["label", "node", node.name(), SELECTED])?;
        rolled_out(stage)?;
        let taints = ["get", "node", node.name(), "-o=jsonpath={.spec.taints[*].key}"];
        eventually("the taint to go", PATIENCE, || {
            let left = stage.kubectl(&taints)?;
            sleep(Duration::from_millis(200));
            let gone = !left.split_whitespace().any(|key| key == TAINT);
            ensure!(gone, "there are {left}");
            Ok(())
        })?;
        must_be_chained(stage, &[Way::Owned, Way::Owned])
    });
    report.check("a node comes back: the pod that waited starts, captured from its first packet on", || {
        stage.until_captured(CHURN[0].0, &["waits"], true)?;
        let pods = stage.until_ready(CHURN[0].0, &["waits"])?;
        stage.judge(wire)?.must_hold(&each(&pods))
    });
    report.check("a node comes back: those that had started without it are captured", || {
        stage.until_captured(CHURN[0].0, &["left"], true).map(|_| "enabled".into())
    });
}
