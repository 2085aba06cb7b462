//! A second network of a pod, as Multus attaches it: `a` got it after it was enrolled, `d` has it before it joins.

use super::traffic::goes;
use crate::lab::outer::Outer;
use crate::lab::scene::PORT;
use crate::lab::traffic::load::Path;
use crate::matrix::stage::Stage;
use anyhow::{Context, Result};
use sluice_shared::admin::State;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};
use std::net::SocketAddr;

pub fn network(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    both_ways(stage, "a", Path::Proxied).context("net1 came after enrolment")?;
    both_ways(stage, "d", Path::Direct).context("a pod outside")?;
    label(stage, MODE_AMBIENT, State::Enabled)?;
    both_ways(stage, "d", Path::Proxied).context("net1 was there before enrolment")?;
    stage.agent.stop()?;
    stage.agent.start()?;
    for name in ["a", "d"] {
        let facts = stage.pod(name).facts.clone();
        stage.agent.until(&facts, State::Enabled)?;
        both_ways(stage, name, Path::Proxied).context("after a restart of the agent")?;
    }
    label(stage, "none", State::Outside)?;
    both_ways(stage, "d", Path::Direct).context("after it left the mesh")?;
    Ok(format!("{:?}: out and in, through ztunnel while in the mesh", stage.second))
}

fn label(stage: &Stage<'_>, mode: &str, state: State) -> Result<()> {
    let d = stage.pod("d");
    stage.agent.pods.edit(&d.facts.uid, |facts| {
        facts.labels.insert(LABEL_DATAPLANE_MODE.into(), mode.into());
    })?;
    stage.agent.until(&d.facts, state).map(drop)
}

/// From the pod to the fabric's address on the second network, and from there to the pod's.
fn both_ways(stage: &Stage<'_>, name: &str, path: Path) -> Result<()> {
    let peer = stage.cell.secondary.as_ref().context("no second network")?.peer;
    goes(&stage.pod(name).netns, SocketAddr::new(peer, 80), "metadata", path, "by net1")?;
    let own = stage.second.get(name).with_context(|| format!("{name} has no net1"))?;
    goes(&stage.fabric, SocketAddr::new(*own, PORT), name, path, "to net1").map(drop)
}
