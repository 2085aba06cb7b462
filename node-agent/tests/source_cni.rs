//! The plugin's socket from outside: what is served, what is refused, and with which words.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use sluice_agent::metrics::Metrics;
use sluice_agent::source::cni::CniSource;
use sluice_agent::source::{CniCall, Event};
use sluice_shared::cni::code;
use sluice_shared::wire::{MAX_MESSAGE, Reply, Verb};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
const ADD: &str = r#"{"version":1,"verb":"add","containerId":"c1","ifname":"eth0","netns":"/n",
    "pod":{"namespace":"shop","name":"web"},"uid":"u1","ips":["10.0.0.1"]}"#;

struct Fixture {
    dir: tempfile::TempDir,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
    metrics: Metrics,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/agent.sock");
        let metrics = Metrics::new();
        let source = CniSource::bind(&path, metrics.clone()).unwrap();
        let (sender, events) = mpsc::channel(1024);
        tokio::spawn(source.run(sender));
        Self { dir, path, events, metrics }
    }

    async fn call(&mut self) -> CniCall {
        match timeout(SOON, self.events.recv()).await.expect("no request came") {
            Some(Event::Cni(call)) => call,
            other => panic!("{other:?}"),
        }
    }
}

/// A caller, as the plugin is one: blocking.
struct Caller(OwnedFd);

impl Caller {
    fn connect(path: &Path) -> Self {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Self(fd)
    }

    fn send(&self, message: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message)], control, flags, None).unwrap();
    }

    /// The one answer, and then the end.
    fn answer(&self) -> Option<Reply> {
        let mut buf = vec![0; MAX_MESSAGE + 1];
        let length = nix::sys::socket::recv(self.0.as_raw_fd(), &mut buf, MsgFlags::empty()).unwrap();
        if length == 0 {
            return None;
        }
        let end = nix::sys::socket::recv(self.0.as_raw_fd(), &mut [0; 1], MsgFlags::empty());
        assert_eq!(end, Ok(0), "more than one answer");
        Some(serde_json::from_slice(&buf[..length]).unwrap())
    }
}

async fn ask(path: &Path, message: impl AsRef<[u8]>, fds: usize) -> Option<Reply> {
    let (path, message) = (path.to_owned(), message.as_ref().to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let netns = File::open("/proc/self/ns/net").unwrap();
        let caller = Caller::connect(&path);
        caller.send(&message, &vec![netns.as_raw_fd(); fds]);
        caller.answer()
    });
    timeout(SOON, asked).await.expect("no answer").unwrap()
}

fn error(reply: Option<Reply>) -> (u32, String) {
    match reply {
        Some(Reply::Error { code, msg, .. }) => (code, msg),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_waits_for_its_answer_and_brings_the_netns() {
    let mut source = Fixture::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&source.path), 0o600);
    let path = source.path.clone();
    let asked = tokio::spawn(async move { ask(&path, ADD, 1).await });
    let call = source.call().await;
    let Verb::Add(attachment) = &call.verb else { panic!("{:?}", call.verb) };
    assert_eq!(attachment.pod.as_ref().unwrap().to_string(), "shop/web");
    let netns = File::from(call.netns.unwrap());
    assert_eq!(netns.metadata().unwrap().ino(), std::fs::metadata("/proc/self/ns/net").unwrap().ino());
    assert!(!asked.is_finished());
    call.reply.send(Reply::Ok { outcome: "captured".to_owned() }).unwrap();
    assert_eq!(asked.await.unwrap(), Some(Reply::Ok { outcome: "captured".to_owned() }));
    assert!(source.metrics.render().contains("sluice_plugin_requests_total{verb=\"ADD\",code=\"0\"} 1"));
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused_and_reaches_nobody() {
    let mut source = Fixture::new();
    let del = ADD.replace("add", "del");
    let long = ADD.replace("/n", &"n".repeat(MAX_MESSAGE));
    let refused: [(&[u8], usize, u32, &str); 8] = [
        (b"\xff\xfe", 0, code::DECODE_FAILURE, "not a JSON object"),
        (long.as_bytes(), 1, code::DECODE_FAILURE, "longer than 65536 bytes"),
        (&ADD.as_bytes()[..40], 1, code::DECODE_FAILURE, "EOF while parsing"),
        (br#"{"version":7,"verb":"add"}"#, 1, code::WIRE_VERSION, "version 7, and this agent speaks 1"),
        (ADD.as_bytes(), 0, code::WRONG_NETNS, "ADD came with 0 descriptors"),
        (ADD.as_bytes(), 2, code::WRONG_NETNS, "ADD came with 2 descriptors"),
        (ADD.as_bytes(), 40, code::WRONG_NETNS, "takes exactly one"),
        (del.as_bytes(), 1, code::WRONG_NETNS, "DEL came with 1 descriptors, and takes none"),
    ];
    for (message, fds, code, what) in refused {
        let (said, msg) = error(ask(&source.path, message, fds).await);
        assert!(said == code && msg.contains(what), "{code} {what}: {said} {msg}");
        assert!(msg.starts_with("the node agent refused the plugin's message: "), "{msg}");
    }
    assert!(source.events.try_recv().is_err());
    let metrics = source.metrics.render();
    assert!(metrics.contains("sluice_source_errors_total{source=\"cni\"} 8"), "{metrics}");
    assert!(metrics.contains("sluice_plugin_requests_total{verb=\"invalid\",code=\"103\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_told_and_one_that_leaves_is_not_missed() {
    let source = Fixture::new();
    drop(Caller::connect(&source.path));
    let path = source.path.clone();
    let silent = tokio::task::spawn_blocking(move || Caller::connect(&path).answer());
    let (code, msg) = error(timeout(SOON, silent).await.unwrap().unwrap());
    assert!(code == code::IO_FAILURE && msg.contains("no message came within 2 s"), "{code} {msg}");
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"cni\"} 1"));
}

#[tokio::test]
async fn an_answer_that_never_comes_is_an_error_that_says_which() {
    let mut source = Fixture::new();
    let status = r#"{"version":1,"verb":"status"}"#;
    let path = source.path.clone();
    let asked = tokio::spawn(async move { ask(&path, status, 0).await });
    drop(source.call().await);
    let (code, msg) = error(asked.await.unwrap());
    assert!(code == code::INTERNAL && msg.contains("gave up"), "{code} {msg}");
    // While the agent stops there is no answer: the plugin then decides by the membership file.
    let path = source.path.clone();
    let asked = tokio::spawn(async move { ask(&path, status, 0).await });
    let call = source.call().await;
    source.events.close();
    drop(call);
    assert_eq!(asked.await.unwrap(), None);
    timeout(SOON, async {
        while source.path.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the socket is still there");
}

#[tokio::test]
async fn whoever_acts_learns_that_the_plugin_stopped_waiting() {
    let mut source = Fixture::new();
    let caller = Caller::connect(&source.path);
    let netns = File::open("/proc/self/ns/net").unwrap();
    caller.send(ADD.as_bytes(), &[netns.as_raw_fd()]);
    let mut call = source.call().await;
    drop(caller);
    timeout(SOON, call.reply.closed()).await.expect("the answer is still waited for");
}

#[tokio::test]
async fn a_log_line_is_not_answered() {
    let mut source = Fixture::new();
    let log = r#"{"version":1,"verb":"log","level":"warn","message":"a\nb"}"#;
    assert_eq!(ask(&source.path, log, 0).await, None);
    assert!(source.events.try_recv().is_err());
}

#[tokio::test]
async fn six_hundred_callers_at_once_are_all_served() {
    sluice_agent::limits::raise_open_files().unwrap();
    let mut source = Fixture::new();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let caller = Caller::connect(&source.path);
        caller.send(br#"{"version":1,"verb":"status"}"#, &[]);
        callers.spawn_blocking(move || caller.answer());
    }
    let mut taken = Vec::new();
    for _ in 0..512 {
        taken.push(source.call().await);
    }
    // No more are taken before the first is answered: the rest wait in the kernel.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(source.events.try_recv().is_err());
    let ok = || Reply::Ok { outcome: "serving".to_owned() };
    for call in taken {
        call.reply.send(ok()).unwrap();
    }
    for _ in 512..600 {
        source.call().await.reply.send(ok()).unwrap();
    }
    while let Some(answer) = callers.join_next().await {
        assert_eq!(answer.unwrap(), Some(ok()));
    }
}

#[tokio::test]
async fn a_caller_that_is_not_root_is_refused() {
    assert!(nix::unistd::geteuid().is_root(), "this test changes its user, and so needs root");
    let source = Fixture::new();
    // The mode keeps others out; opened up, SO_PEERCRED still does.
    for path in [source.dir.path(), source.path.parent().unwrap(), &source.path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // This program where another user may run it: build directories are often below a home.
    let program = source.dir.path().join("another-user");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let path = source.path.clone();
    let output = tokio::task::spawn_blocking(move || {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "--"])
            .arg("/bin/sh")
            .args(["-c", "exec \"$0\" --exact as_another_user --nocapture --ignored"])
            .arg(program)
            .env("SLUICE_TEST_SOCKET", path)
            .output()
            .unwrap()
    });
    let output = output.await.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("4 the node agent refused the plugin's message: only root may use"), "{stdout}");
    assert!(source.metrics.render().contains("sluice_source_errors_total{source=\"cni\"} 1"));
}

/// Not a test by itself: [`a_caller_that_is_not_root_is_refused`] runs it as another user.
#[test]
#[ignore = "run by another test, as another user"]
fn as_another_user() {
    let path = PathBuf::from(std::env::var_os("SLUICE_TEST_SOCKET").expect("run by another test"));
    let caller = Caller::connect(&path);
    caller.send(br#"{"version":1,"verb":"status"}"#, &[]);
    let (code, msg) = error(caller.answer());
    println!("{code} {msg}");
}
