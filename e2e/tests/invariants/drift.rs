//! Invariant 12: what is changed behind the agent's back is put right.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Two seconds are promised; a loaded machine may add as many again.
const HEALED: Duration = Duration::from_secs(4);

/// A program, its arguments.
type Injury = (&'static str, &'static [&'static str]);

const OF_ROUTING: [Injury; 6] = [
    ("ip", &["rule", "del", "pref", "32764"]),
    ("ip", &["-6", "rule", "del", "pref", "32764"]),
    ("ip", &["route", "flush", "table", "100"]),
    ("ip", &["-6", "route", "flush", "table", "100"]),
    (
        "sh",
        &["-c", "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default"],
    ),
    ("sh", &["-c", "ip link set lo down && ip link set lo up"]),
];
const OF_NFTABLES: [Injury; 4] = [
    ("nft", &["delete", "table", "inet", "sluice"]),
    ("nft", &["flush", "ruleset"]),
    ("nft", &["flush", "table", "inet", "sluice"]),
    ("nft", &["add", "chain", "inet", "sluice", "intruder"]),
];
const OF_IPTABLES: [Injury; 3] = [
    ("iptables", &["-t", "nat", "-F"]),
    ("ip6tables", &["-t", "nat", "-F"]),
    ("sh", &["-c", "iptables -t mangle -F; ip6tables -t mangle -F"]),
];

pub fn in_a_pod(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("drift-{backend}");
    let members = [Member::meshed("a"), Member::plain("c")];
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({"backend": backend}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let _echo = Echo::start(&a.netns, "a", PORT)?;
    let of_rules: &[Injury] = if backend == "nftables" { &OF_NFTABLES } else { &OF_IPTABLES };
    for (program, args) in OF_ROUTING.iter().chain(of_rules) {
        let injury = format!("{program} {}", args.join(" "));
        let before = repairs(&scene, &a.facts)?;
        a.netns.must(program, args)?;
        let began = Instant::now();
        eventually(&format!("{injury:?} to be put right"), HEALED, || {
            let now = repairs(&scene, &a.facts)?;
            ensure!(now > before, "{now} repairs, as before");
            Ok(())
        })?;
        scene.agents[0].until(&a.facts, State::Enabled).with_context(|| injury.clone())?;
        println!("{injury}: put right after {} ms", began.elapsed().as_millis());
        for (outside, v4) in [(IpAddr::from(OUTSIDE_V4), true), (OUTSIDE_V6.into(), false)] {
            ensure!(
                Scene::path(&a.netns, outside)? == Path::Proxied,
                "after {injury}: a → {outside} is direct"
            );
            ensure!(Scene::path(&c.netns, a.ip(v4)?)? == Path::Proxied, "after {injury}: c → a is direct");
        }
    }
    Ok(())
}

fn repairs(scene: &Scene, pod: &sluice_shared::facts::PodFacts) -> Result<u64> {
    let status = scene.agents[0].status()?;
    let found = status.pods.iter().find(|found| found.uid == pod.uid);
    Ok(found.with_context(|| format!("the agent does not know {}", pod.name))?.drift_repairs)
}

pub fn on_the_host(outer: &Outer, backend: &str) -> Result<()> {
    let name = format!("host-{backend}");
    let members = [Member::meshed("a")];
    let changes = json!({"backend": backend, "probes": "snat"});
    let mut scene = Scene::build(outer, &name, &Plan::default(), &changes, &members)?;
    scene.start()?;
    let a = scene.start_pod("a")?;
    let _echo = Echo::start(&a.netns, "a", PORT)?;
    let node = scene.node();
    probe_is_direct(&scene, &a).context("at first")?;
    let injuries: &[Injury] = if backend == "nftables" {
        &[("nft", &["delete", "table", "inet", "sluice"]), ("nft", &["flush", "ruleset"])]
    } else {
        &[("iptables", &["-t", "nat", "-F"]), ("ip6tables", &["-t", "nat", "-F"])]
    };
    for (program, args) in injuries {
        node.netns.must(program, args)?;
        eventually("the host's table", HEALED, || probe_is_direct(&scene, &a))
            .with_context(|| format!("after {program} {}", args.join(" ")))?;
    }
    // A kubelet that restarts may get a cgroup of the same name and another id.
    node.kubelet.remake()?;
    eventually("the new kubelet", Duration::from_secs(10), || probe_is_direct(&scene, &a))
        .context("after the kubelet's restart")?;
    scene.stop_pod(&a)
}

fn probe_is_direct(scene: &Scene, pod: &sluice_e2e::lab::pod::Pod) -> Result<()> {
    for ip in &pod.facts.ips {
        let dial = Dial::to(SocketAddr::new(*ip, PORT)).recognised().patience(Duration::from_secs(3));
        let client = dial.ask_in(&scene.node().netns, &scene.node().kubelet, "GET /healthz")?;
        ensure!(client.answer.is_direct(), "a probe to {ip} is proxied: {:?}", client.answer);
    }
    Ok(())
}
