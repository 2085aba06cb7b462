//! The probe self-test: with `probes: auto` the node goes the first way that really passes, whatever stands in the others';
//! the kubelet's probes pass all the while, and nothing of what was tried is left.

use crate::contained;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use sluice_e2e::lab::agent::{Agent, PATIENCE};
use sluice_e2e::lab::cgroup::Cgroup;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::netns::Netns;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{Node, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_e2e::matrix::describe::Fault;
use sluice_e2e::matrix::faults;
use sluice_shared::admin::State;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longer than a test of every strategy takes, and the former one's end.
const CHANGED: Duration = Duration::from_secs(60);
/// What our rules in pods and on the host say of what is being tried.
const TRIAL: &str = "the agent's own connection";

/// What stands in the way, at every link of a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Obstacle {
    /// One of the support matrix.
    Known(Fault),
    /// TCP options that nobody knows are taken out.
    StripsOptions,
    /// Nothing that the node begins reaches pods.
    Deaf,
}

/// Where probes go, in one setting: what `auto` takes, and what its self-test says of that.
pub struct Case {
    pub name: &'static str,
    pub backend: &'static str,
    pub obstacles: &'static [Obstacle],
    pub chosen: &'static str,
    pub verdict: &'static str,
}

const fn case(
    name: &'static str,
    backend: &'static str,
    obstacles: &'static [Obstacle],
    chosen: &'static str,
    verdict: &'static str,
) -> Case {
    Case { name, backend, obstacles, chosen, verdict }
}

use Fault::{AdmitsNodeOnly, BypassesConntrack, DropsLinkLocal, RefusesRules};
use Obstacle::{Deaf, Known, StripsOptions};

pub const CASES: [Case; 9] = [
    case("auto_takes_cookie_where_nothing_is_in_its_way", "nftables", &[], "cookie", "works"),
    case("auto_takes_snat_where_options_are_stripped", "nftables", &[StripsOptions], "snat", "works"),
    case(
        "auto_takes_source_where_options_are_stripped_and_link_local_is_dropped",
        "nftables",
        &[StripsOptions, Known(DropsLinkLocal)],
        "source",
        "works",
    ),
    case(
        "auto_takes_source_where_options_are_stripped_and_the_host_refuses_rules",
        "nftables",
        &[StripsOptions, Known(RefusesRules)],
        "source",
        "works",
    ),
    case("auto_takes_snat_with_iptables", "iptables", &[], "snat", "works"),
    case(
        "auto_takes_source_where_link_local_is_dropped",
        "iptables",
        &[Known(DropsLinkLocal)],
        "source",
        "works",
    ),
    case(
        "auto_takes_source_where_conntrack_is_bypassed",
        "iptables",
        &[Known(BypassesConntrack)],
        "source",
        "works",
    ),
    case(
        "auto_takes_source_where_only_the_node_is_admitted",
        "iptables",
        &[Known(AdmitsNodeOnly)],
        "source",
        "works",
    ),
    case("where_no_way_passes_it_is_said_and_nothing_changes", "nftables", &[Deaf], "snat", "blocked"),
];

/// A node with pods `a` and `b` that declare [`PORT`], captured before their links have what is in the way.
struct Setting {
    scene: Scene,
    pods: Vec<Pod>,
    _servers: Vec<Echo>,
    _refusal: Option<faults::Refusal>,
}

fn setting(
    outer: &Outer,
    name: &str,
    backend: &str,
    probes: &str,
    obstacles: &[Obstacle],
) -> Result<Setting> {
    let members = ["a", "b"].map(|name| {
        let mut member = Member::meshed(name);
        member.spec.facts.probe_ports = vec![PORT];
        member
    });
    let changes = json!({"backend": backend, "probes": probes});
    let mut scene = Scene::build(outer, name, &Plan::default(), &changes, &members)?;
    let refuses = obstacles.contains(&Known(RefusesRules));
    let refusal = refuses.then(|| faults::refusing_rules(&scene.node().netns)).transpose()?;
    scene.start()?;
    let mut pods = Vec::new();
    for name in ["a", "b"] {
        let pod = scene.start_pod(name)?;
        // It must not ask the pod before what is in the way is there.
        scene.agents[0].hang(true)?;
        let put = obstacles.iter().try_for_each(|obstacle| stand(*obstacle, scene.node(), &pod));
        scene.agents[0].hang(false)?;
        put?;
        pods.push(pod);
    }
    let servers = pods.iter().map(|pod| Echo::start(&pod.netns, pod.name(), PORT)).collect::<Result<_>>()?;
    for pod in &pods {
        scene.agents[0].until(&pod.facts, State::Enabled)?;
    }
    Ok(Setting { scene, pods, _servers: servers, _refusal: refusal })
}

/// Puts something in the way at a pod's link.
fn stand(obstacle: Obstacle, node: &Node, pod: &Pod) -> Result<()> {
    let link = pod.host_link()?;
    let hook = |rule: &str| {
        let name = pod.name();
        format!(
            "table netdev way_{name} {{ chain out_{} {{ type filter hook egress device \"{link}\" priority 0; {rule}; }}\n}}\n",
            if obstacle == Deaf { "deaf" } else { "options" }
        )
    };
    match obstacle {
        Known(fault) => {
            let gateways = node.netns.must("ip", &["-o", "address", "show", "dev", &link])?;
            let own = gateways.split_whitespace().filter_map(|word| word.split('/').next()?.parse().ok());
            let own: BTreeSet<IpAddr> = own.chain([node.v4.into(), node.v6.into()]).collect();
            faults::at_link(fault, &node.netns, &link, pod.name(), &own)
        }
        StripsOptions => nft(&node.netns, &hook("reset tcp option 254")),
        Deaf => nft(&node.netns, &hook("tcp flags & (fin | syn | rst | ack) == syn drop")),
    }
}

fn nft(netns: &Netns, text: &str) -> Result<()> {
    let output = netns.output(std::process::Command::new("nft").args(["-f", "-"]), text.as_bytes())?;
    ensure!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn from_node(node: &Node, cgroup: &Cgroup, to: SocketAddr) -> Result<Path> {
    let client = Dial::to(to).recognised().ask_in(&node.netns, cgroup, "GET /healthz")?;
    Ok(if client.answer.is_direct() { Path::Direct } else { Path::Proxied })
}

fn probe(node: &Node, pods: &[Pod]) -> Result<()> {
    for ip in pods.iter().flat_map(|pod| &pod.facts.ips) {
        let path = from_node(node, &node.kubelet, SocketAddr::new(*ip, PORT))?;
        ensure!(path == Path::Direct, "a probe to {ip} is {path:?}");
    }
    Ok(())
}

/// Waits until a self-test has said so, and pods have changed over.
fn until(agent: &Agent, chosen: &str, verdict: &str) -> Result<String> {
    eventually(&format!("probes by {chosen}, {verdict}"), CHANGED, || {
        let status = agent.status()?;
        let (probes, tested) = (status.probes, status.probe_test);
        let said = format!("{} ({}); {}: {}", probes.chosen, probes.because, tested.chosen, tested.because);
        ensure!(probes.chosen == chosen && tested.chosen == verdict, "it is {said}");
        ensure!(!probes.because.contains("changing over"), "it is {said}");
        Ok(tested.because)
    })
    .map_err(|why| why.context(agent.last_words()))
}

/// Nothing of what was tried is left, in pods or on the host.
fn clean(node: &Node, pods: &[Pod], chosen: &str) -> Result<()> {
    for netns in pods.iter().map(|pod| &pod.netns).chain([&node.netns]) {
        let rules = [("nft", vec!["list", "ruleset"]), ("iptables-save", vec![]), ("ip6tables-save", vec![])];
        for (program, args) in rules {
            let shown = netns.must(program, &args)?;
            ensure!(!shown.contains(TRIAL), "{program}: {shown}");
        }
    }
    let host = node.netns.must("nft", &["list", "ruleset"])?;
    // With a host that refuses rules the table is another's.
    let ours = host.contains("kubelet's own connections");
    ensure!(ours == (chosen == "snat"), "probes by {chosen}; on the host: {host}");
    Ok(())
}

pub fn takes(outer: &Outer, case: &Case) -> Result<()> {
    let Case { name, backend, obstacles, chosen, verdict } = case;
    // Short: sockets' paths have it.
    let number = CASES.iter().position(|known| known.name == *name).unwrap_or(CASES.len());
    let world = format!("selftest-{number}");
    let Setting { scene, pods, _servers, _refusal } = setting(outer, &world, backend, "auto", obstacles)?;
    let (node, agent) = (scene.node(), &scene.agents[0]);
    let said = until(agent, chosen, verdict)?;
    println!("{said}");
    if *verdict == "works" {
        probe(node, &pods)?;
        let to = SocketAddr::new(pods[0].ip(true)?, PORT);
        let other = from_node(node, &node.other, to)?;
        let expected = if *chosen == "source" { Path::Direct } else { Path::Proxied };
        ensure!(other == expected, "another process of the node is {other:?} with {chosen}");
    }
    if *backend == "nftables" {
        clean(node, &pods, chosen)?;
    }
    Ok(())
}

/// The kubelet probes on while the node changes from what the host took to what passes.
pub fn without_a_gap(outer: &Outer) -> Result<()> {
    let over = AtomicBool::new(false);
    let Setting { scene, pods, _servers, _refusal } =
        setting(outer, "selftest-gap", "nftables", "auto", &[])?;
    let (node, agent) = (scene.node(), &scene.agents[0]);
    let probed = std::thread::scope(|scope| -> Result<usize> {
        let probing = scope.spawn(|| {
            let mut probed = 0;
            while !over.load(Ordering::Relaxed) {
                probe(node, &pods).with_context(|| format!("after {probed} rounds that were direct"))?;
                probed += 1;
            }
            Ok(probed)
        });
        let changed = until(agent, "cookie", "works");
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        let probed = probing.join().map_err(|_| anyhow!("the kubelet panicked"))?;
        changed.and(probed)
    })?;
    println!("{probed} rounds of probes");
    ensure!(probed > 20, "only {probed} rounds of probes");
    clean(node, &pods, "cookie")
}

/// An agent that starts again goes on with what was chosen, tests it, and leaves nothing of what was being tried.
pub fn over_a_restart(outer: &Outer) -> Result<()> {
    let setting = setting(outer, "selftest-restart", "nftables", "auto", &[])?;
    let Setting { mut scene, pods, _servers, _refusal } = setting;
    until(&scene.agents[0], "cookie", "works")?;
    for kill in [false, true] {
        if kill {
            scene.agents[0].kill()?;
        } else {
            scene.agents[0].stop()?;
        }
        scene.agents[0].start()?;
        let probes = scene.agents[0].status()?.probes;
        ensure!(
            probes.chosen == "cookie",
            "after a restart probes are {}: {}",
            probes.chosen,
            probes.because
        );
        for pod in &pods {
            scene.agents[0].until(&pod.facts, State::Enabled)?;
        }
        until(&scene.agents[0], "cookie", "works")?;
        probe(scene.node(), &pods)?;
        clean(scene.node(), &pods, "cookie")?;
    }
    Ok(())
}

/// With the namespaces and the few capabilities that its DaemonSet gives it, the agent can try everything.
pub fn in_a_container(outer: &Outer) -> Result<()> {
    let host_proc = "/run/sluice-host-proc/selftest-contained";
    let mut member = Member::meshed("a");
    member.spec.facts.probe_ports = vec![PORT];
    let changes = json!({"backend": "nftables", "probes": "auto", "hostProc": host_proc});
    let mut scene = Scene::build(outer, "selftest-contained", &Plan::default(), &changes, &[member])?;
    contained::contain(&mut scene.agents[0], host_proc, None)?;
    scene.start()?;
    let pods = [scene.start_pod("a")?];
    let _server = Echo::start(&pods[0].netns, "a", PORT)?;
    until(&scene.agents[0], "cookie", "works")?;
    probe(scene.node(), &pods)?;
    clean(scene.node(), &pods, "cookie")
}

/// What the operator chose is tested, told of, and kept.
pub fn of_the_operators_choice(outer: &Outer) -> Result<()> {
    let obstacles = [Known(DropsLinkLocal)];
    let Setting { scene, pods: _pods, _servers, _refusal } =
        setting(outer, "selftest-chosen", "nftables", "snat", &obstacles)?;
    let said = until(&scene.agents[0], "snat", "blocked")?;
    ensure!(said.starts_with("snat does not pass in") && !said.contains("cookie"), "{said}");
    let shown = scene.agents[0].ctl(&["status"])?;
    ensure!(shown.contains("✗ blocked: kubelet probes of captured pods fail"), "{shown}");
    Ok(())
}

/// One pod that breaks what is tried in its own namespace does not bring the node to a way that lets more through.
pub fn of_a_pod_that_lies(outer: &Outer) -> Result<()> {
    let Setting { mut scene, pods, _servers, _refusal } =
        setting(outer, "selftest-liar", "nftables", "auto", &[])?;
    scene.agents[0].stop()?;
    let table = "table inet liar { chain in { type filter hook prerouting priority -400; tcp option 254 exists drop; }\n}\n";
    nft(&pods[0].netns, table)?;
    scene.agents[0].start()?;
    let said = eventually("both pods to be asked", CHANGED, || {
        let said = scene.agents[0].status()?.probe_test;
        ensure!(
            said.because.contains("cookie passes in 1 of 2 pods asked"),
            "{}: {}",
            said.chosen,
            said.because
        );
        Ok(said)
    })?;
    ensure!(said.chosen == "works" && said.because.contains("/a: "), "{}: {}", said.chosen, said.because);
    until(&scene.agents[0], "cookie", "works")?;
    probe(scene.node(), &pods[1..])
}

/// When the host's addresses change it is tested anew, and another way is taken where the former does not pass any more.
pub fn when_the_topology_changes(outer: &Outer) -> Result<()> {
    let Setting { scene, pods, _servers, _refusal } =
        setting(outer, "selftest-topology", "nftables", "auto", &[])?;
    let (node, agent) = (scene.node(), &scene.agents[0]);
    until(agent, "cookie", "works")?;
    pods.iter().try_for_each(|pod| stand(StripsOptions, node, pod))?;
    node.netns.must("ip", &["address", "add", "192.0.2.98/32", "dev", "eth0"])?;
    // The least time between two tests, and then both of them once more.
    std::thread::sleep(PATIENCE);
    until(agent, "snat", "works")?;
    probe(node, &pods)?;
    clean(node, &pods, "snat")
}
