//! How the kubelet's probes reach an application, by the node's setting.

use crate::contained;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use sluice_e2e::lab::agent::PATIENCE;
use sluice_e2e::lab::cgroup::Cgroup;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{Node, Plan};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A port of the application that the kubelet is not told to probe.
const UNDECLARED: u16 = 8081;

/// A node with a pod `a` that declares [`PORT`] for probes, and `c`, a client outside the mesh.
struct Setting {
    scene: Scene,
    a: Pod,
    c: Pod,
    _servers: [Echo; 2],
}

fn setting(outer: &Outer, backend: &str, probes: &str) -> Result<Setting> {
    let changes = json!({"backend": backend, "probes": probes});
    let scene = built(outer, &format!("probe-{probes}-{backend}"), &changes)?;
    started(scene, probes)
}

fn built(outer: &Outer, name: &str, changes: &Value) -> Result<Scene> {
    let mut declared = Member::meshed("a");
    declared.spec.facts.probe_ports = vec![PORT];
    Scene::build(outer, name, &Plan::default(), changes, &[declared, Member::plain("c")])
}

fn started(mut scene: Scene, expected: &str) -> Result<Setting> {
    scene.start()?;
    let chosen = scene.agents[0].status()?.probes;
    ensure!(chosen.chosen == expected, "probes are {}: {}", chosen.chosen, chosen.because);
    let (a, c) = (scene.start_pod("a")?, scene.start_pod("c")?);
    let servers = [Echo::start(&a.netns, "a", PORT)?, Echo::start(&a.netns, "a", UNDECLARED)?];
    scene.agents[0].until(&a.facts, State::Enabled)?;
    Ok(Setting { scene, a, c, _servers: servers })
}

fn from_node(node: &Node, cgroup: &Cgroup, to: SocketAddr) -> Result<Path> {
    let client = Dial::to(to).recognised().ask_in(&node.netns, cgroup, "GET /healthz")?;
    Ok(if client.answer.is_direct() { Path::Direct } else { Path::Proxied })
}

/// By the node's addresses: every process of the node reaches a declared port, and nobody anything else.
pub fn source(outer: &Outer, backend: &str) -> Result<()> {
    let Setting { mut scene, a, c, _servers } = setting(outer, backend, "source")?;
    let node = scene.node();
    for ip in &a.facts.ips {
        for (cgroup, who) in [(&node.kubelet, "the kubelet"), (&node.other, "another process of the node")] {
            for (port, expected) in [(PORT, Path::Direct), (UNDECLARED, Path::Proxied)] {
                let to = SocketAddr::new(*ip, port);
                let path = from_node(node, cgroup, to)?;
                ensure!(path == expected, "{who} → {to} is {path:?}");
            }
        }
        let path = Scene::path(&c.netns, *ip)?;
        ensure!(path == Path::Proxied, "c → a's declared port at {ip} is {path:?}");
    }
    scene.ztunnels[0].must_be_content()
}

/// Nobody has a way past ztunnel, the kubelet neither.
pub fn none(outer: &Outer, backend: &str) -> Result<()> {
    let Setting { mut scene, a, _servers, .. } = setting(outer, backend, "none")?;
    let node = scene.node();
    for ip in &a.facts.ips {
        for cgroup in [&node.kubelet, &node.other] {
            let path = from_node(node, cgroup, SocketAddr::new(*ip, PORT))?;
            ensure!(path == Path::Proxied, "{} → {ip} is {path:?}", cgroup.path);
        }
    }
    scene.ztunnels[0].must_be_content()
}

/// By a secret in the SYN, with the agent as its DaemonSet runs it: the kubelet reaches declared ports, and nobody else
/// anything, with no rule on the host. A kubelet that starts again in another cgroup goes on.
pub fn cookie(outer: &Outer) -> Result<()> {
    let host_proc = "/run/sluice-host-proc/probe-cookie";
    let changes = json!({"backend": "nftables", "probes": "cookie", "hostProc": host_proc});
    let mut scene = built(outer, "probe-cookie", &changes)?;
    contained::contain(&mut scene.agents[0], host_proc, None)?;
    let Setting { mut scene, a, c, _servers } = started(scene, "cookie")?;
    nobody_but_the_kubelet(&scene, &a, &c)?;
    let rules = scene.node().netns.must("nft", &["list", "ruleset"])?;
    ensure!(!rules.contains("sluice"), "rules on the host: {rules}");
    scene.node().kubelet.remake()?;
    eventually("the new kubelet's probes to pass", PATIENCE, || probe(scene.node(), &a))?;
    nobody_but_the_kubelet(&scene, &a, &c)?;
    scene.ztunnels[0].must_be_content()
}

fn nobody_but_the_kubelet(scene: &Scene, a: &Pod, c: &Pod) -> Result<()> {
    let node = scene.node();
    for ip in &a.facts.ips {
        for (cgroup, port, expected) in [
            (&node.kubelet, PORT, Path::Direct),
            (&node.kubelet, UNDECLARED, Path::Proxied),
            (&node.other, PORT, Path::Proxied),
            (&node.other, UNDECLARED, Path::Proxied),
        ] {
            let path = from_node(node, cgroup, SocketAddr::new(*ip, port))?;
            ensure!(path == expected, "{} → {ip}:{port} is {path:?}", cgroup.path);
        }
        let path = Scene::path(&c.netns, *ip)?;
        ensure!(path == Path::Proxied, "c → a's declared port at {ip} is {path:?}");
    }
    Ok(())
}

/// Where cookies do not work, what `auto` takes is used, and status says why: here, iptables cannot compare them.
pub fn no_cookie(outer: &Outer) -> Result<()> {
    let changes = json!({"backend": "iptables", "probes": "cookie"});
    let setting = started(built(outer, "probe-no-cookie", &changes)?, "snat")?;
    let because = setting.scene.agents[0].status()?.probes.because;
    ensure!(because.contains("cookie does not work here: iptables"), "{because}");
    probe(setting.scene.node(), &setting.a)
}

/// Where the kubelet's cgroup is not to be had, neither that nor `snat` works: the node's own addresses do.
pub fn no_cgroup(outer: &Outer) -> Result<()> {
    let changes = json!({"backend": "nftables", "probes": "cookie", "kubeletCgroup": "/sluice-nowhere"});
    let setting = started(built(outer, "probe-no-cgroup", &changes)?, "source")?;
    let because = setting.scene.agents[0].status()?.probes.because;
    ensure!(because.contains("cookie does not work here: find the cgroup /sluice-nowhere"), "{because}");
    probe(setting.scene.node(), &setting.a)
}

/// The kubelet probes on while the agent is stopped, killed and started: all of it reaches the application directly.
pub fn over_a_restart(outer: &Outer, backend: &str, probes: &str) -> Result<()> {
    let Setting { mut scene, a, _servers, .. } = setting(outer, backend, probes)?;
    let over = AtomicBool::new(false);
    let Scene { world, agents, .. } = &mut scene;
    let (node, agent) = (&world.nodes[0], &mut agents[0]);
    let probed = std::thread::scope(|scope| -> Result<usize> {
        let probing = scope.spawn(|| {
            let mut probed = 0;
            while !over.load(Ordering::Relaxed) {
                probe(node, &a).with_context(|| format!("after {probed} probes that were direct"))?;
                probed += 1;
            }
            Ok(probed)
        });
        let restarts = (|| {
            std::thread::sleep(Duration::from_millis(300));
            agent.stop()?;
            std::thread::sleep(Duration::from_millis(500));
            agent.start()?;
            agent.until(&a.facts, State::Enabled)?;
            agent.kill()?;
            std::thread::sleep(Duration::from_millis(500));
            agent.start()?;
            agent.until(&a.facts, State::Enabled)?;
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let probed = probing.join().map_err(|_| anyhow!("the kubelet panicked"))?;
        restarts.and(probed)
    })?;
    println!("{probed} rounds of probes over two restarts of the agent");
    ensure!(probed > 5, "only {probed} rounds of probes");
    let other = from_node(node, &node.other, SocketAddr::new(a.ip(true)?, PORT))?;
    ensure!(other == Path::Proxied, "another process of the node is {other:?}");
    Ok(())
}

fn probe(node: &Node, pod: &Pod) -> Result<()> {
    for ip in pod.facts.ips.iter().copied() {
        let ip: IpAddr = ip;
        let path = from_node(node, &node.kubelet, SocketAddr::new(ip, PORT))?;
        ensure!(path == Path::Direct, "a probe to {ip} is {path:?}");
    }
    Ok(())
}
