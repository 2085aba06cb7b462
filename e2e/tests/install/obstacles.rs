//! A node that refuses: read-only directories, a full disk, no way to run a plugin, nobody who reads what is said. Pods
//! start all the same.

use crate::Check;
use crate::antagonists::{aws, by_rename};
use crate::leaving::intent;
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE};
use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use sluice_shared::install::{Intent, State, Wanted};
use std::fs;
use std::io::{PipeWriter, pipe};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

pub const CHECKS: [Check; 6] = [
    ("a read-only configuration directory", read_only_conf),
    ("a read-only directory of plugins, and one that nothing may be run in", read_only_bin),
    ("a full disk: pods start, the entry comes when there is room", full),
    ("a full disk: an uninstall leaves the directory as it was", full_uninstall),
    ("who asks has gone, as `head` has: the same exit status, and no complaint", unread),
    ("who reads the log has gone: it installs, repairs and leaves all the same", unheard),
];

const FILE: &str = "10-aws.conflist";

/// A mount that goes with the value.
#[must_use]
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}

pub fn tmpfs(at: &Path, options: &str) -> Result<Mounted> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).context("mount a tmpfs")?;
    Ok(Mounted(at.to_path_buf()))
}

fn remount(at: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, at, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).context("remount")
}

/// Writes until there is no room for another byte.
pub fn fill(dir: &Path) -> Result<()> {
    let path = dir.join("filler");
    let mut file = fs::File::create(&path)?;
    while std::io::Write::write(&mut file, &[b'x'; 512]).is_ok() {}
    Ok(())
}

fn blocked(node: &Node) -> Result<()> {
    node.until("the installer says that it is blocked", PATIENCE, |node| {
        let state = node.state()?;
        ensure!(state.state == State::Blocked, "{state:?}");
        Ok(())
    })
    .map(drop)
}

fn read_only_conf(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[])?;
    let _mounted = tmpfs(&node.conf(), "size=1m")?;
    fs::write(node.conf().join("10-aws.conflist"), aws(0))?;
    let before = node.snapshot()?;
    remount(&node.conf(), MsFlags::MS_RDONLY)?;
    node.start()?;
    blocked(&node)?;
    let said = node.state()?.message;
    ensure!(said.contains("Read-only"), "{said}");
    node.is_as(&before)?;
    remount(&node.conf(), MsFlags::empty())?;
    let took = node.converges(Libcni::Old)?;
    // An uninstall that cannot take the entry out fails, and gives the lease up, so that nobody is held back.
    remount(&node.conf(), MsFlags::MS_RDONLY)?;
    node.end(Signal::SIGKILL)?;
    let output = node.run("remove", &[])?;
    ensure!(!output.status.success(), "it says that it has removed what it cannot remove");
    let lease = fs::read_to_string(node.dir.join("state/lease.json"))?;
    ensure!(lease.contains("\"released\":true"), "{lease}");
    remount(&node.conf(), MsFlags::empty())?;
    ensure!(
        node.state()?.state == State::Chained,
        "an uninstall that failed says otherwise: {:?}",
        node.state()?
    );
    node.remove()?;
    node.is_as(&before)?;
    ensure!(node.state()?.state == State::Removed, "{:?}", node.state()?);
    let told = fs::read(node.dir.join("run/intent.json"))?;
    let told = Intent::parse(&told).context("no intent")?;
    ensure!(told.wanted == Wanted::Leave, "an agent would go on as before: {told:?}");
    Ok(format!("{said}; chained {} ms after it could be written", took.as_millis()))
}

fn read_only_bin(parent: &Path, name: &str) -> Result<String> {
    let mut said = Vec::new();
    for (number, flags) in [MsFlags::MS_RDONLY, MsFlags::MS_NOEXEC].into_iter().enumerate() {
        let mut node =
            Node::new(parent, &format!("{name}-{number}"), &[("10-aws.conflist", &aws(0), 0o644)])?;
        let (bin, kept) = (node.dir.join("bin"), node.dir.join("kept"));
        fs::rename(&bin, &kept)?;
        fs::create_dir(&bin)?;
        let _mounted = tmpfs(&bin, "size=32m")?;
        for plugin in fs::read_dir(&kept)? {
            let plugin = plugin?;
            fs::copy(plugin.path(), bin.join(plugin.file_name()))?;
        }
        remount(&bin, flags)?;
        let before = node.snapshot()?;
        node.start()?;
        blocked(&node)?;
        std::thread::sleep(Duration::from_millis(1200));
        node.is_as(&before)?;
        said.push(node.state()?.message);
        remount(&bin, MsFlags::empty())?;
        node.until("we are in the chain", PATIENCE, |node| node.once(Libcni::Old))?;
    }
    Ok(said.join("; "))
}

fn full(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[])?;
    let _mounted = tmpfs(&node.conf(), "size=64k")?;
    fs::write(node.conf().join("10-aws.conflist"), aws(0))?;
    fill(&node.conf())?;
    let before = node.snapshot()?;
    node.start()?;
    blocked(&node)?;
    std::thread::sleep(Duration::from_millis(2200));
    node.is_as(&before)?;
    ensure!(node.network(Libcni::Old)?.ours() == 0, "half of an entry");
    let said = node.state()?.message;
    fs::remove_file(node.conf().join("filler"))?;
    let took = node.converges(Libcni::Old)?;
    node.is_theirs("10-aws.conflist", &aws(0))?;
    Ok(format!("{said}; chained {} ms after there was room", took.as_millis()))
}

fn full_uninstall(parent: &Path, name: &str) -> Result<String> {
    let ways: [&[&str]; 3] = [&[], &["--way=owned"], &["--runtime=containerd://2.1.0"]];
    for (number, options) in ways.into_iter().enumerate() {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[])?.options(options);
        let _conf = tmpfs(&node.conf(), "size=64k")?;
        let _state = tmpfs(&node.dir.join("state"), "size=64k")?;
        by_rename(&node.conf().join("10-aws.conflist"), &aws(0), 0o600)?;
        let before = node.snapshot()?;
        node.start_chained(if number == 2 { Libcni::New } else { Libcni::Old })?;
        fs::write(node.dir.join("state/membership.json"), r#"{"version":1,"namespaces":{"shop":"in"}}"#)?;
        fill(&node.conf())?;
        fill(&node.dir.join("state"))?;
        node.remove()?;
        fs::remove_file(node.conf().join("filler"))?;
        node.is_as(&before)?;
        let left: Vec<_> =
            fs::read_dir(node.dir.join("state"))?.filter_map(Result::ok).map(|e| e.file_name()).collect();
        ensure!(left.len() == 1, "left in the state directory: {left:?}");
    }
    Ok("3 ways, not a byte of room, to the byte".to_owned())
}

/// A pipe whose reader is gone: each write fails with EPIPE.
fn unread_pipe() -> Result<PipeWriter> {
    Ok(pipe()?.1)
}

fn unread(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?;
    let list = node.conf().join(FILE).display().to_string();
    let questions: [(&str, &[&str]); 6] = [
        ("status", &[]),
        ("status", &["--json"]),
        ("render", &["--conflist", &list]),
        ("render", &["--conflist", &list, "--remove"]),
        ("status", &["--help"]),
        ("--version", &[]),
    ];
    // Before we are in the chain `status` fails, and after it succeeds: either is said to whoever does not read.
    for chained in [false, true] {
        if chained {
            node.start_chained(Libcni::Old)?;
        }
        for (verb, options) in questions {
            let read = node.run(verb, options)?;
            ensure!(!read.stdout.is_empty(), "{verb} {options:?} says nothing");
            let should = chained || verb != "status" || options == ["--help"];
            ensure!(read.status.success() == should, "{verb} {options:?}: {read:?}");
            let mut command = node.command(verb, options)?;
            let left = command.stdout(unread_pipe()?).stderr(Stdio::piped()).output()?;
            ensure!(left.status == read.status, "{verb} {options:?}: {left:?} and not {}", read.status);
            ensure!(left.stderr.is_empty(), "{verb} {options:?}: {left:?}");
        }
    }
    // What cannot be written for another reason is said: it may be a file that somebody goes on with.
    let full = fs::File::options().write(true).open("/dev/full")?;
    let output =
        node.command("render", &["--conflist", &list])?.stdout(full).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("cannot write to stdout"), "{output:?}");
    Ok(format!("{} questions, twice", questions.len()))
}

fn unheard(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.options(&["--term-wait=20"]);
    let before = node.snapshot()?;
    node.start_telling(unread_pipe()?)?;
    node.until("our entry is in the chain", PATIENCE, |node| node.once(Libcni::Old))?;
    node.says_chained()?;
    by_rename(&node.conf().join(FILE), &aws(0), 0o644)?;
    node.until("it is there again", PATIENCE, |node| node.once(Libcni::Old))?;
    intent(&node, Wanted::Leave)?;
    ensure!(node.end(Signal::SIGTERM)?.success(), "it could not leave");
    node.is_as(&before)?;
    // The command says that the plugin stays: the test has no cache that shows that no pod needs it.
    node.start_telling(unread_pipe()?)?;
    node.until("our entry is in the chain", PATIENCE, |node| node.once(Libcni::Old))?;
    node.end(Signal::SIGKILL)?;
    let status = node.command("remove", &[])?.stderr(unread_pipe()?).status()?;
    ensure!(status.success(), "remove: {status}");
    node.is_as(&before)?;
    Ok("by signal and by command".to_owned())
}
