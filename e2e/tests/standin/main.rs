//! The ztunnel stand-in, between two pods whose redirection is written by hand, with a scripted node agent.
//!
//! Needs root, `unshare`, `ip` and `nft`, and fails without them. Everything happens in namespaces of its own.

mod agent;
mod apps;
mod lab;
mod protocol;
mod serving;
mod traffic;
mod wire;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::{Command, ExitCode};

/// Set within the private namespaces.
const INSIDE: &str = "STANDIN_TEST_INSIDE";

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return isolate();
    }
    let arguments = Arguments::from_args();
    let trials = [traffic::TESTS, protocol::TESTS, serving::TESTS].concat();
    let trials =
        trials.into_iter().map(|(name, test)| Trial::test(name, move || on_a_thread(test))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test, and its name.
type Test = (&'static str, fn());

/// Runs this program again where it can harm nothing.
fn isolate() -> ExitCode {
    let this = std::env::current_exe().expect("the path of this program");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) is needed");
    if status.success() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "the tests of the stand-in failed, or could not run: they need root for namespaces of their own"
    );
    ExitCode::FAILURE
}

/// Each test enters namespaces with its own thread, which is not used again.
fn on_a_thread(test: fn()) -> Result<(), Failed> {
    std::thread::spawn(test).join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default().into()
    })
}
