//! A new connection with an old one's addresses and ports is a new connection.

use anyhow::{Result, ensure};
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::PORT;
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6};
use sluice_e2e::lab::traffic::dial::{Dial, Session};
use sluice_shared::admin::State;
use sluice_shared::contract::MODE_AMBIENT;
use std::net::{IpAddr, SocketAddr};

const REUSED: u16 = 9_000;

fn dials() -> [Dial; 2] {
    [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|to| Dial::to(SocketAddr::new(to, PORT)).port(REUSED))
}

fn open(d: &Pod) -> Result<Vec<Session>> {
    dials().iter().map(|dial| dial.open(&d.netns)).collect()
}

/// Closes without leaving TIME_WAIT behind, so that the very same addresses and ports can be used at once.
fn reset(sessions: Vec<Session>) -> Result<()> {
    sessions.into_iter().try_for_each(Session::reset)
}

fn is_proxied(d: &Pod) -> Result<()> {
    for mut session in open(d)? {
        let answer = session.say("again")?;
        ensure!(!answer.is_direct(), "the reused tuple went out directly: {answer:?}");
        session.reset()?;
    }
    Ok(())
}

/// The kernel remembers a connection for days after the rules that made it do so are gone.
pub fn reused(outer: &Outer, backend: &str) -> Result<()> {
    let (scene, _c, d, _servers) = super::scene(outer, "tuple", backend)?;
    let mut kept = open(&d)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    for session in &mut kept {
        ensure!(session.say("kept")?.is_direct(), "an older connection was not kept");
    }
    scene.relabel(&d, None)?;
    scene.agents[0].until(&d.facts, State::Outside)?;
    for session in &mut kept {
        ensure!(session.say("still")?.is_direct(), "an older connection was not kept");
    }
    reset(kept)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    is_proxied(&d)
}

/// The kept connection ends and its tuple is used again while the rules that kept it are in force.
pub fn reused_while_kept(outer: &Outer, backend: &str) -> Result<()> {
    let (scene, _c, d, _servers) = super::scene(outer, "kept", backend)?;
    let mut kept = open(&d)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    for session in &mut kept {
        ensure!(session.say("kept")?.is_direct(), "an older connection was not kept");
    }
    reset(kept)?;
    is_proxied(&d)
}
