//! `ipv6: false`: for clusters whose ztunnel does not speak it.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;

/// IPv4 is captured both ways, IPv6 goes as if there were no mesh, and the pod is enabled and stays so.
pub fn off(outer: &Outer, backend: &str) -> Result<()> {
    let members = [Member::meshed("a"), Member::plain("c")];
    let changes = json!({"backend": backend, "ipv6": false});
    let mut scene = Scene::build(outer, &format!("noipv6-{backend}"), &Plan::default(), &changes, &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let _echo = Echo::start(&a.netns, "a", PORT)?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    for (from, to, expected) in [
        (&a, OUTSIDE_V4.into(), Path::Proxied),
        (&c, a.ip(true)?, Path::Proxied),
        (&a, OUTSIDE_V6.into(), Path::Direct),
        (&c, a.ip(false)?, Path::Direct),
    ] {
        let path = Scene::path(&from.netns, to)?;
        ensure!(path == expected, "{} → {to} is {path:?}", from.name());
    }
    let why = scene.agents[0].why(&a.facts)?;
    let bad: Vec<_> = why.checks.iter().filter(|check| !check.ok).collect();
    ensure!(why.state == State::Enabled && bad.is_empty(), "{}: {}; {bad:?}", why.state, why.reason);
    ensure!(why.drift_repairs == 0, "{} repairs of what nobody changed", why.drift_repairs);
    scene.stop_pod(&a)?;
    scene.ztunnels[0].must_be_content()
}
