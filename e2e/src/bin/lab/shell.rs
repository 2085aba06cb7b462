//! A shell in a standing lab.

use anyhow::{Context, Result};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::process::binary;
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::dns::NameServer;
use sluice_e2e::lab::traffic::echo::Echo;
use std::process::Command;

/// Sets the lab up, says what is where, and runs `command` (a shell if empty) on the node.
pub fn run(outer: &Outer, command: &[std::ffi::OsString]) -> Result<i32> {
    outer.resolve_with(OUTSIDE_V4.into())?;
    let members = [Member::meshed("a"), Member::meshed("b"), Member::plain("c")];
    let mut scene = Scene::build(outer, "lab", &Plan::default(), &json!({}), &members)?;
    let _names = NameServer::start(&scene.world.outside)?;
    scene.start()?;
    let mut servers = vec![Echo::start(&scene.world.outside, "outside", PORT)?];
    let mut pods = Vec::new();
    for member in &members {
        let pod = scene.start_pod(&member.spec.facts.name)?;
        servers.push(Echo::start(&pod.netns, pod.name(), PORT)?);
        pods.push(pod);
    }
    let node = scene.node();
    println!("A node, with the agent and a ztunnel, and pods that real CNI plugins attached:\n");
    for pod in &pods {
        let facts = &pod.facts;
        let ips: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
        println!(
            "  {:6} {:6} {:32} ip netns exec {} bash",
            facts.namespace,
            facts.name,
            ips.join(" "),
            pod.netns.name()
        );
    }
    println!("  outside       {OUTSIDE_V4:32} ip netns exec {} bash", scene.world.outside.name());
    println!("  fabric        {:32} ip netns exec {} bash\n", "172.30.0.1", scene.world.fabric.name());
    println!("This shell is in the node's network namespace. Echo servers listen on port {PORT} everywhere.");
    println!("  {}  (edit it: the agent acts on it)", scene.agents[0].pods.path().display());
    println!("  {}  (logs)", node.logs().display());
    println!("  sluicectl --socket {} status\n", node.socket("admin.sock").display());
    let dir = binary("sluicectl")?.parent().context("a program without a directory")?.to_path_buf();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = match command.split_first() {
        Some((program, args)) => {
            let mut shell = Command::new(program);
            shell.args(args);
            shell
        }
        None => Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())),
    };
    shell
        .env("SLUICE_LAB_CGROUP", outer.cgroups().root())
        .env("PATH", path)
        .env("SLUICE_ADMIN_SOCKET", node.socket("admin.sock"));
    let status = node.netns.run(|| Ok(shell.status()?)).context("run the shell")?;
    Ok(status.code().unwrap_or(1))
}
