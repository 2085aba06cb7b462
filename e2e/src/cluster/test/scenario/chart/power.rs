//! A list of our own over a power cut of its node, where the primary's configuration is a `.conf` and the list sorts
//! before it: what the runtime starts pods by, until something of Sluice runs there again, is that list alone.
//!
//! Three boots: the primary's file is gone for good, and no grace is given; it has changed; it is written late, and until
//! then the list stays, so that pods are rather held back than outside the mesh (decisions/0009-install.md).

use super::nodes::{installation, must_be_chained};
use super::other_ways::{LEAVES, start_on};
use super::{CHURN, rolled_out};
use crate::cluster::chain::Form;
use crate::cluster::node::Node;
use crate::cluster::test::demo::{self, DEMO, OUTSIDE};
use crate::cluster::test::leaks::Talker;
use crate::cluster::test::processes;
use crate::cluster::test::scenario::{each, until_enabled, until_started_again};
use crate::cluster::test::shapes::Shape;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::wire::Wire;
use crate::cluster::watch::Seen;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use crate::lab::{eventually, write_whole};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use sluice_shared::conflist::{OWNED_NAMES, Way};
use sluice_shared::install::State;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// What the primary gives interfaces once its configuration has changed.
const MTU: u64 = 1400;
/// Namespaces whose pods on the node run again after a power cut.
const NAMESPACES: [&str; 4] = [DEMO, OUTSIDE, CHURN[0].0, CHURN[1].0];

/// A node that is on again.
struct Cut {
    /// Everything but on that node, from before the cut on.
    wire: Wire,
    /// What there was before it.
    before: Seen,
    /// When the node was on again.
    on: SystemTime,
}

/// After a reboot the primary's file is not there any more, nobody writes it, and no grace is given: our list goes with
/// it, and nothing starts until the primary is back.
pub fn primary_is_gone(stage: &Stage, report: &mut Report) {
    report.step("node2's power is cut; its primary's file is gone for good");
    let cut = cut(stage, remove_primary);
    let gone = "a power cut, the primary's file gone for good";
    report.check(&format!("{gone}: our list was on the disk, and goes too"), || {
        cut.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        let node = stage.node(LEAVES)?;
        eventually("our list to go", PATIENCE, || {
            ensure!(!owned(node).exists(), "it is there");
            Ok("no file of ours is left".to_owned())
        })
    });
    report.check(&format!("{gone}: no pod starts then, of the mesh or outside"), || {
        make_on(stage, stage.node(LEAVES)?, "late")?;
        for (namespace, _) in CHURN {
            network_not_ready(stage, namespace, "late")?;
        }
        Ok("the kubelet says that the network is not ready".into())
    });
    report.check(&format!("{gone}: it is written anew, and our list is back"), || {
        stage.node(LEAVES)?.write_primary(Form::Single)?;
        chained_again(stage)
    });
    all_back(stage, report, gone, cut, "late");
}

/// The primary's configuration has changed while the node was off: our list says the same soon.
pub fn primary_has_changed(stage: &Stage, report: &mut Report) {
    report.step("node2's power is cut; its primary's configuration changes meanwhile");
    let cut = cut(stage, |node| {
        change_primary(node)?;
        make_on(stage, node, "woken")
    });
    let changed = "a power cut, the primary's file changed";
    report.check(&format!("{changed}: our list was on the disk, and follows"), || {
        cut.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        chained_again(stage)
    });
    report.check(&format!("{changed}: pods that start have what it says now"), || {
        for pod in start_on(stage, stage.node(LEAVES)?, "changed")? {
            let mtu = mtu(&pod)?;
            ensure!(mtu == MTU, "{} has an MTU of {mtu}", pod.full_name());
        }
        Ok(format!("an MTU of {MTU}, in the mesh and outside"))
    });
    all_back(stage, report, changed, cut, "woken");
}

/// The deliberate exception: after a boot our list stays for a while without the primary's file.
pub fn primary_comes_later(stage: &Stage, report: &mut Report) {
    report.step("node2's power is cut; its primary writes its file late");
    let cut = cut(stage, |node| {
        remove_primary(node)?;
        make_on(stage, node, "early")
    });
    let late = "a power cut, the primary's file late";
    report.check(&format!("{late}: our list stays, and the installer says so"), || {
        cut.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        let node = stage.node(LEAVES)?;
        let said = eventually("the installer to say what it waits for", PATIENCE, || {
            let said = installation(node)?;
            let waits =
                said.state == State::Waiting && said.message.contains("our list of before the boot stays");
            ensure!(waits, "it says {said:?}");
            Ok(said.message)
        })?;
        // It is looked at twice a second: one that went would have gone by now.
        sleep(Duration::from_secs(3));
        ensure!(owned(node).exists(), "it is gone");
        Ok(said)
    });
    report.check(&format!("{late}: who starts by our list is captured"), || {
        let pod = stage.until_captured(CHURN[0].0, &["early"], true)?.remove(0);
        until_enabled(stage, stage.node(LEAVES)?, &pod)?;
        ensure!(!stage.node(LEAVES)?.primary_file(Form::Single).exists(), "somebody has written it");
        Ok(format!("{} is enabled, with our list alone", pod.full_name()))
    });
    report.check(&format!("{late}: it is written, and followed from then on"), || {
        stage.node(LEAVES)?.write_primary(Form::Single)?;
        chained_again(stage)
    });
    report.check(&format!("{late}: once it was there, our list goes with it in spite of the grace"), || {
        let node = stage.node(LEAVES)?;
        remove_primary(node)?;
        eventually("our list to go", Duration::from_secs(5), || {
            ensure!(!owned(node).exists(), "it is there");
            Ok(())
        })?;
        node.write_primary(Form::Single)?;
        chained_again(stage)
    });
    all_back(stage, report, late, cut, "early");
}

/// What holds after each of them: the pods of the node run as before, and so does the one that was made meanwhile, the
/// one of the mesh captured from its first packet on.
fn all_back(stage: &Stage, report: &mut Report, what: &str, cut: Result<Cut>, made: &str) {
    let mut wire = Err(anyhow!("the node did not start"));
    report.check(&format!("{what}: all of the node's pods run again, those of the mesh captured"), || {
        let cut = cut?;
        wire = Ok((cut.wire, cut.on));
        let node = stage.node(LEAVES)?;
        let pods = until_started_again(stage, node, &cut.before, &NAMESPACES)?;
        let mesh = pods.iter().filter(|pod| [DEMO, CHURN[0].0].contains(&pod.namespace.as_str()));
        mesh.clone().try_for_each(|pod| until_enabled(stage, node, pod))?;
        Ok(format!("{} pods, {} of them of the mesh", pods.len(), mesh.count()))
    });
    report.check(&format!("{what}: pods that were made meanwhile start, each as it should"), || {
        for (namespace, mode) in CHURN {
            let pod = stage.until_ready(namespace, &[made])?.remove(0);
            let captured = stage.until_captured(namespace, &[made], mode.is_some())?.remove(0);
            ensure!(captured.uid == pod.uid && pod.restarts == 0, "{} was restarted", pod.full_name());
        }
        Ok("one captured, one not".into())
    });
    report.check(&format!("{what}: no uncaptured SYN from the cut on, of new pods either"), || {
        let (wire, on) = wire?;
        // A little of what they do now, in the same capture.
        sleep(Duration::from_secs(1));
        // Of the node's pods that run on, it is the one that talks to other nodes.
        let client = Talker::new(&stage.pod(DEMO, "client-2")?, demo::TALKS).since(on);
        let about = [vec![client], each([&stage.pod(CHURN[0].0, made)?])].concat();
        stage.judge(Ok(wire))?.must_hold(&about)
    });
    report.check(&format!("{what}: every connection that was begun meanwhile has ended"), || {
        demo::until_none_waits(stage)
    });
}

/// Cuts the node's power, and does something while it is off; our list must be on its disk then, as it was.
fn cut(stage: &Stage, meanwhile: impl FnOnce(&Node) -> Result<()>) -> Result<Cut> {
    let node = stage.node(LEAVES)?;
    let list = || std::fs::read(owned(node)).context("read our list");
    let (ours, before) = (list()?, stage.seen());
    let wire = stage.listen_but_on(node)?;
    node.reboot_after(|| {
        ensure!(list()? == ours, "our list is another one after the power cut");
        meanwhile(node)
    })?;
    Ok(Cut { wire, before, on: SystemTime::now() })
}

/// Our list on a node's disk.
fn owned(node: &Node) -> PathBuf {
    node.disk("etc/cni/net.d").join(OWNED_NAMES[0])
}

fn remove_primary(node: &Node) -> Result<()> {
    std::fs::remove_file(node.primary_file(Form::Single)).context("remove the primary's file")
}

/// The primary's own list with one more key.
fn change_primary(node: &Node) -> Result<()> {
    let path = node.primary_file(Form::Single);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut conf: Value = serde_json::from_str(&text).context("read the primary's configuration")?;
    conf["mtu"] = json!(MTU);
    write_whole(&path, &serde_json::to_string_pretty(&conf)?)
}

/// Fails unless our list has the primary's configuration in it, to the byte.
fn follows(node: &Node) -> Result<()> {
    let theirs =
        std::fs::read_to_string(node.primary_file(Form::Single)).context("read the primary's file")?;
    let ours = std::fs::read_to_string(owned(node)).context("read our list")?;
    ensure!(ours.contains(theirs.trim()), "the primary's file says {theirs}, and our list {ours}");
    Ok(())
}

/// Every agent is Ready, and every list is our own.
fn chained_again(stage: &Stage) -> Result<String> {
    let node = stage.node(LEAVES)?;
    eventually("our list to say what the primary's does", PATIENCE, || follows(node))?;
    rolled_out(stage)?;
    eventually("every installer to say so", PATIENCE, || must_be_chained(stage, &[Way::Owned, Way::Owned]))
}

/// A pod of each kind for the node, whatever the scheduler thinks of it. Its first connection is the first thing it does.
fn make_on(stage: &Stage, node: &Node, name: &str) -> Result<()> {
    let to = demo::echo(&stage.pod(demo::OUTSIDE, demo::PLAIN)?, true)?;
    let pods = CHURN.map(|(namespace, _)| {
        let shape = Shape::idle(namespace, name).with("nodeName", json!(node.name()));
        shape.init("first", &["once", "--to", &to, "--patience", "20"]).pod()
    });
    stage.apply(&pods)
}

/// Waits until the kubelet says that it cannot start a pod for want of a network, and fails if it has one.
fn network_not_ready(stage: &Stage, namespace: &str, name: &str) -> Result<()> {
    let selector = format!("--field-selector=reason=NetworkNotReady,involvedObject.name={name}");
    eventually(&format!("the kubelet to refuse {namespace}/{name}"), PATIENCE, || {
        let said = stage.kubectl(&["get", "events", "--namespace", namespace, &selector, "--output=name"])?;
        // kubectl need not be asked a hundred times a second.
        sleep(Duration::from_millis(200));
        ensure!(!said.trim().is_empty(), "no event says so");
        Ok(())
    })?;
    let pod = stage.pod(namespace, name)?;
    ensure!(pod.phase == "Pending" && pod.ips.is_empty(), "it is {} with {:?}", pod.phase, pod.ips);
    Ok(())
}

/// The MTU of a pod's interface.
fn mtu(pod: &Pod) -> Result<u64> {
    let output = processes::program(pod, "sluice-app")?
        .within(|| Command::new("ip").args(["-json", "link", "show", "eth0"]).output().context("start ip"))?;
    let links: Value = serde_json::from_slice(&output.stdout).context("read what ip says")?;
    links[0]["mtu"].as_u64().with_context(|| format!("ip says {links}"))
}
