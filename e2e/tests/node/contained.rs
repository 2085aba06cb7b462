//! The agent as its DaemonSet runs it: in pid, mount and cgroup namespaces of its own, with the host's /proc beside its
//! own, `/proc/sys` and the cgroups read-only, and no capability that it does not need.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::agent::{Agent, PATIENCE};
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::{NodeStatus, State};
use sluice_shared::contract::{MARK_ZTUNNEL, MODE_AMBIENT};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What the DaemonSet adds after `drop: [ALL]`.
const CAPABILITIES: [&str; 4] = ["net_admin", "sys_admin", "sys_ptrace", "net_broadcast"];

/// Runs the agent as a runtime would: `$1` is where the host's /proc goes, `$2` the bounding set, the rest the command.
const CONTAINER: &str = r#"
mount --make-shared /run
exec unshare --pid --mount --cgroup --fork --kill-child --propagation slave -- sh -ec '
    mkdir -p "$1"
    mount --rbind /proc "$1"
    mount -t proc proc /proc
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    for tree in $(grep " - cgroup2 " /proc/self/mountinfo | cut -d " " -f 5); do
        mount -o remount,bind,ro "$tree"
    done
    bounding=$2
    shift 2
    exec setpriv --no-new-privs --inh-caps=-all --bounding-set="$bounding" -- "$@"
' container "$@"
"#;

pub fn contain(agent: &mut Agent, host_proc: &str, without: Option<&str>) -> Result<()> {
    let kept = CAPABILITIES.iter().filter(|capability| Some(**capability) != without);
    let bounding = kept.fold(String::from("-all"), |all, capability| format!("{all},+{capability}"));
    agent.wrap("sh", &["-ec", CONTAINER, "container", host_proc, &bounding])
}

/// A node whose agent is contained. The pods: `a` of the mesh, `b` outside of it.
fn scene(outer: &Outer, name: &str, without: Option<&str>) -> Result<Scene> {
    let host_proc = format!("/run/sluice-host-proc/{name}");
    let changes = json!({"backend": "nftables", "hostProc": host_proc});
    let members = [Member::meshed("a"), Member::plain("b")];
    let mut scene = Scene::build(outer, name, &Plan::default(), &changes, &members)?;
    contain(&mut scene.agents[0], &host_proc, without)?;
    Ok(scene)
}

/// Nothing is given up for it: every choice is the one that an agent with all privileges makes, pods are captured at
/// their start and live, forged marks are not trusted, the kubelet's probes pass, and drift is heard and healed.
pub fn everything_works(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "contained", None)?;
    let _outside = Echo::start(&scene.world.outside, "outside", PORT)?;
    // Legacy tables are read where there are some, by other calls than nf_tables.
    let foreign = ["-t", "nat", "-N", "FOREIGN"];
    scene.node().netns.must("iptables-legacy", &foreign)?;
    scene.start()?;
    let (a, b) = (scene.start_pod("a")?, scene.start_pod("b")?);
    for netns in [&a.netns, &b.netns] {
        netns.must("iptables-legacy", &foreign)?;
        netns.must("ip6tables-legacy", &foreign)?;
    }
    let servers = [&a, &b].map(|pod| Echo::start(&pod.netns, &pod.facts.name, PORT));
    for server in &servers {
        ensure!(server.is_ok(), "{server:?}");
    }
    scene.agents[0].until(&a.facts, State::Enabled)?;
    all_chosen(&scene.agents[0].status()?)?;
    captured(&scene, &a)?;
    let outside = Scene::path(&b.netns, a.ip(true)?)?;
    ensure!(outside == Path::Proxied, "b → a is {outside:?}");

    // Live, there and back.
    scene.relabel(&b, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&b.facts, State::Enabled)?;
    captured(&scene, &b)?;
    scene.relabel(&b, None)?;
    scene.agents[0].until(&b.facts, State::Outside)?;

    // Over a restart: the pods' namespaces are found again by their paths.
    scene.agents[0].stop()?;
    scene.agents[0].start()?;
    let again = scene.agents[0].until(&a.facts, State::Enabled)?;
    all_chosen(&scene.agents[0].status()?)?;
    a.netns.must("nft", &["delete", "table", "inet", "sluice"])?;
    eventually("the drift to be healed", Duration::from_secs(10), || {
        let now = scene.agents[0].until(&a.facts, State::Enabled)?;
        ensure!(now.drift_repairs > again.drift_repairs, "nothing is repaired");
        captured(&scene, &a)
    })?;
    scene.stop_pod(&a)?;
    scene.ztunnels[0].must_be_content()
}

/// Without any one of them something is missing, and the agent says what.
pub fn every_capability_is_needed(outer: &Outer) -> Result<()> {
    for (capability, missing) in [
        ("net_admin", "bring lo up"),
        ("sys_admin", "make a network namespace"),
        ("sys_ptrace", "mark guard"),
        ("net_broadcast", "drift watch"),
    ] {
        let name = format!("without-{}", capability.replace('_', "-"));
        let mut scene = scene(outer, &name, Some(capability))?;
        scene.agents[0].launch_only()?;
        let said = eventually("the agent to serve or to end", PATIENCE, || {
            let agent = &mut scene.agents[0];
            if agent.running()?.ended()?.is_some() {
                return Ok(agent.last_words());
            }
            let status = agent.status()?;
            ensure!(status.serving, "it does neither");
            let choices =
                [("mark guard", "on", status.mark_guard), ("drift watch", "events", status.drift_watch)];
            let lacking = choices.into_iter().filter(|(_, wanted, choice)| choice.chosen != *wanted);
            Ok(lacking.map(|(what, _, choice)| format!("{what}: {}", choice.because)).collect())
        })?;
        println!("without {capability}: {said}");
        ensure!(said.contains(missing), "without {capability} the agent does not miss {missing}: {said}");
        let named = format!("CAP_{}", capability.to_uppercase());
        ensure!(capability == "net_admin" || said.contains(&named), "{named} is not named: {said}");
    }
    Ok(())
}

fn all_chosen(status: &NodeStatus) -> Result<()> {
    let choices = [
        ("nftables", &status.backend),
        ("snat", &status.probes),
        ("on", &status.mark_guard),
        ("events", &status.drift_watch),
    ];
    for (wanted, choice) in choices {
        ensure!(choice.chosen == wanted, "{} and not {wanted}: {}", choice.chosen, choice.because);
    }
    let ztunnel = status.ztunnels.first().context("no ztunnel is connected")?;
    ensure!(ztunnel.pid > 0 && ztunnel.cgroup.is_some(), "ztunnel is not known: {ztunnel:?}");
    Ok(())
}

/// What leaves the pod is captured, with ztunnel's mark too; the kubelet gets in.
fn captured(scene: &Scene, pod: &Pod) -> Result<()> {
    let out = Scene::path(&pod.netns, IpAddr::from(OUTSIDE_V4))?;
    ensure!(out == Path::Proxied, "{} → outside is {out:?}", pod.name());
    let forged = Dial::to(SocketAddr::new(OUTSIDE_V4.into(), PORT)).recognised().mark(MARK_ZTUNNEL.value);
    let forged = forged.ask_in(&pod.netns, &pod.cgroup, "let me pass")?;
    ensure!(!forged.answer.is_direct(), "a forged mark passes from {}", pod.name());
    let node = scene.node();
    for ip in &pod.facts.ips {
        let probe = Dial::to(SocketAddr::new(*ip, PORT)).recognised();
        let probe = probe.ask_in(&node.netns, &node.kubelet, "GET /healthz")?;
        ensure!(probe.answer.is_direct(), "the kubelet's probe of {} at {ip} is captured", pod.name());
    }
    Ok(())
}
