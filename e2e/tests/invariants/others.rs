//! What is not in the mesh, and what is not a pod, is left alone.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_e2e::lab::cni::list::stdin_of;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::PodSpec;
use sluice_e2e::lab::scene::{MESH, Member, Scene};
use sluice_e2e::lab::topology::{Node, Plan};
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use std::time::{Duration, Instant};

/// Invariant 3. The limit is for the whole chain on a loaded machine; what our part costs is measured elsewhere.
pub fn start_with_everything_dead(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("others-{backend}");
    let members = [Member::plain("c"), Member::plain("d"), Member::plain("e")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let timed = |scene: &Scene, name: &str| -> Result<()> {
        let began = Instant::now();
        let pod = scene.start_pod(name)?;
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(3), "{name} took {took:?}");
        ensure!(!super::closed::has_rules(&pod.netns, backend)?, "a pod outside the mesh has our rules");
        let tables = pod.netns.must("nft", &["list", "ruleset"])?;
        ensure!(tables.trim().is_empty(), "a pod outside the mesh has rules: {tables}");
        Ok(())
    };
    timed(&scene, "c").context("before there ever was an agent")?;
    scene.start()?;
    scene.agent().kill()?;
    timed(&scene, "d").context("with the agent dead")?;
    drop(std::mem::take(&mut scene.ztunnels));
    timed(&scene, "e").context("with ztunnel dead too")
}

/// What is in a host's namespace that an agent could spoil.
fn host_state(node: &Node) -> Result<String> {
    let mut state = String::new();
    for (program, args) in [
        ("nft", ["list", "ruleset"].as_slice()),
        ("iptables-save", &[]),
        ("ip6tables-save", &[]),
        ("ip", &["rule"]),
        ("ip", &["-6", "rule"]),
        ("ip", &["route", "show", "table", "all"]),
    ] {
        let said = node.netns.must(program, args)?;
        // Dates and counters change by themselves.
        state.extend(said.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")));
    }
    Ok(state)
}

/// Invariant 5: whatever the runtime or the pods file says.
pub fn hosts_namespace(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("refuse-{backend}");
    let members = [Member::meshed("a"), Member::meshed("b")];
    let changes = json!({"backend": backend, "probes": "none"});
    let mut scene = Scene::build(outer, &name, &Plan::default(), &changes, &members)?;
    scene.start()?;
    let before = host_state(scene.node())?;
    let node = scene.node();
    let ours = node.list.plugins.last().context("an empty chain")?.clone();
    let mut pod = node.sandbox(&PodSpec::new(MESH, "a"))?;
    pod.attachment.netns = node.netns.path().display().to_string();
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.77.1.2/24"}]}).to_string();
    let stdin = stdin_of(&node.list, &ours, &pod.attachment.capabilities, &[("prevResult", &result)]);
    let output = node.runner.exec_raw("sluice-cni", "ADD", &pod.attachment, stdin.as_bytes())?;
    let said: Value = serde_json::from_slice(&output.stdout).context("an error object")?;
    ensure!(!output.status.success() && said["code"] == code::WRONG_NETNS, "{said}");

    let path = node.netns.path().display().to_string();
    scene.agents[0].pods.edit(&PodSpec::new(MESH, "b").facts.uid, |facts| {
        facts.netns = Some(path);
        facts.ips = vec![node.v4.into()];
    })?;
    scene.agents[0].until_says(&PodSpec::new(MESH, "b").facts, State::Pending, "never written there")?;
    std::thread::sleep(Duration::from_secs(1));
    let after = host_state(node)?;
    ensure!(before == after, "the host was changed: before\n{before}\nafter\n{after}");
    Ok(())
}

/// Invariant 10: a path is not enough; the pod's address must be in it.
pub fn another_pods_namespace(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("another-{backend}");
    let members = [Member::plain("c"), Member::meshed("b")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    scene.start()?;
    let c = scene.start_pod("c")?;
    let b = PodSpec::new(MESH, "b").facts;
    let path = c.netns.path().display().to_string();
    scene.agents[0].pods.edit(&b.uid, |facts| {
        facts.netns = Some(path);
        facts.ips = vec!["10.77.1.200".parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST).into()];
    })?;
    scene.agents[0].until_says(&b, State::Pending, "10.77.1.200")?;
    ensure!(!super::closed::has_rules(&c.netns, backend)?, "another pod's namespace got rules");
    Ok(())
}
