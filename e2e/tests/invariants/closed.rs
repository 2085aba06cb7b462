//! Nothing of a pod of the mesh gets out in plaintext, and no pod of the mesh starts uncaptured.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::capture::Capture;
use sluice_e2e::lab::cni::CniError;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::netns::Netns;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::{Pod, PodSpec};
use sluice_e2e::lab::scene::{MESH, Member, PLAIN, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_shared::cni::code;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The plugin's own limit (10 s), and what a loaded machine may add.
const ADD_LIMIT: Duration = Duration::from_secs(15);

/// Whether our rules are in a namespace, whichever backend wrote them.
pub fn has_rules(netns: &Netns, backend: &str) -> Result<bool> {
    Ok(match backend {
        "nftables" => netns.must("nft", &["list", "tables"])?.contains("inet sluice"),
        _ => ["iptables-save", "ip6tables-save"]
            .iter()
            .map(|save| Ok(netns.must(save, &[])?.contains("SLUICE_")))
            .collect::<Result<Vec<bool>>>()?
            .contains(&true),
    })
}

/// Invariant 2: while ztunnel has not acknowledged, connections of the pod wait; then they are proxied.
pub fn before_the_ack(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("ack-{backend}");
    let members = [Member::meshed("a")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let node = scene.node();
    let pod = node.sandbox(&PodSpec::new(MESH, "a"))?;
    scene.ztunnels[0].hang(true)?;
    std::thread::scope(|scope| {
        let mut added = pod.clone();
        let add = scope.spawn(move || node.attach(&mut added).map(|()| added));
        eventually("the rules", Duration::from_secs(8), || {
            ensure!(has_rules(&pod.netns, backend)?, "not there");
            Ok(())
        })?;
        let capture = Capture::start(&scene.world.fabric, "outside", &node.logs())?;
        let dials: Vec<_> = [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()]
            .map(|to| {
                let dial = Dial::to(SocketAddr::new(to, PORT)).recognised().patience(Duration::from_secs(20));
                let netns = pod.netns.clone();
                scope.spawn(move || dial.ask(&netns, "patience"))
            })
            .into();
        std::thread::sleep(Duration::from_millis(1200));
        let early = capture.stop()?;
        let early: Vec<_> = early.opening().map(|packet| (packet.from, packet.to)).collect();
        scene.ztunnels[0].hang(false)?;
        ensure!(early.is_empty(), "before the ack there went out {early:?}");
        let added = add.join().map_err(|_| anyhow::anyhow!("ADD panicked"))?.context("ADD")?;
        for dial in dials {
            let answer = dial.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            ensure!(!answer.is_direct(), "a held connection went out directly: {answer:?}");
        }
        node.stop_pod(&added)
    })
}

/// Without a ztunnel a pod of the mesh does not start, in time and with a reason; with one it does.
pub fn no_ztunnel(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("noz-{backend}");
    let members = [Member::meshed("a"), Member::plain("c")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    scene.start_agents_only()?;
    eventually("the agent's answer", Duration::from_secs(20), || scene.agents[0].status())?;
    let c = scene.start_pod("c").context("a pod outside the mesh")?;
    must_wait(&scene.start_pod("a"), "ztunnel", ADD_LIMIT)?;
    scene.stop_pod(&c)
}

/// Invariant 4: with no agent to ask, a pod of a namespace of the mesh waits; also after a reboot of the agent.
pub fn unknown_membership(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("unknown-{backend}");
    let members = [Member::plain("c"), Member::meshed("a")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    scene.start()?;
    scene.agent().kill()?;
    let began = Instant::now();
    must_wait(&scene.start_pod("a"), "Sluice agent", ADD_LIMIT)?;
    // It waits for an agent that may be in the middle of an upgrade, up to its limit (docs/decisions/0012-add-waits.md).
    ensure!(began.elapsed() < ADD_LIMIT, "it took {:?}", began.elapsed());
    let began = Instant::now();
    let c = scene.start_pod("c").context("a pod outside the mesh")?;
    ensure!(began.elapsed() < Duration::from_secs(5), "a pod outside the mesh waited {:?}", began.elapsed());
    // A namespace that nobody ever spoke of holds no pod of the mesh as far as anybody knows.
    let nobodys = scene.node().start_pod(&PodSpec::new("nobodys", "n"))?;
    scene.agent().start()?;
    // ztunnel has backed off meanwhile, for up to 15 s (its own delays), which is more than this lab's limit.
    eventually("ztunnel to be back", Duration::from_secs(30), || {
        ensure!(scene.agents[0].status()?.ztunnels.iter().any(|ztunnel| ztunnel.ready), "none is ready");
        Ok(())
    })?;
    let a = scene.start_pod("a").context("with the agent back")?;
    for pod in [&a, &c] {
        scene.stop_pod(pod)?;
    }
    scene.node().stop_pod(&nobodys)?;
    ensure!(c.facts.namespace == PLAIN);
    Ok(())
}

/// The ADD failed with "try again later", in words that name what is waited for.
fn must_wait(add: &Result<Pod>, names: &str, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let why = add.as_ref().err().context("ADD went well")?;
    let found = why.downcast_ref::<CniError>().with_context(|| format!("no CNI error: {why:#}"))?;
    ensure!(found.code() == Some(code::TRY_AGAIN_LATER), "{found}");
    ensure!(found.to_string().contains(names), "it does not name {names}: {found}");
    ensure!(began.elapsed() < limit);
    Ok(())
}
