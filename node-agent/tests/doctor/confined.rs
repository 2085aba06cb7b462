//! Kernels that refuse this or that: a seccomp filter says what they would.

use crate::node::Node;
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, compile_from_json,
};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A system call, and which values of which arguments (from 0) are meant; none are all.
pub type Call<'a> = (i64, &'a [(u8, u64)]);

fn arch() -> TargetArch {
    std::env::consts::ARCH.try_into().unwrap()
}

/// A kernel that answers one call with this error.
pub fn refusing((call, arguments): Call<'_>, errno: i32) -> BpfProgram {
    let equal = |(index, value): &(u8, u64)| SeccompCondition::new(*index, Dword, Eq, *value).unwrap();
    let conditions: Vec<_> = arguments.iter().map(equal).collect();
    let rules = if conditions.is_empty() { Vec::new() } else { vec![SeccompRule::new(conditions).unwrap()] };
    let refused = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new([(call, rules)].into(), SeccompAction::Allow, refused, arch());
    filter.unwrap().try_into().unwrap()
}

/// The profile that the chart ships for the agent's container.
pub fn charts_profile() -> BpfProgram {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/chart/files/seccomp.json");
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let allowed = profile["syscalls"][0]["names"].as_array().unwrap();
    let filter: Vec<_> = allowed.iter().map(|name| json!({"syscall": name})).collect();
    let errno = profile["defaultErrnoRet"].clone();
    let ours =
        json!({"main": {"mismatch_action": {"errno": errno}, "match_action": "allow", "filter": filter}});
    compile_from_json(ours.to_string().as_bytes(), arch()).unwrap().remove("main").unwrap()
}

/// The program on a node whose kernel is like that, in a network namespace of its own.
pub fn program(node: &Node, kernel: BpfProgram, args: &[&str]) -> Output {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces, and so needs root");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    command.args(["doctor", "--host-root"]).arg(node.path("")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Of the thread alone, which ends, and of what it starts.
    let started = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        apply_filter(&kernel).unwrap();
        command.spawn()
    });
    started.join().unwrap().unwrap().wait_with_output().unwrap()
}
