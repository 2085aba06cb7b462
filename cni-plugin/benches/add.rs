//! What one ADD costs: 1000 real runs of the binary against an agent that answers at once, and as many runs of VERSION,
//! which does nothing but start. Run by `make bench-plugin` on the static binary.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "shares the tests' runtime and agent, and uses half of them"
)]

#[path = "../tests/plugin/runtime.rs"]
mod runtime;
#[path = "../tests/plugin/scripted.rs"]
mod scripted;

use nix::sys::resource::{UsageWho, getrusage};
use runtime::{Call, Node, Sandbox};
use scripted::{Agent, Script};
use std::time::Duration;

const RUNS: u32 = 1000;
const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"0a:58:0a:00:00:05","name":"veth12ab34cd"},{"mac":"0a:58:0a:00:00:05","name":"eth0","sandbox":"/var/run/netns/cni-0"}],"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1","interface":1}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;

fn main() {
    let (node, sandbox) = (Node::new(), Sandbox::new());
    let _agent = Agent::start(&node, Script::ok("captured"));
    let conf = node.conf("1.0.0", Some(RESULT));
    println!("{RUNS} runs each        p50 ms   p99 ms   CPU ms/run   (wall: from spawn to exit)");
    measure("VERSION (start only)", || Call::new("VERSION", ""));
    measure("ADD", || Call::new("ADD", conf.clone()).netns(&sandbox));
}

fn measure(name: &str, call: impl Fn() -> Call) {
    let before = cpu();
    let mut walls: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let outcome = call().run();
            assert!(outcome.success, "{outcome:?}");
            outcome.took
        })
        .collect();
    let per_run = (cpu() - before) * 1e3 / f64::from(RUNS);
    walls.sort_unstable();
    let at = |share: usize| walls[walls.len() * share / 100].as_secs_f64() * 1e3;
    println!("{name:<20} {:>7.2}  {:>7.2}  {per_run:>11.2}", at(50), at(99));
}

/// The CPU time of all children that have ended, in seconds.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
