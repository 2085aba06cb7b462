//! The test cluster's application and pause as processes: how they end, and what they exit with. Needs root: pause is
//! tried as the first process of a pid namespace, where signals and orphans are other than elsewhere.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const APP: &str = env!("CARGO_BIN_EXE_sluice-app");
const PAUSE: &str = env!("CARGO_BIN_EXE_sluice-pause");
const PATIENCE: Duration = Duration::from_secs(30);

/// A child that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        until(|| self.0.try_wait().unwrap())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing within {PATIENCE:?}");
        sleep(Duration::from_millis(5));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn serve_ends_well_when_it_is_told_to() {
    let mut app = Process::start(
        Command::new(APP)
            .args(["serve", "--name", "me", "--http", "0", "--tcp", "0"])
            .args(["--grpc", "0", "--udp", "0"]),
    );
    let said: serde_json::Value = serde_json::from_str(&app.line()).unwrap();
    assert_eq!(said["event"], "serving");
    app.signal(Signal::SIGTERM);
    assert!(app.ended().success());
}

#[test]
fn once_and_check_fail_when_nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let status = |arguments: &[&str]| Process::start(Command::new(APP).args(arguments)).ended();
    assert_eq!(status(&["once", "--to", &format!("127.0.0.1:{port}")]).code(), Some(1));
    assert_eq!(status(&["check", "--grpc", &port.to_string()]).code(), Some(1));
    assert!(status(&["sleep", "0"]).success());
}

#[test]
fn pause_ends_at_once_as_the_first_process_and_reaps_before() {
    // An orphan that ends while pause is its parent.
    let script = "(sleep 0.2 & sleep 0.1 & :); exec \"$0\"";
    let mut unshare = Process::start(Command::new("unshare").args([
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        script,
        PAUSE,
    ]));
    let pause = until(|| {
        let first = *children(unshare.0.id()).first()?;
        let is_pause = fs::read_to_string(format!("/proc/{first}/comm"))
            .is_ok_and(|comm| comm.starts_with("sluice-pause"));
        is_pause.then_some(first)
    });
    // A zombie would stay among its children.
    until(|| children(pause).is_empty().then_some(()));
    kill(Pid::from_raw(pause.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(unshare.ended().success());
}
