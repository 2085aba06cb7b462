//! What it costs to redirect one pod: our netlink batch, `iptables-restore`, and one exec a rule, side by side.
//!
//! All three install the same plan (rules, policy rule and route, both families) into fresh namespaces. They take
//! turns, so that a busy machine is busy for all of them. The time is that of one call, with entering and leaving the
//! namespace; the processor time includes the programs that are run. Prints a table and writes
//! `target/reports/bench-install.json`. Needs root; runs in private namespaces of its own.
//!
//! `SLUICE_BENCH_NAMESPACES` says how many namespaces each gets (50).

use iptables::IPTables;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::json;
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_agent::kernel::linux::iptables::Variant;
use sluice_agent::kernel::{Kernel, Netns};
use sluice_shared::enroll::Overrides;
use sluice_shared::ids::Family;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::op::{KernelOp, RestoreScript};
use sluice_shared::plan::{self, Hold, MarkGuard, Older, ProbeDoor, RedirectConfig, RedirectPlan, Stage};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

/// Set for the process that is already inside.
const INSIDE: &str = "SLUICE_BENCH_INSIDE";
const NAMESPACES: &str = "SLUICE_BENCH_NAMESPACES";

type Install = Box<dyn Fn(&LinuxKernel, &Netns)>;

/// A way to get the rules in.
struct Method {
    name: &'static str,
    install: Install,
    samples: Vec<Sample>,
}

/// One pod.
#[derive(Clone, Copy)]
struct Sample {
    wall_ms: f64,
    cpu_ms: f64,
}

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    assert!(nix::unistd::geteuid().is_root(), "this benchmark needs root");
    // `cargo test` runs benchmarks too, without the argument that `cargo bench` gives: once is enough then.
    let default = if std::env::args().any(|argument| argument == "--bench") { 50 } else { 1 };
    let count = std::env::var(NAMESPACES).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let mut methods = methods();
    let kernel = LinuxKernel::new(Path::new("/proc/self/ns/net")).expect("own namespace");
    kernel.use_iptables(Variant::Default);
    for turn in 0..=count {
        for method in &mut methods {
            let sample = measure(&kernel, method);
            // The first turn loads modules and programs.
            if turn > 0 {
                method.samples.push(sample);
            }
        }
    }
    report(&methods, count);
    ExitCode::SUCCESS
}

/// Runs this program again in private namespaces.
fn inside() -> ExitCode {
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .arg(std::env::current_exe().expect("own path"))
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) makes the namespaces");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn plan() -> RedirectPlan {
    let config = RedirectConfig { dns_capture: true, ipv6: true };
    let stage = Stage::Redirect(Older::None);
    plan::redirect(&Overrides::default(), &config, stage, ProbeDoor::Closed, MarkGuard::Off, Hold::Drop)
}

fn methods() -> Vec<Method> {
    let plan = plan();
    let batch = lower(Backend::Nftables, Step::Enroll { plan: &plan, live: false });
    let restore = lower(Backend::Iptables, Step::Enroll { plan: &plan, live: false });
    let (mut scripts, mut others) = (Vec::new(), Vec::new());
    for op in restore.clone() {
        match op {
            KernelOp::IptablesRestore(script) => scripts.push(script),
            op => others.push(op),
        }
    }
    let method = |name, install: Install| Method { name, install, samples: Vec::new() };
    vec![
        method(
            "netlink batch (nftables backend)",
            Box::new(move |kernel, netns| kernel.run(netns, &batch).expect("nftables")),
        ),
        method(
            "iptables-restore (iptables backend)",
            Box::new(move |kernel, netns| kernel.run(netns, &restore).expect("iptables-restore")),
        ),
        method(
            "one exec a rule",
            Box::new(move |kernel, netns| {
                kernel.run(netns, &others).expect("rule and route");
                scripts.iter().for_each(|script| one_exec_a_rule(netns, script));
            }),
        ),
    ]
}

/// The same rules as a script's, each by a program of its own.
fn one_exec_a_rule(netns: &Netns, script: &RestoreScript) {
    let own = File::open("/proc/thread-self/ns/net").expect("own namespace");
    setns(netns, CloneFlags::CLONE_NEWNET).expect("enter");
    let cmd = if script.family == Family::V4 { "iptables" } else { "ip6tables" };
    let program = IPTables { cmd, has_check: true, has_wait: true, is_numeric: false };
    let mut table = "";
    for line in script.text.lines() {
        let done = if let Some(name) = line.strip_prefix('*') {
            table = name;
            continue;
        } else if let Some(chain) = line.strip_prefix(':') {
            program.new_chain(table, chain.split(' ').next().unwrap_or_default())
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            // The crate takes an apostrophe within a quoted comment for the end of it.
            program.append(table, chain, &rule.replace('\'', ""))
        } else {
            continue;
        };
        done.unwrap_or_else(|error| panic!("{table} {line}: {error}"));
    }
    setns(own, CloneFlags::CLONE_NEWNET).expect("come back");
}

fn measure(kernel: &LinuxKernel, method: &Method) -> Sample {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip (iproute2)");
        assert!(up.success(), "lo does not come up");
        File::open("/proc/thread-self/ns/net").expect("open the namespace")
    };
    let file = thread::spawn(open).join().expect("make a namespace");
    let netns = kernel.adopt(file.into()).expect("adopt");
    let (begun, used) = (Instant::now(), cpu_ms());
    (method.install)(kernel, &netns);
    let sample = Sample { wall_ms: begun.elapsed().as_secs_f64() * 1e3, cpu_ms: cpu_ms() - used };
    let seen = kernel.observe(&netns).expect("observe");
    assert!(seen.rules.is_some() && seen.policy_rule && seen.local_route, "{}: {seen:?}", method.name);
    sample
}

/// Processor time of this process and of the programs that it ran, in ms.
fn cpu_ms() -> f64 {
    let ms = |time: TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .iter()
        .map(|who| getrusage(*who).expect("getrusage"))
        .map(|usage| ms(usage.user_time()) + ms(usage.system_time()))
        .sum()
}

/// The value that `share` of all samples do not exceed.
fn percentile(samples: &[Sample], share: f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|sample| sample.wall_ms).collect();
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1]
}

fn mean_cpu(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.cpu_ms).sum::<f64>() / samples.len() as f64
}

fn report(methods: &[Method], count: usize) {
    let ours = &methods[0].samples;
    let (base, base_cpu) = (percentile(ours, 0.5), mean_cpu(ours));
    println!("Installing one pod's rules, {count} fresh namespaces each (ms)");
    println!("{:36} {:>9} {:>9} {:>9} {:>8} {:>8}", "", "p50", "p99", "CPU", "p50 x", "CPU x");
    let mut rows = Vec::new();
    for Method { name, samples, .. } in methods {
        let (p50, p99, cpu) = (percentile(samples, 0.5), percentile(samples, 0.99), mean_cpu(samples));
        let (times, cpu_times) = (p50 / base, cpu / base_cpu);
        println!("{name:36} {p50:9.3} {p99:9.3} {cpu:9.3} {times:8.1} {cpu_times:8.1}");
        rows.push(json!({
            "method": name, "p50Ms": p50, "p99Ms": p99, "cpuMs": cpu, "p50Ratio": times, "cpuRatio": cpu_times,
        }));
    }
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/reports");
    fs::create_dir_all(&directory).expect("make target/reports");
    let report = json!({ "namespaces": count, "methods": rows });
    let text = serde_json::to_string_pretty(&report).expect("numbers are JSON");
    fs::write(directory.join("bench-install.json"), text + "\n").expect("write the report");
}
