//! The plugin and the agent together, as a runtime uses them: versions, repetitions, and what is missing.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_e2e::lab::cni::list::{VERSIONS, stdin_of};
use sluice_e2e::lab::cni::{CniError, NetworkList};
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::{Pod, PodSpec};
use sluice_e2e::lab::scene::{BACKENDS, MESH, Member, Scene};
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::lab::topology::{Plan, Primary};
use sluice_shared::admin::State;
use sluice_shared::cni::code;
use std::time::Duration;

fn main() {
    let mut tests = vec![
        test("chained_after_a_bridge_with_four_plugins", after_a_bridge),
        test("check_status_and_gc_ask_the_agent", check_status_gc),
        test("twenty_adds_at_once", twenty),
        test("a_wrong_netns_is_refused", wrong_netns),
        test("a_pod_that_comes_again_is_the_new_one", comes_again),
    ];
    for backend in BACKENDS {
        let name = format!("{backend}::del_succeeds_whatever_is_missing_and_leaves_nothing");
        tests.push(test(name, move |outer: &Outer| del(outer, backend)));
    }
    for version in VERSIONS {
        tests.push(test(format!("prev_result_of_{version}_is_passed_on"), move |outer: &Outer| {
            passed_on(outer, version)
        }));
    }
    suite::run("cni", tests);
}

fn scene(outer: &Outer, name: &str, plan: &Plan) -> Result<Scene> {
    scene_with(outer, name, plan, &json!({}))
}

fn scene_with(outer: &Outer, name: &str, plan: &Plan, changes: &Value) -> Result<Scene> {
    let members = [Member::meshed("a"), Member::meshed("b"), Member::plain("c")];
    let mut scene = Scene::build(outer, name, plan, changes, &members)?;
    scene.start()?;
    Ok(scene)
}

/// Our own entry alone, as a list of `version`.
fn ours_alone(scene: &Scene, version: &str) -> Result<NetworkList> {
    let ours = scene.node().list.plugins.last().context("an empty chain")?;
    let list = json!({"cniVersion": version, "name": "alone", "plugins": [ours]});
    Ok(NetworkList::parse(&list.to_string())?)
}

fn passed_on(outer: &Outer, version: &str) -> Result<()> {
    let name = format!("v{}", version.replace('.', ""));
    let scene = scene(outer, &name, &Plan::default())?;
    let pod = scene.node().sandbox(&PodSpec::new(MESH, "a"))?;
    pod.netns.ip("link set lo up\n")?;
    // Strange and legal: order, spacing, numbers, keys that nobody knows.
    let ip = if version.starts_with("0.") { r#""version":"4", "#.to_owned() } else { String::new() };
    let result = format!(
        r#"{{ "cniVersion":"{version}","ips":[{{{ip}"address":"10.77.1.2/24","gateway":"10.77.1.1", "interface":0}}],
            "interfaces":[{{"name":"eth0","sandbox":"{}"}}], "dns":{{}},"x-unknown":{{"n":1.50,"s":"\u00e9"}} }}"#,
        pod.attachment.netns
    );
    let list = ours_alone(&scene, version)?;
    let stdin = stdin_of(&list, &list.plugins[0], &pod.attachment.capabilities, &[("prevResult", &result)]);
    let output = scene.node().runner.exec_raw("sluice-cni", "ADD", &pod.attachment, stdin.as_bytes())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "ADD: {said} {}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.trim() == result.trim(), "prevResult was changed:\n{result}\nbecame\n{said}");
    scene.agents[0].until(&pod.facts, State::Enabled)?;
    let output = scene.node().runner.exec_raw("sluice-cni", "DEL", &pod.attachment, stdin.as_bytes())?;
    ensure!(output.status.success() && output.stdout.is_empty(), "DEL: {output:?}");
    forgotten(&scene, &pod)
}

fn forgotten(scene: &Scene, pod: &Pod) -> Result<()> {
    eventually(&format!("the agent to let go of {}", pod.name()), Duration::from_secs(10), || {
        let status = scene.agents[0].status()?;
        let found = status.pods.iter().find(|found| found.uid == pod.facts.uid);
        ensure!(found.is_none_or(|found| found.netns.is_none()), "{found:?}");
        Ok(())
    })
}

fn after_a_bridge(outer: &Outer) -> Result<()> {
    let plan = Plan { primary: Primary::Bridge, ..Plan::default() };
    let mut scene = scene(outer, "chain", &plan)?;
    let a = scene.start_pod("a")?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    scene.stop_pod(&a)?;
    scene.ztunnels[0].must_be_content()
}

/// Invariant 9.
fn del(outer: &Outer, backend: &str) -> Result<()> {
    let changes = json!({"backend": backend, "probes": "snat"});
    let mut scene = scene_with(outer, &format!("del-{backend}"), &Plan::default(), &changes)?;
    let (a, b) = (scene.start_pod("a")?, scene.start_pod("b")?);
    for pod in [&a, &b] {
        ensure!(on_the_host(&scene, pod, backend)?, "the host's table does not name {}", pod.name());
    }
    let node = &scene.world.nodes[0];
    // The netns is gone, though its path was given.
    a.netns.remove()?;
    node.runner.del(&node.list, &a.attachment).context("the netns is gone")?;
    forgotten(&scene, &a)?;
    let mut again = a.attachment.clone();
    again.netns.clear();
    node.runner.del(&node.list, &again).context("a second time, without a netns and a result")?;
    // Never added.
    let mut never = b.attachment.clone();
    never.container_id = "never-added".into();
    node.runner.del(&node.list, &never).context("a container that was never added")?;
    scene.agents[0].until(&b.facts, State::Enabled).context("and another one of the same pod stays")?;
    scene.agents[0].kill()?;
    node.runner.del(&node.list, &b.attachment).context("the agent is dead")?;
    node.runner.del(&node.list, &b.attachment).context("the agent is dead, a second time")?;
    b.netns.remove()?;
    scene.agents[0].start()?;
    forgotten(&scene, &b)?;
    eventually("the host's table to be clear of both", Duration::from_secs(10), || {
        for pod in [&a, &b] {
            ensure!(!on_the_host(&scene, pod, backend)?, "it names {}", pod.name());
        }
        Ok(())
    })
}

/// Whether our rules of the host name one of a pod's addresses.
fn on_the_host(scene: &Scene, pod: &Pod, backend: &str) -> Result<bool> {
    let host = &scene.node().netns;
    let ours = if backend == "nftables" {
        // Without a pod the table may be gone altogether.
        let tables = host.must("nft", &["list", "tables"])?;
        let ours = tables.contains("inet sluice");
        if ours { host.must("nft", &["list", "table", "inet", "sluice"])? } else { String::new() }
    } else {
        let saved = host.must("iptables-save", &[])? + &host.must("ip6tables-save", &[])?;
        saved.lines().filter(|line| line.contains("SLUICE")).map(|line| format!("{line}\n")).collect()
    };
    let words: Vec<&str> = ours.split(|c: char| c.is_whitespace() || ",/{}".contains(c)).collect();
    Ok(pod.facts.ips.iter().any(|ip| words.contains(&ip.to_string().as_str())))
}

fn check_status_gc(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "verbs", &Plan::default())?;
    let (a, b) = (scene.start_pod("a")?, scene.start_pod("b")?);
    let node = &scene.world.nodes[0];
    node.runner.check(&node.list, &a.attachment).context("CHECK of a captured pod")?;
    let modern = ours_alone(&scene, "1.1.0")?;
    node.runner.status(&modern).context("STATUS with all there")?;
    ensure!(node.runner.versions("sluice-cni")? == VERSIONS, "{:?}", node.runner.versions("sluice-cni")?);
    // The runtime knows a only: b's DEL was lost.
    node.runner.gc(&modern, std::slice::from_ref(&a.attachment)).context("GC")?;
    forgotten(&scene, &b)?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    drop(std::mem::take(&mut scene.ztunnels));
    eventually("CHECK to see that ztunnel is gone", Duration::from_secs(10), || {
        let why = node.runner.check(&node.list, &a.attachment).err().context("CHECK went well")?;
        ensure!(why.code() == Some(code::NOT_CAPTURED), "{why}");
        Ok(())
    })?;
    // ztunnel is a pod of this node: a node that were NotReady without it could not start it.
    node.runner.status(&modern).context("STATUS without a ztunnel")?;
    scene.agent().kill()?;
    let node = scene.node();
    node.runner.status(&modern).context("STATUS without an agent")?;
    let why =
        node.runner.check(&node.list, &a.attachment).err().context("CHECK without an agent went well")?;
    ensure!(why.code() == Some(code::TRY_AGAIN_LATER), "{why}");
    Ok(())
}

/// F19, as far as two cores go: none gets another's answer. Many chains at once queue for the kernel's one lock on
/// links and routes, which another program of the machine may hold for long; so an ADD that is too late is tried again,
/// as a kubelet does.
fn twenty(outer: &Outer) -> Result<()> {
    let members: Vec<Member> = (0..20).map(|index| Member::meshed(&format!("p{index}"))).collect();
    let mut scene = Scene::build(outer, "twenty", &Plan::default(), &json!({}), &members)?;
    scene.start()?;
    let pods = std::thread::scope(|scope| {
        let scene = &scene;
        let adds: Vec<_> = members
            .iter()
            .map(|member| {
                scope.spawn(move || {
                    eventually("an ADD in time", Duration::from_secs(60), || {
                        scene.world.nodes[0].start_pod(&member.spec)
                    })
                })
            })
            .collect();
        let join = |add: std::thread::ScopedJoinHandle<'_, Result<Pod>>| {
            add.join().map_err(|_| anyhow::anyhow!("an ADD panicked"))?
        };
        adds.into_iter().map(join).collect::<Result<Vec<Pod>>>()
    })?;
    let status = scene.agents[0].status()?;
    for pod in &pods {
        let found = status.pods.iter().find(|found| found.uid == pod.facts.uid);
        let found = found.with_context(|| format!("the agent does not know {}", pod.name()))?;
        ensure!(found.state == State::Enabled, "{} is {}: {}", pod.name(), found.state, found.reason);
        ensure!(found.netns == Some(pod.netns.id()?), "{} is paired with another namespace", pod.name());
    }
    for pod in &pods {
        scene.stop_pod(pod)?;
    }
    scene.ztunnels[0].must_be_content()
}

fn wrong_netns(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "wrong", &Plan::default())?;
    let list = ours_alone(&scene, "1.0.0")?;
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.77.1.2/24"}]}).to_string();
    let pod = scene.node().sandbox(&PodSpec::new(MESH, "a"))?;
    for (netns, what) in [
        ("/run/netns/nobody", "missing"),
        ("/proc/self/status", "a file"),
        ("/run", "a directory"),
        ("/proc/self/ns/uts", "another kind of namespace"),
    ] {
        let mut to = pod.attachment.clone();
        to.netns = netns.into();
        let stdin = stdin_of(&list, &list.plugins[0], &to.capabilities, &[("prevResult", &result)]);
        let output = scene.node().runner.exec_raw("sluice-cni", "ADD", &to, stdin.as_bytes())?;
        let said: Value = serde_json::from_slice(&output.stdout).with_context(|| what.to_owned())?;
        ensure!(
            !output.status.success() && said["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
            "{what}: {said}"
        );
        println!("{what}: {said}");
    }
    scene.agent().until_serving()
}

/// A kubelet makes a new sandbox for the same pod: the late DEL of the old one must not touch the new one.
fn comes_again(outer: &Outer) -> Result<()> {
    let mut scene = scene(outer, "again", &Plan::default())?;
    let first = scene.start_pod("a")?;
    let second = scene.node().start_pod(&PodSpec::new(MESH, "a"))?;
    let status = scene.agents[0].until(&second.facts, State::Enabled)?;
    ensure!(status.netns == Some(second.netns.id()?), "the old sandbox is still the pod's");
    let stopped = scene.node().stop_pod(&first);
    ensure!(stopped.is_ok() || stopped.as_ref().is_err_and(|why| why.downcast_ref::<CniError>().is_some()));
    stopped?;
    let status = scene.agents[0].until(&second.facts, State::Enabled)?;
    ensure!(status.netns == Some(second.netns.id()?), "the late DEL took the new sandbox away");
    scene.ztunnels[0].must_be_content()
}
