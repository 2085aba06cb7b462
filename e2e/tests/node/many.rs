//! Many pods at once, each a namespace with a veth of its own: no runtime, so that it is the agent's time that shows.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{Families, OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_e2e::lab::ztunnel::Ztunnel;
use sluice_shared::admin::State;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PODS: u8 = 60;
/// 500 pods within 2 s are promised; here it is far fewer, the programs are built for debugging, and the machine may
/// have other things to do.
const SNAPSHOT: Duration = Duration::from_secs(10);
/// How long the agent may take to enrol them all, which has no promise.
const ENROLMENT: Duration = Duration::from_secs(40);

/// The agent gives a ztunnel that comes anew all of its pods, soon.
pub fn snapshot(outer: &Outer) -> Result<()> {
    let members: Vec<Member> = (0..PODS).map(|number| Member::meshed(&format!("p{number}"))).collect();
    let plan = Plan { families: Families::V4, ..Plan::default() };
    let mut scene = Scene::build(outer, "many", &plan, &json!({"logLevel": "info"}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    let pods: Vec<Pod> = (0_u8..)
        .zip(&members)
        .map(|(number, member)| by_hand(&scene, member, number))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    scene.start()?;
    let enabled = |scene: &Scene| {
        let status = scene.agents[0].status()?;
        let enabled = status.pods.iter().filter(|pod| pod.state == State::Enabled).count();
        let other = status.pods.iter().find(|pod| pod.state != State::Enabled);
        ensure!(enabled == pods.len(), "{enabled} are; another one is {other:?}");
        Ok(())
    };
    eventually("every pod to be enabled", ENROLMENT, || enabled(&scene))
        .with_context(|| scene.agents[0].last_words())?;
    println!("{PODS} pods: enrolled {:?} after the agent's start", began.elapsed());
    drop(std::mem::take(&mut scene.ztunnels));
    let mut next = Ztunnel::start(scene.node(), "ztunnel-2", scene.mesh())?;
    let began = Instant::now();
    next.until_ready()?;
    let took = began.elapsed();
    println!("{PODS} pods: a restarted ztunnel was ready, all told, after {took:?}");
    ensure!(took < SNAPSHOT, "the snapshot took {took:?}");
    let told: BTreeSet<String> = next
        .events()?
        .iter()
        .take_while(|event| event["event"] != "ready")
        .filter(|event| event["event"] == "add")
        .filter_map(|event| event["uid"].as_str().map(ToOwned::to_owned))
        .collect();
    ensure!(told.len() == pods.len(), "only {} of {PODS} pods were in the snapshot", told.len());
    eventually("every pod to be enabled again", ENROLMENT, || enabled(&scene))?;
    println!("{PODS} pods: all enabled again after {:?}", began.elapsed());
    for pod in [pods.first(), pods.last()].into_iter().flatten() {
        let path = Scene::path(&pod.netns, OUTSIDE_V4.into())?;
        ensure!(path == Path::Proxied, "{} → outside is {path:?}", pod.name());
    }
    next.must_be_content()
}

/// A pod whose namespace, link and address the lab makes, and the source names.
fn by_hand(scene: &Scene, member: &Member, number: u8) -> Result<Pod> {
    let mut pod = scene.node().sandbox(&member.spec)?;
    let ip: IpAddr = [10, 77, 1, 2 + number].into();
    let link = format!("pod{number}");
    scene.node().netns.ip(&format!(
        "link add {link} type veth peer name eth0 netns {}\n\
         addr add 10.77.1.1/32 dev {link}\n\
         link set {link} up\n\
         route add {ip}/32 dev {link}\n",
        pod.netns.name()
    ))?;
    pod.netns.ip(&format!(
        "link set lo up\n\
         addr add {ip}/32 dev eth0\n\
         link set eth0 up\n\
         route add 10.77.1.1/32 dev eth0\n\
         route add default via 10.77.1.1\n"
    ))?;
    pod.facts.ips = vec![ip];
    let netns = pod.netns.path().to_str().context("a path that is no text")?.to_owned();
    scene.agents[0].pods.edit(&pod.facts.uid, |facts| {
        facts.ips = vec![ip];
        facts.netns = Some(netns);
    })?;
    Ok(pod)
}
