//! Invariant 10: somebody who is root pretends to be a ztunnel. What he may be is told from his process; what cannot be
//! told lets him have what the design gives to root on the node, and no pod past the mesh.

use super::guard::forged_is_captured;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::agent::PATIENCE;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::{Pod, PodSpec};
use sluice_e2e::lab::pretender::{Given, Pretender};
use sluice_e2e::lab::scene::{MESH, Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use std::net::IpAddr;
use std::time::Duration;

const OUTSIDE: [IpAddr; 2] = [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)];

fn scene(outer: &Outer, name: &str, members: &[Member]) -> Result<(Scene, Pod, Echo)> {
    let changes = json!({"addTimeoutSeconds": 3});
    let mut scene = Scene::build(outer, name, &Plan::default(), &changes, members)?;
    scene.start()?;
    let echo = Echo::start(&scene.world.outside, "outside", PORT)?;
    let a = scene.start_pod("a")?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    Ok((scene, a, echo))
}

/// As before: captured, through the ztunnel that serves it, and its own marks are nobody's.
fn is_served(scene: &Scene, pod: &Pod) -> Result<()> {
    scene.agents[0].until(&pod.facts, State::Enabled)?;
    for to in OUTSIDE {
        let path = Scene::path(&pod.netns, to)?;
        ensure!(path == Path::Proxied, "a connection to {to} is {path:?}");
    }
    forged_is_captured(pod)
}

/// A process of a pod that is in the mesh: were it taken for ztunnel, the pod's marks would be trusted everywhere.
pub fn of_the_mesh(outer: &Outer) -> Result<()> {
    let (mut scene, mut a, _echo) = scene(outer, "pretender-in", &[Member::meshed("a")])?;
    let cgroup = format!("kubepods/pod{}", a.facts.uid.as_str());
    let pretender = Pretender::start(scene.node(), "pretender", &cgroup)?;
    let given = pretender.until(&Given::Closed)?;
    ensure!(given == [Given::Closed], "he was given {given:?}");
    let said = std::fs::read_to_string(scene.agents[0].log_file())?;
    let why = format!("is of the pod {MESH}/a, which is in the mesh itself");
    ensure!(said.contains(&why), "the agent does not say that he {why}: {}", scene.agents[0].last_words());
    // His own cgroup, which is where the pod's marks would come from.
    a.cgroup = scene.node().cgroup(&cgroup)?;
    is_served(&scene, &a)?;
    let guard = scene.agents[0].status()?.mark_guard;
    ensure!(guard.chosen == "on" && !guard.because.contains("kubepods"), "the mark guard: {guard:?}");
    scene.ztunnels[0].must_be_content()
}

/// Root outside of such pods, who cannot be told from a ztunnel.
pub fn nobody_knows(outer: &Outer) -> Result<()> {
    let members = [Member::meshed("a"), Member::meshed("b")];
    let (mut scene, a, _echo) = scene(outer, "pretender-out", &members)?;
    let pretender = Pretender::start(scene.node(), "pretender", "pretender")?;
    let given = pretender.until(&Given::Snapshot)?;
    let who = [MESH, "a", "a"].map(str::to_owned);
    let uid = a.facts.uid.as_str().to_owned();
    let pod = Given::Pod { uid, who, netns: a.netns.id()? };
    ensure!(given == [pod, Given::Snapshot], "he was given {given:?}");
    is_served(&scene, &a).context("with a pretender beside ztunnel")?;

    // The newest is asked for new pods. His word alone is not believed: nobody listens.
    let node = scene.node();
    let mut b = node.sandbox(&PodSpec::new(MESH, "b"))?;
    let why = node.attach(&mut b).err().context("a pod that nobody serves was let start")?;
    println!("b: {why:#}");
    let told = pretender.given()?;
    let of_b = |given: &Given| matches!(given, Given::Pod { netns, .. } if b.netns.id().is_ok_and(|id| id == *netns));
    ensure!(told.iter().any(of_b), "he was not asked for b, so nothing is shown: {told:?}");
    for to in OUTSIDE {
        let dial = Dial::to((to, PORT).into()).recognised().patience(Duration::from_millis(700));
        let answer = dial.ask(&b.netns, "is anybody there?").ok();
        ensure!(answer.is_none(), "b, which nobody serves, reaches {to}: {answer:?}");
    }
    node.stop_pod(&b)?;

    // When he goes, ztunnel has all of it.
    drop(pretender);
    let b = eventually("b to start", PATIENCE, || scene.start_pod("b"))?;
    is_served(&scene, &b)?;
    is_served(&scene, &a)?;
    scene.ztunnels[0].must_be_content()
}
