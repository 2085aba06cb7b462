//! Invariant 8: a connection is not a casualty. Pods join, leave and change under load.

mod halfclose;
mod replace;
mod tuples;

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{BACKENDS, Member, PORT, Scene};
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path, Tally};
use sluice_shared::admin::State;
use sluice_shared::contract::MODE_AMBIENT;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

type OnBackend = fn(&Outer, &str) -> Result<()>;

/// A connection that begins this close to a change may take either path.
const MOMENT: Duration = Duration::from_millis(200);

fn main() {
    let mut tests = Vec::new();
    for backend in BACKENDS {
        let on_each: [(&str, OnBackend); 6] = [
            ("two_hundred_survive_joining_and_leaving", two_hundred),
            ("two_hundred_survive_the_agents_restart", restart),
            ("a_reused_tuple_does_not_slip_by", tuples::reused),
            ("a_kept_connections_tuple_is_captured_when_reused", tuples::reused_while_kept),
            ("a_forgotten_half_closed_connection_finds_its_proxy", halfclose::forgotten),
            ("a_thousand_replacements_under_load", replace::a_thousand),
        ];
        for (name, body) in on_each {
            tests.push(test(format!("{backend}::{name}"), move |outer: &Outer| body(outer, backend)));
        }
    }
    suite::run("live", tests);
}

/// A scene with a pod `d` that is outside the mesh, a client `c`, and echo servers.
fn scene(outer: &Outer, name: &str, backend: &str) -> Result<(Scene, Pod, Pod, Vec<Echo>)> {
    let members = [Member::plain("c"), Member::plain("d")];
    let mut scene = Scene::build(
        outer,
        &format!("{name}-{backend}"),
        &Plan::default(),
        &json!({"backend": backend}),
        &members,
    )?;
    scene.start()?;
    let (c, d) = (scene.start_pod("c")?, scene.start_pod("d")?);
    let servers =
        vec![Echo::start(&scene.world.outside, "outside", PORT)?, Echo::start(&d.netns, "d", PORT)?];
    Ok((scene, c, d, servers))
}

fn outside() -> Vec<SocketAddr> {
    [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|ip| SocketAddr::new(ip, PORT)).to_vec()
}

/// 50 connections out and 50 in, of each family.
fn load(c: &Pod, d: &Pod) -> Result<[Load; 2]> {
    let plan = |targets| LoadPlan { targets, live: 100, new_per_second: 40, ..LoadPlan::default() };
    let inward = d.facts.ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    Ok([Load::start(&d.netns, plan(outside()))?, Load::start(&c.netns, plan(inward))?])
}

fn two_hundred(outer: &Outer, backend: &str) -> Result<()> {
    let (mut scene, c, d, _servers) = scene(outer, "live", backend)?;
    // Twice: what the first time left behind must not spoil the second.
    for round in 1..=2 {
        let older = load(&c, &d)?;
        std::thread::sleep(Duration::from_secs(2));
        scene.relabel(&d, Some(MODE_AMBIENT))?;
        let status = scene.agents[0].until(&d.facts, State::Enabled)?;
        let joined = Instant::now();
        ensure!(status.kept_connections >= 200, "only {} connections are kept", status.kept_connections);
        std::thread::sleep(Duration::from_secs(3));
        // These begin in the mesh, and must survive leaving it.
        let younger = load_proxied(&c, &d)?;
        std::thread::sleep(Duration::from_secs(1));
        let leaves = Instant::now();
        scene.relabel(&d, None)?;
        std::thread::sleep(Duration::from_secs(3));
        let tallies = younger.map(Load::stop);
        for tally in tallies {
            tally?.must_be_whole()?;
        }
        // Only now nothing is proxied any more, so that draining can end.
        scene.agents[0].until(&d.facts, State::Outside)?;
        let left = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        for (way, load) in ["out", "in"].iter().zip(older) {
            let tally = load.stop()?;
            println!("round {round}, {way}: {tally}");
            tally.must_be_whole()?;
            captured_between(&tally, joined..leaves)?;
            let after = tally.begun(left..Instant::now(), Path::Proxied);
            ensure!(after == 0, "{after} connections were proxied after leaving");
        }
    }
    scene.ztunnels[0].must_be_content()
}

/// As [`load`], from other source ports, all of it proxied.
fn load_proxied(c: &Pod, d: &Pod) -> Result<[Load; 2]> {
    let plan = |targets| LoadPlan {
        targets,
        live: 30,
        new_per_second: 0,
        ports: 15_000..15_900,
        ..LoadPlan::default()
    };
    let inward = d.facts.ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    Ok([Load::start(&d.netns, plan(outside()))?, Load::start(&c.netns, plan(inward))?])
}

fn captured_between(tally: &Tally, span: std::ops::Range<Instant>) -> Result<()> {
    let span = span.start..span.end - MOMENT;
    let (proxied, direct) =
        (tally.begun(span.clone(), Path::Proxied), tally.begun(span.clone(), Path::Direct));
    let escaped: Vec<u128> = tally
        .new
        .iter()
        .filter(|short| span.contains(&short.begun) && short.outcome == Ok(Path::Direct))
        .map(|short| (short.begun - span.start).as_millis())
        .collect();
    ensure!(
        proxied > 0 && direct == 0,
        "in the mesh: {proxied} proxied, {direct} escaped, {escaped:?} ms after joining ({tally})"
    );
    Ok(())
}

/// What is kept is kept by the next agent too.
fn restart(outer: &Outer, backend: &str) -> Result<()> {
    let (mut scene, c, d, _servers) = scene(outer, "again", backend)?;
    let older = load(&c, &d)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    let joined = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    scene.agent().kill()?;
    std::thread::sleep(Duration::from_secs(1));
    scene.agent().start()?;
    let status = scene.agents[0].until(&d.facts, State::Enabled)?;
    ensure!(status.kept_connections >= 200, "only {} connections are kept", status.kept_connections);
    std::thread::sleep(Duration::from_secs(1));
    scene.agent().stop()?;
    scene.agent().start()?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    std::thread::sleep(Duration::from_secs(1));
    let leaves = Instant::now();
    for load in older {
        let tally = load.stop()?;
        tally.must_be_whole()?;
        captured_between(&tally, joined..leaves)?;
    }
    Ok(())
}
