//! What is left behind: nothing.

use crate::lab::agent::PATIENCE;
use crate::lab::cni::Attachment;
use crate::lab::eventually;
use crate::lab::outer::Outer;
use crate::lab::pod::addresses_of;
use crate::lab::scene::{PORT, Scene};
use crate::lab::traffic::echo::Echo;
use crate::lab::traffic::load::Path;
use crate::matrix::snapshot::Snapshot;
use crate::matrix::stage::Stage;
use anyhow::{Context, Result, ensure};
use sluice_shared::admin::State;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};

pub fn leave(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let d = stage.pod("d");
    let before = Snapshot::take(&d.netns)?;
    let label = |mode: &str| {
        stage.agent.pods.edit(&d.facts.uid, |facts| {
            facts.labels.insert(LABEL_DATAPLANE_MODE.into(), mode.into());
        })
    };
    label(MODE_AMBIENT)?;
    stage.agent.until(&d.facts, State::Enabled)?;
    for ip in &d.facts.ips {
        let path = Scene::path(&d.netns, Stage::outside_like(*ip))?;
        ensure!(path == Path::Proxied, "d joined, and → outside is {path:?}");
    }
    let joined = Snapshot::take(&d.netns)?;
    ensure!(before.must_equal(&joined).is_err(), "d joined, and nothing in its namespace says so");
    label("none")?;
    stage.agent.until(&d.facts, State::Outside)?;
    for ip in &d.facts.ips {
        let path = Scene::path(&d.netns, Stage::outside_like(*ip))?;
        ensure!(path == Path::Direct, "d left, and → outside is {path:?}");
    }
    let bytes = before.must_equal(&Snapshot::take(&d.netns)?)?;
    Ok(format!("{bytes} bytes of configuration, the same before and after"))
}

pub fn del(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let mut pod = stage.sandbox("e")?;
    let node = &stage.node;
    let loopback = Attachment { ifname: "lo".into(), ..pod.attachment.clone() };
    node.runner.add(&node.loopback, &loopback)?;
    let (pod_before, node_before) = (Snapshot::take(&pod.netns)?, Snapshot::take(&node.netns)?);
    pod.result = node.runner.add(&node.list, &pod.attachment)?;
    pod.facts.ips = addresses_of(&pod.result)?;
    stage.shown(&pod)?;
    stage.agent.until(&pod.facts, State::Enabled)?;
    let server = Echo::start(&pod.netns, "e", PORT)?;
    for ip in &pod.facts.ips {
        let path = Scene::path(&stage.pod("c").netns, *ip)?;
        ensure!(path == Path::Proxied, "c → e is {path:?}");
    }
    drop(server);
    node.runner.del(&node.list, &pod.attachment)?;
    stage.agent.pods.forget(&pod.facts.uid)?;
    let theirs = &stage.cell.leaves_links;
    let left = |taken: &Snapshot| theirs.iter().fold(taken.clone(), |taken, link| taken.without_link(link));
    let in_pod = eventually("the pod's namespace to be as before", PATIENCE, || {
        left(&pod_before).must_equal(&left(&Snapshot::take(&pod.netns)?))
    });
    let node_as_before = || {
        eventually("the node to be as before", PATIENCE, || {
            node_before.must_equal(&Snapshot::take(&node.netns)?)
        })
    };
    let early = theirs.is_empty().then(node_as_before);
    node.runner.del(&node.list, &pod.attachment).context("DEL once more")?;
    node.runner.del(&node.loopback, &loopback)?;
    pod.netns.remove()?;
    // A namespace lives as long as somebody holds it open, and its links with it.
    drop(pod);
    let on_node = early.unwrap_or_else(node_as_before);
    Ok(format!("{} bytes in the pod and {} on the node, the same before and after", in_pod?, on_node?))
}
