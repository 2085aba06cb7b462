//! Which way packets of captured pods go.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::sockets::{listening, taken_at};
use sluice_e2e::lab::topology::{Families, OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::dns::{NAME_SERVER_SAYS, NameServer, resolve};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_e2e::lab::{eventually, xds};
use sluice_shared::admin::State;
use sluice_shared::contract::{
    ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE, MARK_ZTUNNEL, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND,
};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// Invariant 1: what is said to be enabled is captured, and says so in every look that is taken at it.
pub fn captured_both_ways(outer: &Outer, backend: &str, families: Families) -> Result<()> {
    let plan = Plan { families, ..Plan::default() };
    let members = [Member::meshed("a"), Member::meshed("b"), Member::plain("c")];
    let name = format!("paths-{backend}-{families:?}").to_lowercase();
    let mut scene = Scene::build(outer, &name, &plan, &json!({"backend": backend}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    ensure!(scene.agents[0].status()?.backend.chosen == backend, "the agent chose another backend");
    let (a, b, c) = (scene.start_pod("a")?, scene.start_pod("b")?, scene.start_pod("c")?);
    let _servers = [Echo::start(&a.netns, "a", PORT)?, Echo::start(&b.netns, "b", PORT)?];
    for pod in [&a, &b] {
        let why = scene.agents[0].why(&pod.facts)?;
        ensure!(why.state == State::Enabled && !why.checks.is_empty(), "{why:?}");
        let bad: Vec<_> = why.checks.iter().filter(|check| !check.ok).collect();
        ensure!(bad.is_empty(), "enabled, and yet {bad:?}");
        let ports = listening(&pod.netns)?;
        for port in [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE] {
            ensure!(ports.contains(&port), "nobody listens on {port} in {}: {ports:?}", pod.name());
        }
    }
    for ip in &a.facts.ips {
        let v4 = ip.is_ipv4();
        let outside: IpAddr = if v4 { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() };
        // a → outside, a → b, c → a, and a → itself, which ztunnel has no part in.
        expect(&a, outside, &a, PORT_OUTBOUND, *ip)?;
        expect(&a, b.ip(v4)?, &a, PORT_OUTBOUND, *ip)?;
        expect(&c, *ip, &a, PORT_INBOUND, c.ip(v4)?)?;
        ensure!(Scene::path(&a.netns, *ip)? == Path::Direct, "a → its own {ip} is not direct");
        let loopback: IpAddr = if v4 { [127, 0, 0, 1].into() } else { "::1".parse()? };
        ensure!(Scene::path(&a.netns, loopback)? == Path::Direct, "a → {loopback} is not direct");
        ensure!(Scene::path(&c.netns, outside)? == Path::Direct, "c → outside is not direct");
    }
    for pod in [&a, &b, &c] {
        scene.stop_pod(pod)?;
    }
    scene.ztunnels[0].must_be_content()
}

/// A connection `from` → `to` is taken at `port` in `at`, and the server sees the client's address.
fn expect(from: &Pod, to: IpAddr, at: &Pod, port: u16, client: IpAddr) -> Result<()> {
    let mut session = Dial::to(SocketAddr::new(to, PORT)).recognised().open(&from.netns)?;
    let answer = session.say("hello")?;
    let taken = taken_at(&at.netns, answer.local)?;
    ensure!(taken == Some(port), "{} → {to} was taken at {taken:?}, not at {port}", from.name());
    ensure!(!answer.is_direct(), "{} → {to}: the server saw the client's own socket", from.name());
    ensure!(answer.seen.ip() == client, "{} → {to}: the server saw {}", from.name(), answer.seen);
    Ok(())
}

/// A change of a pod's annotations takes effect at once, both ways.
pub fn annotations(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("annotations-{backend}");
    let members = [Member::meshed("a"), Member::plain("c")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let _names = NameServer::start(&scene.world.outside)?;
    scene.start()?;
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let _echo = Echo::start(&a.netns, "a", PORT)?;
    let service = xds::hostname("a", &a.facts.namespace);
    let captured: [IpAddr; 1] = [scene.vip("a")?];
    let asks = |pod: &Pod| resolve(&pod.netns, OUTSIDE_V4.into(), &service, true, SOON);
    ensure!(asks(&a)? == captured, "DNS is not captured");
    for (key, value, inbound, dns) in [
        (ANNOTATION_BYPASS_INBOUND, Some("true"), Path::Direct, captured[0]),
        (ANNOTATION_DNS_CAPTURE, Some("false"), Path::Direct, NAME_SERVER_SAYS.into()),
        (ANNOTATION_BYPASS_INBOUND, None, Path::Proxied, NAME_SERVER_SAYS.into()),
        (ANNOTATION_DNS_CAPTURE, None, Path::Proxied, captured[0]),
    ] {
        scene.agents[0].pods.edit(&a.facts.uid, |facts| {
            match value {
                Some(value) => facts.annotations.insert(key.into(), value.into()),
                None => facts.annotations.remove(key),
            };
        })?;
        eventually(&format!("{key}={value:?} to take effect"), SOON, || {
            for v4 in [true, false] {
                let path = Scene::path(&c.netns, a.ip(v4)?)?;
                ensure!(path == inbound, "c → a is {path:?}");
            }
            let found = asks(&a)?;
            ensure!(found == [dns], "{service} is {found:?}");
            Ok(())
        })?;
        scene.agents[0].until(&a.facts, State::Enabled)?;
    }
    scene.ztunnels[0].must_be_content()
}

/// ztunnel's mark opens no door for a pod's own sockets.
pub fn forged_mark(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("mark-{backend}");
    let members = [Member::meshed("a")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let a = scene.start_pod("a")?;
    let guard = scene.agents[0].status()?.mark_guard;
    ensure!(guard.chosen == "on", "the mark guard is {}: {}", guard.chosen, guard.because);
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let dial = Dial::to(SocketAddr::new(to, PORT)).recognised().mark(MARK_ZTUNNEL.value);
        let client = dial.ask_in(&a.netns, &a.cgroup, "let me pass").context("a marked connection")?;
        ensure!(!client.answer.is_direct(), "a → {to} with ztunnel's mark went out directly");
        let taken = taken_at(&a.netns, client.answer.local)?;
        ensure!(taken == Some(PORT_OUTBOUND), "taken at {taken:?}");
    }
    Ok(())
}
