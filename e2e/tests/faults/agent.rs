//! The agent is dead, hung, or dies at the wrong moment.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::agent::PATIENCE;
use sluice_e2e::lab::cni::CniError;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::{Pod, PodSpec};
use sluice_e2e::lab::scene::{MESH, Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path};
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The plugin's limit of 10 s, the other plugins of the chain, and a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

fn scene(outer: &Outer, name: &str) -> Result<Scene> {
    let members = [Member::meshed("a"), Member::meshed("b"), Member::plain("c"), Member::plain("d")];
    let mut scene = Scene::build(outer, name, &Plan::default(), &json!({}), &members)?;
    scene.start()?;
    Ok(scene)
}

fn fails_closed(add: Result<Pod>) -> Result<()> {
    let why = add.err().context("ADD went well")?;
    let found = why.downcast_ref::<CniError>().with_context(|| format!("no CNI error: {why:#}"))?;
    ensure!(found.code() == Some(code::TRY_AGAIN_LATER), "{found}");
    Ok(())
}

pub fn dead(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "dead")?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let targets = vec![SocketAddr::new(OUTSIDE_V4.into(), PORT)];
    let load = Load::start(&a.netns, LoadPlan { targets, live: 20, ..LoadPlan::default() })?;
    scene.agent().kill()?;
    fails_closed(scene.start_pod("b"))?;
    let d = scene.start_pod("d").context("a pod outside the mesh")?;
    // DEL always succeeds; the next agent finds out.
    scene.stop_pod(&c)?;
    scene.agent().start()?;
    // ztunnel backs off for up to 15 s between its tries, and the plugin's limit is 10 s: the kubelet would try again.
    eventually("ztunnel to be connected again", PATIENCE, || {
        ensure!(!scene.agents[0].status()?.ztunnels.is_empty(), "it is not");
        Ok(())
    })?;
    let b = scene.start_pod("b").context("with the agent back")?;
    let tally = load.stop()?;
    tally.must_be_whole()?;
    let direct = tally.new.iter().filter(|short| short.outcome == Ok(Path::Direct)).count();
    ensure!(direct == 0, "{direct} connections escaped: {tally}");
    let left = scene.agents[0].status()?.pods;
    ensure!(
        left.iter().all(|pod| pod.uid != c.facts.uid),
        "a pod deleted meanwhile is still known: {left:?}"
    );
    for pod in [&a, &b, &d] {
        scene.stop_pod(pod)?;
    }
    scene.ztunnels[0].must_be_content()
}

pub fn hung(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "hung")?;
    let c = scene.start_pod("c")?;
    scene.agent().hang(true)?;
    let began = Instant::now();
    fails_closed(scene.start_pod("a"))?;
    ensure!(began.elapsed() < LIMIT, "ADD took {:?}", began.elapsed());
    let began = Instant::now();
    let d = scene.start_pod("d").context("a pod outside the mesh")?;
    ensure!(began.elapsed() < LIMIT, "ADD took {:?}", began.elapsed());
    let began = Instant::now();
    scene.stop_pod(&c).context("DEL")?;
    ensure!(began.elapsed() < LIMIT, "DEL took {:?}", began.elapsed());
    scene.agent().hang(false)?;
    // What it hears late, it must not act on as if it were true.
    let a = scene.start_pod("a").context("with the agent awake")?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    for pod in [&a, &d] {
        scene.stop_pod(pod)?;
    }
    scene.agent().until_serving()
}

/// F3: the sandbox goes with the failed ADD; the next agent and the next ADD know nothing of it.
pub fn killed_in_mid_add(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "midadd")?;
    let pod = scene.node().sandbox(&PodSpec::new(MESH, "a"))?;
    scene.ztunnels[0].hang(true)?;
    let node = &scene.world.nodes[0];
    let agent = &mut scene.agents[0];
    let add = std::thread::scope(|scope| {
        let mut adding = pod.clone();
        let add = scope.spawn(move || node.attach(&mut adding).map(|()| adding));
        std::thread::sleep(Duration::from_millis(700));
        agent.kill()?;
        add.join().map_err(|_| anyhow::anyhow!("ADD panicked"))
    })?;
    fails_closed(add)?;
    node.stop_pod(&pod)?;
    scene.ztunnels[0].hang(false)?;
    scene.agent().start()?;
    let a = scene.start_pod("a")?;
    let status = scene.agents[0].until(&a.facts, State::Enabled)?;
    ensure!(status.netns == Some(a.netns.id()?), "the agent holds another namespace: {:?}", status.netns);
    scene.ztunnels[0].must_be_content()
}

/// Somebody cleans up too much: the agent runs on, and neither the plugin nor ztunnel finds it any more.
pub fn unreachable(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "unreachable")?;
    let says = |scene: &Scene, words: &str| {
        eventually(&format!("/readyz to say {words:?}"), LIMIT, || {
            let said = readyz(scene)?;
            ensure!(said.contains(words), "it says {said:?}");
            Ok(())
        })
    };
    says(&scene, "200 OK")?;
    for name in ["agent.sock", "ztunnel.sock"] {
        let (socket, aside) = (scene.node().socket(name), scene.node().socket("aside"));
        std::fs::rename(&socket, &aside)?;
        says(&scene, &format!("{} was removed or replaced", socket.display()))?;
        std::fs::rename(&aside, &socket)?;
        says(&scene, "200 OK")?;
    }
    scene.ztunnels[0].must_be_content()
}

fn readyz(scene: &Scene) -> Result<String> {
    let ask = "exec 3<>/dev/tcp/127.0.0.1/15014; printf 'GET /readyz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3";
    scene.node().netns.must("bash", &["-c", ask])
}
