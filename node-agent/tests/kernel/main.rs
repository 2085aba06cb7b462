//! The kernel seam against a real kernel: real rules, real packets, in network namespaces of their own.
//!
//! `main` runs itself again inside private network, mount and pid namespaces, so that nothing here can touch the
//! machine's own, and everything is gone at the end however it ends. Needs root; without it every test fails.

mod adopt;
mod backends;
mod child;
mod cookies;
mod examine;
mod fixture;
mod host;
mod istio;
mod lifecycle;
mod listeners;
mod live;
mod migration;
mod nested;
mod observe;
mod packets;
mod seam;
mod watch;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::{Command, ExitCode};

/// Set for the process that is already inside.
const INSIDE: &str = "SLUICE_KERNEL_TESTS_INSIDE";

fn main() -> ExitCode {
    if child::is_task() {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials()).exit_code();
    }
    if std::env::var_os(INSIDE).is_some() {
        fixture::private_run_directory();
        return libtest_mimic::run(&arguments, trials()).exit_code();
    }
    let program = std::env::current_exe().expect("a running test knows its own path");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status();
    match status {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| u8::try_from(code).unwrap_or(1))),
        Err(error) => {
            eprintln!("cannot run the kernel tests inside namespaces with unshare (util-linux): {error}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |module: &str, tests: &[(&str, fn())]| {
        for (name, test) in tests {
            let test = *test;
            let run = move || {
                if !nix::unistd::geteuid().is_root() {
                    return Err(Failed::from("the kernel tests need root"));
                }
                test();
                Ok(())
            };
            trials.push(Trial::test(format!("{module}::{name}"), run));
        }
    };
    add("seam", seam::TESTS);
    add("lifecycle", lifecycle::TESTS);
    add("packets", packets::TESTS);
    add("live", live::TESTS);
    add("migration", migration::TESTS);
    add("observe", observe::TESTS);
    add("watch", watch::TESTS);
    add("backends", backends::TESTS);
    add("host", host::TESTS);
    add("cookies", cookies::TESTS);
    add("nested", nested::TESTS);
    add("adopt", adopt::TESTS);
    add("examine", examine::TESTS);
    trials
}
