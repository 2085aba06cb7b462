//! ztunnel is away, hung, upgraded, or refuses.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_e2e::lab::cni::CniError;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::{Pod, PodSpec};
use sluice_e2e::lab::scene::{MESH, Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path, Short, Tally};
use sluice_e2e::lab::ztunnel::Ztunnel;
use sluice_e2e::lab::{eventually, ztunnel};
use sluice_shared::admin::State;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How many connections of one load a killed ztunnel may have inside.
const CUT_BY_A_KILL: usize = 2;

fn scene(outer: &Outer, name: &str, changes: &Value) -> Result<(Scene, Pod, Pod, Vec<Echo>)> {
    let members = [Member::meshed("a"), Member::plain("c"), Member::meshed("b")];
    let mut scene = Scene::build(outer, name, &Plan::default(), changes, &members)?;
    scene.start()?;
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let servers =
        vec![Echo::start(&scene.world.outside, "outside", PORT)?, Echo::start(&a.netns, "a", PORT)?];
    Ok((scene, a, c, servers))
}

/// New connections only: those through a proxy that dies die with it.
fn new_connections(a: &Pod, c: &Pod) -> Result<[Load; 2]> {
    let plan = |targets| LoadPlan { targets, new_per_second: 40, ..LoadPlan::default() };
    let out = [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|ip| SocketAddr::new(ip, PORT)).to_vec();
    let inward = a.facts.ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    Ok([Load::start(&a.netns, plan(out))?, Load::start(&c.netns, plan(inward))?])
}

/// Every connection was captured and answered, but for those that were inside a ztunnel when it was killed: few, and all
/// of them under way then.
fn captured(tally: &Tally, kills: &[Range<Instant>]) -> Result<()> {
    println!("{tally}");
    let under_way = |short: &Short| {
        kills.iter().any(|kill| short.begun <= kill.end && short.begun + short.took >= kill.start)
    };
    let cut = tally.new.iter().filter(|short| short.outcome.is_err() && under_way(short)).count();
    let failures = tally.failures();
    ensure!(failures.len() == cut, "{} failed, {cut} of them cut ({tally}): {failures:?}", failures.len());
    let most = CUT_BY_A_KILL * kills.len();
    ensure!(cut <= most, "{cut} were cut, of at most {most} ({tally}): {failures:?}");
    ensure!(
        failures.iter().all(|why| !why.contains("refused")),
        "connections were refused, not held: {failures:?}"
    );
    let direct = tally.new.iter().filter(|short| short.outcome == Ok(Path::Direct)).count();
    ensure!(direct == 0 && !tally.new.is_empty(), "{direct} connections escaped: {tally}");
    Ok(())
}

pub fn restart(outer: &Outer) -> Result<()> {
    let (mut scene, a, c, _servers) = scene(outer, "zrestart", &json!({}))?;
    let loads = new_connections(&a, &c)?;
    std::thread::sleep(Duration::from_secs(1));
    let mut kills = Vec::new();
    for _ in 0..2 {
        let begun = Instant::now();
        drop(std::mem::take(&mut scene.ztunnels));
        kills.push(begun..Instant::now());
        std::thread::sleep(Duration::from_millis(700));
        scene.ztunnels.push(Ztunnel::start(scene.node(), "ztunnel-1", scene.mesh())?);
        scene.ztunnels[0].until_ready()?;
        scene.agents[0].until(&a.facts, State::Enabled)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    for load in loads {
        captured(&load.stop()?, &kills)?;
    }
    scene.ztunnels[0].must_be_content()
}

/// The next one starts in a cgroup of its own before the first one ends.
pub fn upgrade(outer: &Outer) -> Result<()> {
    let (mut scene, a, c, _servers) = scene(outer, "zupgrade", &json!({}))?;
    ensure!(ztunnel::kind() == ztunnel::Kind::StandIn, "two real ones clash on their own ports");
    let loads = new_connections(&a, &c)?;
    std::thread::sleep(Duration::from_secs(1));
    let mut next = Ztunnel::start(scene.node(), "ztunnel-2", scene.mesh())?;
    next.until_ready()?;
    std::thread::sleep(Duration::from_millis(500));
    let first = scene.ztunnels.pop().context("no ztunnel")?;
    first.stop().context("the first one")?;
    std::thread::sleep(Duration::from_secs(1));
    scene.agents[0].until(&a.facts, State::Enabled)?;
    for load in loads {
        captured(&load.stop()?, &[])?;
    }
    next.must_be_content()
}

pub fn hung(outer: &Outer) -> Result<()> {
    let (scene, a, _c, _servers) = scene(outer, "zhung", &json!({}))?;
    ensure!(ztunnel::kind() == ztunnel::Kind::StandIn, "two real ones clash on their own ports");
    scene.ztunnels[0].hang(true)?;
    let began = Instant::now();
    let refused = scene.start_pod("b");
    ensure!(began.elapsed() < Duration::from_secs(15), "ADD took {:?}", began.elapsed());
    let why = refused.err().context("a pod was captured by a ztunnel that does not answer")?;
    ensure!(why.downcast_ref::<CniError>().is_some(), "{why:#}");
    let mut next = Ztunnel::start(scene.node(), "ztunnel-2", scene.mesh())?;
    next.until_ready()?;
    let b = scene.start_pod("b").context("with a ztunnel that answers")?;
    for pod in [&a, &b] {
        scene.agents[0].until(&pod.facts, State::Enabled)?;
    }
    next.must_be_content()
}

/// Held at first, refused after the configured time, held again when it comes back.
pub fn stays_away(outer: &Outer, backend: &str) -> Result<()> {
    let changes = json!({"backend": backend, "holdTimeoutSeconds": 3});
    let (mut scene, a, _c, _servers) = scene(outer, &format!("zaway-{backend}"), &changes)?;
    drop(std::mem::take(&mut scene.ztunnels));
    let dial = Dial::to(SocketAddr::new(OUTSIDE_V4.into(), PORT)).patience(Duration::from_millis(900));
    let held = dial.ask(&a.netns, "now?").err().context("somebody answered")?;
    ensure!(!format!("{held:#}").contains("refused"), "refused at once: {held:#}");
    eventually("an error for applications", Duration::from_secs(15), || {
        let why = dial.ask(&a.netns, "now?").err().context("somebody answered")?;
        ensure!(format!("{why:#}").contains("refused"), "{why:#}");
        Ok(())
    })?;
    scene.ztunnels.push(Ztunnel::start(scene.node(), "ztunnel-1", scene.mesh())?);
    scene.ztunnels[0].until_ready()?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    let answer = Dial::to(SocketAddr::new(OUTSIDE_V4.into(), PORT)).recognised().ask(&a.netns, "now?")?;
    ensure!(!answer.is_direct());
    Ok(())
}

pub fn refuses(outer: &Outer) -> Result<()> {
    let members = [Member::meshed("a"), Member::meshed("b")];
    let mut scene = Scene::build(outer, "znack", &Plan::default(), &json!({}), &members)?;
    ensure!(ztunnel::kind() == ztunnel::Kind::StandIn, "a real one cannot be told to refuse");
    scene.start_agents_only()?;
    let uid = PodSpec::new(MESH, "b").facts.uid;
    let args = ["--nack-uid", uid.as_str()];
    scene.ztunnels.push(Ztunnel::start_with(scene.node(), "ztunnel-1", scene.mesh(), &args)?);
    scene.agent().until_serving()?;
    scene.start_pod("a")?;
    let why = scene.start_pod("b").err().context("a refused pod started")?;
    let error = why.downcast_ref::<CniError>().with_context(|| format!("{why:#}"))?;
    ensure!(error.to_string().contains("refused"), "{error}");
    Ok(())
}
