//! The chart, through helm: installed, upgraded, broken, rolled back and uninstalled, while clients talk and pods come
//! and go all the time. The installer chains the plugin here, not the test.

use super::{each, until_all};
use crate::cluster::node::Node;
use crate::cluster::test::demo::{self, Counted, DEMO, OUTSIDE, PLAIN, PODS};
use crate::cluster::test::manifests::{self, AGENT};
use crate::cluster::test::sandboxes::Failures;
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::wire::Wire;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const RELEASE: &str = "sluice";
/// Namespaces of a Deployment each, whose pods are replaced while something is done: in the mesh, and not.
const CHURN: [(&str, Option<&str>); 2] = [("churn-mesh", Some("ambient")), ("churn-plain", None)];
const REPLICAS: usize = 6;

/// A directory's files: where, what, and with which mode.
type Tree = BTreeMap<String, (Vec<u8>, u32)>;

/// From nothing of Sluice but pods that are captured, to the same.
pub fn lifecycle(stage: &mut Stage, report: &mut Report) {
    let prepared = prepare(stage);
    if !report.check("the applications are in the mesh; what the manifests installed is taken away", || {
        prepared.as_ref().map(|_| PODS.join(", ")).map_err(|why| anyhow!("{why:#}"))
    }) {
        return;
    }
    let Ok(before) = prepared else { return };
    through(stage, report, "helm install", Meanwhile::Started, |stage| install(stage, &[]));
    report.check("helm install: the installer has chained the plugin on every node", || chained(stage));
    through(stage, report, "helm upgrade", Meanwhile::Captured, |stage| {
        install(stage, &["--set=logging.level=debug"])
    });
    broken_upgrade(stage, report);
    through(stage, report, "helm rollback", Meanwhile::Captured, |stage| {
        helm(stage, &["rollback", RELEASE, "1", "--wait", "--timeout=3m"], "")?;
        rolled_out(stage)
    });
    through(stage, report, "helm uninstall", Meanwhile::Started, |stage| {
        stage.taking_rights_away(|| {
            helm(stage, &["uninstall", RELEASE, "--wait", "--timeout=3m"], "")?;
            stage.until("the agents to go", PATIENCE, |seen| {
                let left = manifests::of_daemon_set(seen, AGENT).len();
                ensure!(left == 0, "{left} are left");
                Ok("the agents are gone".into())
            })
        })
    });
    report.check("helm uninstall: the runtime's directory is as it was before", || {
        for (node, before) in stage.cluster().nodes().iter().zip(&before) {
            let now = tree(&node.disk("etc/cni/net.d"))?;
            let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>().join(", ");
            ensure!(now == *before, "{} has {}, and had {}", node.name(), names(&now), names(before));
        }
        Ok("the same files, bytes and modes on every node".into())
    });
    through(stage, report, "helm install, once more", Meanwhile::Started, |stage| install(stage, &[]));
    report.check("helm install, once more: what started without it is captured", || {
        let pods = until_all(stage, CHURN[0].0, REPLICAS, Pod::hbone)?;
        Ok(format!("{} pods are enabled", pods.len()))
    });
    report.check("all of it goes", || stage.remove(&CHURN.map(|(name, _)| name)).map(|()| "removed".into()));
}

/// What pods that start meanwhile must be.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    /// There is a time without Sluice: they start.
    Started,
    /// Those of the mesh are captured from their first packet on.
    Captured,
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
        stage.apply(&[namespace(name, mode), shape.deployment(REPLICAS)])?;
    }
    for (name, _) in CHURN {
        until_all(stage, name, REPLICAS, |pod| pod.ready)?;
    }
    stage.uninstall()?;
    stage.cluster().nodes().iter().map(|node| tree(&node.disk("etc/cni/net.d"))).collect()
}

/// `helm upgrade --install` with the chart's own values, but for the image, and these.
fn install(stage: &Stage, set: &[&str]) -> Result<String> {
    let values = json!({"image": "docker.io/sluice/sluice:dev", "pullPolicy": "Never"}).to_string();
    let chart = manifests::chart()?.display().to_string();
    let args = ["upgrade", "--install", RELEASE, &chart, "--create-namespace", "--values=-"];
    helm(stage, &[&args[..], &["--wait", "--timeout=3m"], set].concat(), &values)?;
    rolled_out(stage)
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

/// What must hold whenever helm changes something.
fn through(
    stage: &Stage,
    report: &mut Report,
    what: &str,
    meanwhile: Meanwhile,
    act: impl FnOnce(&Stage) -> Result<String>,
) {
    report.step(&format!("{what}, while pods are replaced"));
    let begin = || -> Result<(Wire, Counted, [Failures; 2])> {
        let failed = [stage.failed_sandboxes(CHURN[0].0)?, stage.failed_sandboxes(CHURN[1].0)?];
        let begun = (stage.listen()?, demo::counted(stage)?, failed);
        for (name, _) in CHURN {
            let deployment = format!("deployment/{name}");
            stage.kubectl(&["rollout", "restart", &deployment, "--namespace", name])?;
        }
        Ok(begun)
    };
    let restarted = restarts(stage);
    let begun = begin();
    let done = act(stage);
    report.check(&format!("{what}: done"), || done);
    let (wire, before, failed_before) = match begun {
        Ok((wire, before, failed)) => (Ok(wire), Ok(before), failed),
        Err(why) => (Err(anyhow!("{why:#}")), Err(why), Default::default()),
    };
    report.check(&format!("{what}: pods that start meanwhile do, at the first attempt"), || {
        let mut tentative = 0;
        for ((name, mode), before) in CHURN.iter().zip(&failed_before) {
            let captured = meanwhile == Meanwhile::Captured && mode.is_some();
            let as_wanted =
                if captured { |pod: &Pod| pod.ready && pod.hbone() } else { |pod: &Pod| pod.ready };
            stage.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--namespace", name])?;
            until_all(stage, name, REPLICAS, as_wanted)?;
            tentative += stage.failed_sandboxes(name)?.since(before).must_be_the_primarys(REPLICAS)?;
        }
        Ok(format!(
            "{} pods; {tentative} times the primary CNI waited 5 s in vain for its IPv6 addresses",
            REPLICAS * CHURN.len()
        ))
    });
    report.check(&format!("{what}: new connections go through ztunnel"), || demo::until_paths(stage, true));
    report.check(&format!("{what}: open connections are kept, no new one fails"), || before?.unharmed(stage));
    report.check(&format!("{what}: no pod is restarted"), || {
        let (before, now) = (restarted?, restarts(stage)?);
        ensure!(now == before, "restart counts of {} were {before:?} and are {now:?}", PODS.join(", "));
        Ok(format!("{} containers as before", PODS.len()))
    });
    if meanwhile == Meanwhile::Captured {
        report.check(&format!("{what}: no uncaptured SYN, of new pods either"), || {
            let seen = stage.seen();
            let new = seen.labelled(CHURN[0].0, "app", CHURN[0].0);
            ensure!(new.len() == REPLICAS, "{} of {REPLICAS} new pods are there", new.len());
            stage.judge(wire)?.must_hold(&[demo::talkers(stage)?, each(new)].concat())
        });
    }
}

/// How often each application was restarted until now.
fn restarts(stage: &Stage) -> Result<Vec<u64>> {
    PODS.iter().map(|name| Ok(stage.pod(DEMO, name)?.restarts)).collect()
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

/// By which way, on each node.
fn chained(stage: &Stage) -> Result<String> {
    let of = |node: &Node| -> Result<String> {
        let path = node.path(Path::new("/run/sluice").join(sluice_shared::install::INSTALLATION_FILE))?;
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let said: serde_json::Value = serde_json::from_slice(&text).context("read install.json")?;
        ensure!(said["state"] == "chained", "{}: {said}", node.name());
        Ok(format!("{}: {}", node.name(), said["way"].as_str().unwrap_or("no way")))
    };
    let ways: Result<Vec<_>> = stage.cluster().nodes().iter().map(of).collect();
    Ok(ways?.join(", "))
}

/// All files below a directory.
fn tree(dir: &Path) -> Result<Tree> {
    let mut found = Tree::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let name = path.strip_prefix(dir)?.display().to_string();
            if meta.is_dir() {
                found.insert(format!("{name}/"), (Vec::new(), meta.permissions().mode()));
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                found.insert(name, (bytes, meta.permissions().mode()));
            }
        }
    }
    Ok(found)
}
