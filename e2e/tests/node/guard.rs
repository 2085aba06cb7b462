//! The mark guard over a ztunnel that comes back in another cgroup: its own traffic passes at once, a pod's never does.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::sockets::taken_at;
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::ztunnel::Ztunnel;
use sluice_shared::admin::State;
use sluice_shared::contract::{MARK_ZTUNNEL, PORT_OUTBOUND};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A SYN of ztunnel's that was lost for a moment would be sent again after 1 s, and then after 3 s in all.
const AT_ONCE: Duration = Duration::from_millis(2900);

pub fn new_cgroup(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("guard-{backend}");
    let members = [Member::meshed("a")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let a = scene.start_pod("a")?;
    forged_is_captured(&a).context("with the first ztunnel")?;
    // Another path; then the same path with another id, as of a container that was made anew.
    for (cgroup, remade) in [("ztunnel-2", false), ("ztunnel-2", true)] {
        drop(std::mem::take(&mut scene.ztunnels));
        if remade {
            scene.node().cgroup(cgroup)?.remake()?;
        }
        forged_is_captured_or_waits(&a).context("without a ztunnel")?;
        scene.ztunnels.push(Ztunnel::start(scene.node(), cgroup, scene.mesh())?);
        scene.ztunnels[0].until_ready()?;
        for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
            let began = Instant::now();
            let dial = Dial::to(SocketAddr::new(to, PORT)).recognised().patience(AT_ONCE);
            let answer = dial.ask(&a.netns, "is it open?").context("a connection once ztunnel was ready")?;
            ensure!(!answer.is_direct(), "a → {to} went out directly");
            println!("{cgroup}, remade: {remade}: a → {to} after {:?}", began.elapsed());
        }
        scene.agents[0].until(&a.facts, State::Enabled)?;
        let guard = scene.agents[0].status()?.mark_guard;
        ensure!(guard.chosen == "on", "the mark guard is {}: {}", guard.chosen, guard.because);
        forged_is_captured(&a)?;
        let own = scene.node().cgroup(cgroup)?;
        let passed = forged(OUTSIDE_V4.into()).ask_in(&a.netns, &own, "I am ztunnel")?;
        ensure!(passed.answer.is_direct(), "from ztunnel's own cgroup the mark does not pass");
    }
    scene.ztunnels[0].must_be_content()
}

fn forged(to: IpAddr) -> Dial {
    Dial::to(SocketAddr::new(to, PORT)).recognised().mark(MARK_ZTUNNEL.value)
}

pub fn forged_is_captured(pod: &Pod) -> Result<()> {
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let client =
            forged(to).ask_in(&pod.netns, &pod.cgroup, "let me pass").context("a marked connection")?;
        ensure!(!client.answer.is_direct(), "a connection to {to} with ztunnel's mark went out directly");
        let taken = taken_at(&pod.netns, client.answer.local)?;
        ensure!(taken == Some(PORT_OUTBOUND), "a marked connection to {to} was taken at {taken:?}");
    }
    Ok(())
}

/// With nobody to take it, it must not be answered by anybody else.
fn forged_is_captured_or_waits(pod: &Pod) -> Result<()> {
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let dial = forged(to).patience(Duration::from_millis(700));
        let answered = dial.ask_in(&pod.netns, &pod.cgroup, "let me pass").ok();
        ensure!(answered.is_none(), "a connection to {to} with ztunnel's mark went out: {answered:?}");
    }
    Ok(())
}
