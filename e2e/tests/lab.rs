//! The lab itself, with real CNI plugins and, but for the last test, without Sluice: what the other tests stand on.

use anyhow::{Context, Result, ensure};
use sluice_e2e::lab::capture::Capture;
use sluice_e2e::lab::cni::CniError;
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::PodSpec;
use sluice_e2e::lab::process::binary;
use sluice_e2e::lab::sockets;
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::lab::topology::{Families, OUTSIDE_V4, OUTSIDE_V6, Plan, Primary, World};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_e2e::lab::traffic::dns::{self, NAME_SERVER_SAYS, NameServer};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    suite::run(
        "lab",
        vec![
            test("pods_of_two_nodes_and_the_outside_reach_each_other", everybody_reaches_everybody),
            test("a_bridge_with_four_plugins_attaches_a_pod", bridge),
            test("a_failed_add_is_an_error_object_and_leaves_nothing", failed_add),
            test("a_capture_sees_payload_and_opening_syns", capture),
            test("a_client_is_where_it_says", client_control),
            test("load_counts_what_fails", load),
            test("a_name_server_answers_and_remembers", names),
            test("a_remade_cgroup_has_another_id", cgroups),
            test("a_killed_lab_leaves_nothing_running_and_the_next_one_tidies_up", killed),
        ],
    );
}

fn plain() -> Plan {
    Plan { chained: false, ..Plan::default() }
}

fn everybody_reaches_everybody(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "reach", &Plan { nodes: 2, ..plain() })?;
    let one = world.nodes[0].start_pod(&PodSpec::new("demo", "one"))?;
    let two = world.nodes[1].start_pod(&PodSpec::new("demo", "two"))?;
    let _servers = [Echo::start(&two.netns, "two", 8080)?, Echo::start(&world.outside, "outside", 8080)?];
    for v4 in [true, false] {
        let outside: IpAddr = if v4 { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() };
        for (to, name) in [(two.ip(v4)?, "two"), (outside, "outside")] {
            let answer = Dial::to(SocketAddr::new(to, 8080)).ask(&one.netns, "hello there")?;
            ensure!(answer.server == name && answer.said == "hello there", "{answer:?}");
            ensure!(answer.seen.ip() == one.ip(v4)? && answer.is_direct(), "{answer:?}");
        }
        let from_host = Dial::to(SocketAddr::new(two.ip(v4)?, 8080)).ask(&world.nodes[1].netns, "hello")?;
        ensure!(from_host.server == "two", "{from_host:?}");
    }
    world.nodes[0].runner.check(&world.nodes[0].list, &one.attachment)?;
    world.nodes[0].stop_pod(&one)?;
    ensure!(!one.netns.path().exists(), "the namespace is still there");
    let leases = std::fs::read_dir(world.nodes[0].dir.join("leases/reach-node1"))?;
    let left: Vec<_> =
        leases.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).collect();
    ensure!(left.is_empty(), "leases are left: {left:?}");
    Ok(())
}

fn bridge(outer: &Outer) -> Result<()> {
    let plan = Plan { primary: Primary::Bridge, families: Families::V4, ..plain() };
    let world = World::build(outer, "bridge", &plan)?;
    let node = &world.nodes[0];
    let pod = node.start_pod(&PodSpec::new("demo", "a"))?;
    let value = pod.netns.run(|| Ok(std::fs::read_to_string("/proc/sys/net/core/somaxconn")?))?;
    ensure!(value.trim() == "500", "tuning set somaxconn to {value:?}");
    let _echo = Echo::start(&pod.netns, "a", 80)?;
    let answer = Dial::to(SocketAddr::new(pod.ip(true)?, 80)).ask(&node.netns, "x")?;
    ensure!(answer.server == "a");
    node.stop_pod(&pod)
}

fn failed_add(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "failed", &plain())?;
    let node = &world.nodes[0];
    let mut pod = node.sandbox(&PodSpec::new("demo", "a"))?;
    pod.attachment.netns = "/run/netns/nobody".into();
    let why = node.runner.add(&node.list, &pod.attachment).err().context("ADD without a netns went well")?;
    ensure!(matches!(why, CniError::Plugin { .. }), "{why}");
    node.runner.del(&node.list, &pod.attachment)?;
    node.runner.del(&node.list, &pod.attachment)?;
    let why = node.runner.check(&node.list, &pod.attachment).err().context("CHECK without ADD went well")?;
    ensure!(matches!(why, CniError::List { .. }), "{why}");
    ensure!(node.runner.versions("ptp")?.contains(&"1.0.0".to_owned()));
    Ok(())
}

fn capture(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "capture", &plain())?;
    let node = &world.nodes[0];
    let (a, b) = (node.start_pod(&PodSpec::new("demo", "a"))?, node.start_pod(&PodSpec::new("demo", "b"))?);
    let _echo = Echo::start(&b.netns, "b", 8080)?;
    let capture = Capture::start(&node.netns, &b.host_link()?, &node.logs())?;
    for v4 in [true, false] {
        Dial::to(SocketAddr::new(b.ip(v4)?, 8080)).ask(&a.netns, &format!("secret-{v4}"))?;
    }
    let packets = capture.stop()?;
    ensure!(packets.contain(b"secret-true") && packets.contain(b"secret-false"));
    ensure!(!packets.contain(b"secret-maybe"));
    ensure!(packets.syns_to(8080) == 2 && packets.syns_to(15008) == 0, "{} SYNs", packets.syns_to(8080));
    ensure!(packets.tls_to(8080) == (0, 2), "{:?}", packets.tls_to(8080));
    Ok(())
}

fn client_control(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "client", &plain())?;
    let node = &world.nodes[0];
    let pod = node.start_pod(&PodSpec::new("demo", "a"))?;
    let _echo = Echo::start(&pod.netns, "a", 8080)?;
    let to = SocketAddr::new(pod.ip(true)?, 8080);
    let dial = Dial { device: Some(pod.host_link()?), ..Dial::to(to).port(16_001).mark(0x1) };
    let client = dial.ask_in(&node.netns, &node.kubelet, "probe")?;
    ensure!(client.answer.seen.port() == 16_001, "{:?}", client.answer);
    ensure!(sockets::listening(&pod.netns)? == [8080]);
    ensure!(sockets::taken_at(&pod.netns, client.answer.local)?.is_none());
    let held = sockets::sockets(&pod.netns)?;
    ensure!(held.iter().any(|socket| socket.remote == client.answer.local), "{held:?}");
    let procs = std::fs::read_to_string(node.kubelet.dir().join("cgroup.procs"))?;
    ensure!(procs.lines().count() == 1, "{procs:?}");
    drop(client);
    let refused = Dial::to(SocketAddr::new(pod.ip(true)?, 9)).ask_in(&node.netns, &node.kubelet, "x");
    ensure!(refused.is_err_and(|why| format!("{why:#}").contains("refused")));
    Ok(())
}

fn load(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "load", &plain())?;
    let node = &world.nodes[0];
    let (a, b) = (node.start_pod(&PodSpec::new("demo", "a"))?, node.start_pod(&PodSpec::new("demo", "b"))?);
    let echo = Echo::start(&b.netns, "b", 8080)?;
    let targets = vec![SocketAddr::new(b.ip(true)?, 8080), SocketAddr::new(b.ip(false)?, 8080)];
    let begun = Instant::now();
    let load = Load::start(&a.netns, LoadPlan { targets, live: 10, ..LoadPlan::default() })?;
    std::thread::sleep(Duration::from_secs(1));
    let whole = load.tally();
    whole.must_be_whole()?;
    ensure!(whole.begun(begun..Instant::now(), Path::Direct) >= 10, "{whole}");
    ensure!(whole.live.iter().all(|long| long.pings > 0), "{whole}");
    drop(echo);
    std::thread::sleep(Duration::from_millis(500));
    let tally = load.stop()?;
    ensure!(tally.live.iter().all(|long| long.lost.is_some()), "{tally}");
    ensure!(tally.new.iter().any(|short| short.outcome.is_err()), "{tally}");
    ensure!(tally.must_be_whole().is_err());
    Ok(())
}

fn names(outer: &Outer) -> Result<()> {
    let world = World::build(outer, "names", &plain())?;
    let pod = world.nodes[0].start_pod(&PodSpec::new("demo", "a"))?;
    let server = NameServer::start(&world.outside)?;
    for address in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let found = dns::resolve(&pod.netns, address, "who.example", true, Duration::from_secs(5))?;
        ensure!(found == [IpAddr::from(NAME_SERVER_SAYS)], "{found:?}");
    }
    let asked = server.asked();
    ensure!(asked.len() == 2 && asked[0].0.ip() == pod.ip(true)?, "{asked:?}");
    ensure!(asked.iter().all(|(_, name)| name == "who.example"), "{asked:?}");
    Ok(())
}

fn cgroups(outer: &Outer) -> Result<()> {
    let cgroup = outer.cgroups().cgroup("remade")?;
    let before = cgroup.id()?;
    cgroup.remake()?;
    ensure!(cgroup.id()? != before);
    Ok(())
}

/// A lab within the lab is killed outright.
fn killed(_outer: &Outer) -> Result<()> {
    let mut lab = Command::new(binary("sluice-lab")?);
    let say = "echo standing in $SLUICE_LAB_CGROUP; sleep 1000";
    let mut lab = lab.args(["shell", "--", "sh", "-c", say]).stdout(Stdio::piped()).spawn()?;
    let stdout = BufReader::new(lab.stdout.take().context("no stdout")?);
    let mut said = stdout.lines().map_while(Result::ok);
    let cgroup = said.find_map(|line| line.strip_prefix("standing in ").map(PathBuf::from));
    let cgroup = cgroup.context("the inner lab did not stand")?;
    let populated = || std::fs::read_to_string(cgroup.join("cgroup.events"));
    ensure!(populated()?.contains("populated 1"), "nothing runs in the inner lab's cgroups");
    lab.kill()?;
    lab.wait()?;
    eventually("everything in it to end", Duration::from_secs(10), || {
        ensure!(populated()?.contains("populated 0"), "something still runs");
        Ok(())
    })?;
    let next = Command::new(binary("sluice-lab")?).args(["shell", "--", "true"]).output()?;
    ensure!(next.status.success(), "{next:?}");
    ensure!(!cgroup.exists(), "left behind: {}", cgroup.display());
    Ok(())
}
