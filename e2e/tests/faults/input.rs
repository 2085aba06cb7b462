//! Bad input gets a clear error, and nothing is lost or half done.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::process::binary;
use sluice_e2e::lab::rude;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use sluice_shared::wire::{MAX_MESSAGE, WIRE_VERSION};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

fn scene(outer: &Outer, name: &str) -> Result<(Scene, Pod, Echo)> {
    let members = [Member::meshed("a"), Member::meshed("b")];
    let mut scene = Scene::build(outer, name, &Plan::default(), &json!({}), &members)?;
    let echo = Echo::start(&scene.world.outside, "outside", PORT)?;
    scene.start()?;
    let a = scene.start_pod("a")?;
    Ok((scene, a, echo))
}

/// The agent lives, `a` is captured, and a new pod is too.
fn all_is_well(scene: &mut Scene, a: &Pod) -> Result<()> {
    scene.agent().until_serving()?;
    scene.agents[0].until(&a.facts, State::Enabled)?;
    ensure!(Scene::path(&a.netns, OUTSIDE_V4.into())? == Path::Proxied, "a is not captured");
    let b = scene.start_pod("b")?;
    ensure!(Scene::path(&b.netns, OUTSIDE_V4.into())? == Path::Proxied, "b is not captured");
    scene.stop_pod(&b)?;
    scene.ztunnels[0].must_be_content()
}

/// The mistake is named with its line and field; the last good file stays in force.
pub fn pods_file(outer: &Outer) -> Result<()> {
    let (mut scene, a, _echo) = scene(outer, "podsfile")?;
    let path = scene.agents[0].pods.path().to_path_buf();
    let good = std::fs::read_to_string(&path)?;
    let log = scene.agents[0].log_file();
    for (damaged, named) in [
        (good.replacen("uid: uid-mesh-a", "uid: ../../etc/passwd", 1), "uid"),
        (good.replacen("name: a", "name: Not/DNS", 1), "name"),
        (good.replacen("hostNetwork: false", "hostNetwork: perhaps", 1), "hostNetwork"),
        (good.replacen("hostNetwork:", "hostNetwerk:", 1), "hostNetwerk"),
        (good[..good.len() / 2].to_owned(), "line"),
        (String::new(), "empty"),
    ] {
        ensure!(damaged != good, "the file was not damaged for {named}");
        let before = std::fs::read_to_string(&log)?.len();
        std::fs::write(&path, &damaged)?;
        eventually(&format!("the agent to complain of {named}"), Duration::from_secs(10), || {
            let said = std::fs::read_to_string(&log)?;
            let new: Vec<&str> = said[before..]
                .lines()
                .filter(|line| line.contains("WARN") || line.contains("ERROR"))
                .collect();
            ensure!(new.iter().any(|line| line.contains(named)), "it said {new:?}");
            Ok(())
        })?;
        scene.agents[0].until(&a.facts, State::Enabled)?;
    }
    std::fs::write(&path, &good)?;
    all_is_well(&mut scene, &a)
}

pub fn messages(outer: &Outer) -> Result<()> {
    let (mut scene, a, _echo) = scene(outer, "messages")?;
    let socket = scene.node().socket("agent.sock");
    let netns = std::fs::File::open(a.netns.path())?;
    let not_netns = std::fs::File::open("/proc/self/status")?;
    let host = std::fs::File::open(scene.node().netns.path())?;
    let add = |version: u32| {
        json!({"version": version, "verb": "add", "containerId": "rude", "ifname": "eth0", "netns": "/run/netns/x",
               "pod": {"namespace": "mesh", "name": "rude"}, "uid": "uid-mesh-b", "ips": ["10.77.1.200"]})
        .to_string()
    };
    let (good, newer) = (add(WIRE_VERSION), add(WIRE_VERSION + 1));
    let (one, two) = ([netns.as_fd()], [netns.as_fd(), netns.as_fd()]);
    let too_long = format!("{good}{}", " ".repeat(MAX_MESSAGE));
    let cases: [(&str, &[u8], &[std::os::fd::BorrowedFd<'_>]); 9] = [
        ("cut", &good.as_bytes()[..good.len() / 2], &one),
        ("not JSON", b"\x00\xff\xfe hello", &[]),
        ("another version", newer.as_bytes(), &one),
        ("no descriptor", good.as_bytes(), &[]),
        ("two descriptors", good.as_bytes(), &two),
        ("a descriptor that is no netns", good.as_bytes(), &[not_netns.as_fd()]),
        ("the host's netns", good.as_bytes(), &[host.as_fd()]),
        ("an unknown verb", br#"{"version":1,"verb":"explode"}"#, &[]),
        (
            "hostile names",
            br#"{"version":1,"verb":"del","containerId":"../../x","ifname":"a/b\u0000","uid":"../.."}"#,
            &[],
        ),
    ];
    for (what, message, fds) in cases {
        let answer = rude::say(&socket, message, fds).with_context(|| what.to_owned())?;
        let said: Value =
            serde_json::from_slice(&answer).with_context(|| format!("{what}: no answer but {answer:?}"))?;
        println!("{what}: {said}");
        if what != "hostile names" {
            ensure!(said["result"] == "error", "{what}: {said}");
            ensure!(said["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{what}: no reason: {said}");
        }
    }
    // Too long to be read whole: an answer or a hang-up, but no crash.
    let answer = rude::say(&socket, too_long.as_bytes(), &one)?;
    println!("too long: {}", String::from_utf8_lossy(&answer));
    ensure!(!answer.starts_with(br#"{"result":"ok""#), "a message that is too long was taken");
    all_is_well(&mut scene, &a)
}

/// The sockets' mode keeps them out; should it be lost, their credentials do.
pub fn not_root(outer: &Outer) -> Result<()> {
    let (mut scene, a, _echo) = scene(outer, "notroot")?;
    let program = scene.node().dir.join("sluice-lab");
    std::fs::copy(binary("sluice-lab")?, &program)?;
    let status = json!({"version": WIRE_VERSION, "verb": "status"}).to_string();
    let as_nobody = |socket: &str| -> Result<std::process::Output> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&program);
        command.arg("say").arg("--socket").arg(scene.node().socket(socket)).arg(&status);
        scene.node().netns.output(&mut command, b"")
    };
    let asked = as_nobody("agent.sock")?;
    ensure!(!asked.status.success(), "the socket lets everybody in: {asked:?}");
    for socket in ["agent.sock", "ztunnel.sock"] {
        let path = scene.node().socket(socket);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666))?;
        std::fs::set_permissions(path.parent().context("no parent")?, PermissionsExt::from_mode(0o755))?;
        let asked = as_nobody(socket)?;
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        ensure!(
            !said.contains(r#""result":"ok""#),
            "{socket}: somebody who is not root was answered: {said}"
        );
    }
    all_is_well(&mut scene, &a)
}

pub fn ztunnel_socket(outer: &Outer) -> Result<()> {
    let (mut scene, a, _echo) = scene(outer, "zdsgarbage")?;
    let socket = scene.node().socket("ztunnel.sock");
    for garbage in [b"".as_slice(), b"\xff\xff\xff\xff", b"{}", &[0x0a; 4096]] {
        // An answer, a hang-up or silence: what matters is what comes after.
        let _ = std::thread::scope(|scope| {
            let said = scope.spawn(|| rude::say(&socket, garbage, &[]));
            said.join()
        });
    }
    all_is_well(&mut scene, &a)
}
