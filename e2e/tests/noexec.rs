//! Invariant 7: on the nftables backend, the agent executes no program to add and remove a pod.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::{Member, Scene};
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::lab::topology::{Families, Plan};
use sluice_shared::admin::State;
use sluice_shared::contract::MODE_AMBIENT;

const PODS: usize = 100;

fn main() {
    suite::run(
        "noexec",
        vec![
            test("a_hundred_adds_and_dels_execute_nothing", |outer: &Outer| traced(outer, "nftables", false)),
            // What the first test relies on: the trace does see programs.
            test("the_trace_sees_the_iptables_backend", |outer: &Outer| traced(outer, "iptables", true)),
        ],
    );
}

fn traced(outer: &Outer, backend: &str, programs: bool) -> Result<()> {
    let plan = Plan { families: Families::V4, ..Plan::default() };
    let members = [Member::plain("live"), Member::meshed("a")];
    let name = format!("noexec-{backend}");
    let mut scene = Scene::build(outer, &name, &plan, &json!({"backend": backend}), &members)?;
    let trace = scene.node().dir.join("trace");
    let file = trace.display().to_string();
    scene.agent().wrap("strace", &["-f", "-qq", "-e", "trace=execve,execveat", "-o", &file])?;
    scene.start().context("start the agent under strace(1)")?;
    let live = scene.start_pod("live")?;
    scene.relabel(&live, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&live.facts, State::Enabled)?;
    let count = if programs { 1 } else { PODS };
    for _ in 0..count {
        let pod = scene.node().start_pod(&members[1].spec)?;
        scene.node().stop_pod(&pod)?;
    }
    scene.relabel(&live, None)?;
    scene.agents[0].until(&live.facts, State::Outside)?;
    scene.agent().stop()?;
    let executed = std::fs::read_to_string(&trace).context("read the trace")?;
    let executed: Vec<&str> = executed.lines().filter(|line| line.contains("exec")).collect();
    let itself = executed.iter().filter(|line| line.contains("sluice-agent")).count();
    ensure!(itself == 1, "the trace should begin with the agent's own start: {executed:?}");
    let others = executed.len() - itself;
    ensure!((others > 0) == programs, "{others} programs were executed: {executed:?}");
    println!("{count} ADDs and DELs, one live pod in and out: {others} programs executed");
    Ok(())
}
