//! A node whose pods istio-cni captured becomes ours under load: nothing is uncaptured, nothing is cut.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path};
use sluice_shared::admin::State;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

const IPTABLES: [&str; 2] = [
    include_str!("../../../shared/tests/istio-cni/pod4.restore"),
    include_str!("../../../shared/tests/istio-cni/pod6.restore"),
];
const NATIVE: &str = include_str!("../../../shared/tests/istio-cni/pod.nft");
/// Where istio-cni's agent listens; the lab has a `/run` of its own.
const RUN_DIR: &str = "/run/istio-cni";
const PODS: [&str; 3] = ["a", "b", "c"];

/// `by` is how istio-cni programmed the pods: `legacy`, `nft` or `native`.
pub fn taken_over(outer: &Outer, by: &'static str) -> Result<()> {
    let members = PODS.map(Member::meshed);
    let name = format!("migration-{by}");
    let mut scene = Scene::build(outer, &name, &Plan::default(), &json!({}), &members)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    // ztunnel comes to serve the pods by an agent that is then forgotten.
    scene.start()?;
    let pods = PODS.iter().map(|name| scene.start_pod(name)).collect::<Result<Vec<Pod>>>()?;
    let _servers =
        pods.iter().map(|pod| Echo::start(&pod.netns, pod.name(), PORT)).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        scene.agents[0].until(&pod.facts, State::Enabled)?;
    }
    scene.agents[0].stop()?;
    for pod in &pods {
        let path = pod.netns.path().display().to_string();
        scene.agents[0].pods.edit(&pod.facts.uid, |facts| facts.netns = Some(path))?;
    }
    pods.iter().try_for_each(|pod| as_istio_cni_leaves_it(pod, by))?;
    std::fs::remove_dir_all(scene.node().dir.join("run"))?;
    scene.node().netns.must("sh", &["-c", "nft delete table inet sluice || true"])?;

    let loads = pods.iter().map(|pod| load(pod, &pods)).collect::<Result<Vec<Load>>>()?;
    let began = Instant::now();
    std::fs::create_dir_all(RUN_DIR)?;
    let socket = format!("{RUN_DIR}/pluginevent.sock");
    let _ = std::fs::remove_file(&socket);
    let istio_cni = UnixListener::bind(&socket)?;
    scene.agents[0].start()?;
    for pod in &pods {
        scene.agents[0].until_says(&pod.facts, State::Pending, "istio-cni runs on this node")?;
        ensure!(traces(pod)? > 0, "{} is not touched while istio-cni lives", pod.name());
    }
    let shown = scene.agents[0].ctl(&["status"]).unwrap_or_else(|error| error.to_string());
    ensure!(shown.contains("istio-cni runs on this node"), "{shown}");
    std::thread::sleep(Duration::from_secs(2));

    drop(istio_cni);
    for pod in &pods {
        scene.agents[0].until(&pod.facts, State::Enabled)?;
        ensure!(traces(pod)? == 0, "{} has something of istio-cni's left", pod.name());
    }
    let says = format!("{} pods taken over", pods.len());
    eventually("the status to tell it", Duration::from_secs(5), || {
        let found = scene.agents[0].status()?.predecessor;
        ensure!(found.as_ref().is_some_and(|found| found.because.contains(&says)), "{found:?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let ended = Instant::now();
    for load in loads {
        let tally = load.stop()?;
        println!("{tally}");
        tally.must_be_whole()?;
        let direct = tally.begun(began..ended, Path::Direct);
        ensure!(direct == 0, "{direct} connections were not captured: {tally}");
        let proxied = tally.begun(began..ended, Path::Proxied);
        ensure!(proxied > 20, "only {proxied} connections: no load");
    }
    scene.ztunnels[0].must_be_content()
}

/// Theirs first, then ours off: ztunnel and conntrack carry on what they carry.
fn as_istio_cni_leaves_it(pod: &Pod, by: &str) -> Result<()> {
    if by == "native" {
        feed(pod, "nft", &["-f", "-"], NATIVE)?;
    } else {
        for (family, script) in ["", "6"].iter().zip(IPTABLES) {
            feed(pod, &format!("ip{family}tables-{by}-restore"), &["--noflush"], script)?;
        }
    }
    pod.netns.must("nft", &["delete", "table", "inet", "sluice"])?;
    ensure!(traces(pod)? > 0, "istio-cni's rules are in {}", pod.name());
    Ok(())
}

fn feed(pod: &Pod, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let output = pod.netns.output(Command::new(program).args(arguments), input.as_bytes())?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// How much of istio-cni's there is.
fn traces(pod: &Pod) -> Result<usize> {
    let look = "nft list ruleset; iptables-legacy-save; ip6tables-legacy-save";
    Ok(pod
        .netns
        .must("sh", &["-c", look])?
        .lines()
        .filter(|line| line.to_lowercase().contains("istio"))
        .count())
}

/// To the outside and to the other pods, by both families.
fn load(pod: &Pod, all: &[Pod]) -> Result<Load> {
    let others =
        all.iter().filter(|other| other.name() != pod.name()).flat_map(|other| other.facts.ips.clone());
    let targets =
        others.chain([OUTSIDE_V4.into(), OUTSIDE_V6.into()]).map(|ip| SocketAddr::new(ip, PORT)).collect();
    let plan = LoadPlan { targets, live: 24, new_per_second: 20, ..LoadPlan::default() };
    Load::start(&pod.netns, plan)
}
