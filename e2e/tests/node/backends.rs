//! The backend is another one after a restart: what the former run wrote gives way, and the pod stays captured.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{BACKENDS, Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use std::net::IpAddr;

/// There and back: from `first` to the other one, and again to `first`.
pub fn changed(outer: &Outer, first: &'static str) -> Result<()> {
    let [nftables, iptables] = BACKENDS;
    let second = if first == nftables { iptables } else { nftables };
    let name = format!("change-{first}");
    let members = [Member::meshed("a"), Member::meshed("b")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": first}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let (a, b) = (scene.start_pod("a")?, scene.start_pod("b")?);
    for pod in [&a, &b] {
        scene.agents[0].until(&pod.facts, State::Enabled)?;
        captured_by(pod, first)?;
    }
    for (from, to) in [(first, second), (second, first)] {
        scene.agents[0].stop()?;
        let file = scene.node().dir.join("agent.yaml");
        let config = std::fs::read_to_string(&file)?;
        let changed = config.replace(&format!("backend: {from}"), &format!("backend: {to}"));
        ensure!(changed != config, "the backend is not in {config}");
        std::fs::write(&file, changed)?;
        scene.agents[0].start()?;
        let used = scene.agents[0].status()?.backend;
        ensure!(used.chosen == to, "the backend is {}: {}", used.chosen, used.because);
        for pod in [&a, &b] {
            scene.agents[0].until(&pod.facts, State::Enabled)?;
            captured_by(pod, to).with_context(|| format!("from {from} to {to}"))?;
        }
    }
    // One that leaves after the change leaves with nothing of either.
    scene.relabel(&b, Some("none"))?;
    scene.agents[0].until(&b.facts, State::Outside)?;
    for backend in BACKENDS {
        ensure!(!has_rules(&b, backend)?, "{backend} rules are left in b");
    }
    scene.ztunnels[0].must_be_content()
}

/// By this backend, and by no other.
fn captured_by(pod: &Pod, backend: &str) -> Result<()> {
    for candidate in BACKENDS {
        let found = has_rules(pod, candidate)?;
        ensure!(found == (candidate == backend), "{}: rules by {candidate}: {found}", pod.name());
    }
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let path = Scene::path(&pod.netns, to)?;
        ensure!(path == Path::Proxied, "{} → {to} is {path:?}", pod.name());
    }
    Ok(())
}

fn has_rules(pod: &Pod, backend: &str) -> Result<bool> {
    let look = match backend {
        "nftables" => "nft list tables | grep 'inet sluice' || true",
        _ => "iptables-save | grep SLUICE_ || true; ip6tables-save | grep SLUICE_ || true",
    };
    Ok(!pod.netns.must("sh", &["-c", look])?.trim().is_empty())
}
