//! Uninstall, a node that leaves the selector, a crash at any moment: pods start, pods are deleted, and the directory
//! is as it was. An upgrade keeps everything.

use crate::Check;
use crate::antagonists::{Antagonist, OVN, aws, by_rename, in_place};
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::lab::process::binary;
use sluice_shared::install::{Intent, State, Wanted};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

pub const CHECKS: [Check; 6] = [
    ("SIGTERM: everything stays without an intent, or when the intent is to stay", stays),
    ("SIGTERM: everything goes when the intent is to leave", leaves),
    (
        "remove beside a running installer is done once and for all, and a new installer installs again",
        beside,
    ),
    ("50 uninstalls at 50 moments, with SIGKILL of either program, while the primary writes", fifty),
    ("a file that is half written is waited for", half_written),
    (
        "what an uninstall leaves behind: DEL succeeds, the plugin stays while a cached attachment names it",
        leftover,
    ),
];

const FILE: &str = "10-aws.conflist";

fn intent(node: &Node, wanted: Wanted) -> Result<()> {
    let bytes = serde_json::to_vec(&Intent::new(wanted, "the test says so"))?;
    Ok(fs::write(node.dir.join("run/intent.json"), bytes)?)
}

fn stays(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.options(&["--term-wait=1"]);
    node.start_chained(Libcni::Old)?;
    let before = node.snapshot()?;
    ensure!(node.end(Signal::SIGTERM)?.success(), "{}", node.log());
    node.is_as(&before)?;
    node.start_chained(Libcni::Old)?;
    intent(&node, Wanted::Stay)?;
    ensure!(node.end(Signal::SIGTERM)?.success(), "{}", node.log());
    node.is_as(&before)?;
    node.once(Libcni::Old)?;
    let lease = fs::read_to_string(node.dir.join("state/lease.json"))?;
    ensure!(lease.contains("\"released\":false"), "{lease}");
    Ok("twice".to_owned())
}

fn leaves(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.options(&["--term-wait=20"]);
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    // As in a pod that ends: the agent learns why only after the signal.
    node.signal(Signal::SIGTERM)?;
    std::thread::sleep(Duration::from_millis(300));
    node.once(Libcni::Old)?;
    intent(&node, Wanted::Leave)?;
    ensure!(node.end(Signal::SIGTERM)?.success(), "{}", node.log());
    node.is_as(&before)?;
    ensure!(node.state()?.state == State::Removed, "{:?}", node.state()?);
    ensure!(fs::read_dir(node.dir.join("state"))?.next().is_none(), "the state directory is not empty");
    Ok(node.log())
}

fn beside(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?;
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    node.remove()?;
    node.remove()?;
    std::thread::sleep(Duration::from_secs(1));
    node.is_as(&before)?;
    ensure!(!node.run("status", &[])?.status.success(), "status says that we are in the chain");
    node.end(Signal::SIGTERM)?;
    node.start_chained(Libcni::Old)?;
    node.remove()?;
    node.is_as(&before)?;
    Ok("removed, idle, installed anew, removed".to_owned())
}

fn fifty(parent: &Path, name: &str) -> Result<String> {
    let (mut killed, mut cut) = (0, 0);
    for round in 0..50_u64 {
        let single = round % 5 == 1;
        let file = if single { "10-ovn-kubernetes.conf" } else { FILE };
        let text = move |generation: u64| {
            if single { OVN.replace("\"4\"", &format!("\"{generation}\"")) } else { aws(generation) }
        };
        let options: &[&str] = match round % 5 {
            2 => &["--way=owned"],
            3 => &["--runtime=containerd://2.1.0"],
            _ => &[],
        };
        let mut node =
            Node::new(parent, &format!("{name}-{round}"), &[(file, &text(0), 0o600)])?.options(options);
        let path = node.conf().join(file);
        node.start()?;
        let mut generation = 0;
        let primary = Antagonist::start(Duration::from_millis(40), move || {
            generation += 1;
            match generation % 2 {
                0 => by_rename(&path, &text(generation), 0o600)?,
                _ => in_place(&path, &text(generation), Duration::from_millis(2), 0o600)?,
            }
            Ok(true)
        });
        // A moment that is another one in each round, from before the first write to after the second.
        std::thread::sleep(Duration::from_micros(round * round * 577 % 1_300_000));
        if round % 2 == 0 {
            node.end(Signal::SIGKILL)?;
            killed += 1;
        }
        if round % 3 == 0 {
            let mut remove = node.command("remove", &[])?.stderr(Stdio::null()).spawn()?;
            std::thread::sleep(Duration::from_micros(round * 131 % 9000));
            remove.kill()?;
            remove.wait()?;
            cut += 1;
        }
        let last = primary.end()?;
        node.remove().with_context(|| format!("round {round}"))?;
        // The primary's last word, and nothing else.
        let is = fs::read_to_string(node.conf().join(file))?;
        let should = if single { OVN.replace("\"4\"", &format!("\"{last}\"")) } else { aws(last) };
        ensure!(last == 0 || is == should, "round {round}: {is}\nis not\n{should}; {}", node.log());
        let names: Vec<_> = node.snapshot()?.into_keys().collect();
        ensure!(names.len() == 2, "round {round}: {names:?}; {}", node.log());
        let network = node.network(Libcni::New).with_context(|| format!("round {round}"))?;
        ensure!(network.ours() == 0, "round {round}: {network:?}");
    }
    Ok(format!("50 rounds, {killed} installers and {cut} removals killed"))
}

fn half_written(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?;
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    let path = node.conf().join(FILE);
    let whole = fs::read_to_string(&path)?;
    let half = &whole[..whole.find("sluice-cni").context("no entry")? + 12];
    fs::write(&path, half)?;
    let restored = path.clone();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(800));
        fs::write(restored, whole)
    });
    node.remove()?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    node.until("as it was", PATIENCE, |node| node.is_as(&before))?;
    Ok("800 ms".to_owned())
}

fn leftover(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?;
    let plugin = node.dir.join("bin/sluice-cni");
    let results = node.dir.join("cache");
    fs::create_dir(&results)?;
    // `{"type":"sluice-cni"}` as libcni caches it.
    let cached = results.join("aws-cni-c0ffee-eth0");
    fs::write(&cached, r#"{"kind":"cniCacheV1","config":"eyJ0eXBlIjoic2x1aWNlLWNuaSJ9"}"#)?;
    node.start_chained(Libcni::Old)?;
    node.remove()?;
    ensure!(plugin.exists(), "a pod's cached attachment names it, and it is gone");
    del(&node, &plugin)?;
    fs::remove_file(cached)?;
    node.end(Signal::SIGTERM)?;
    node.remove()?;
    ensure!(!plugin.exists(), "nobody needs it, and it is there");
    del(&node, &binary("sluice-cni")?)?;
    Ok("stayed while it was named, went when it was not".to_owned())
}

/// A pod of before is deleted, with nothing of ours left to ask.
fn del(node: &Node, plugin: &Path) -> Result<()> {
    let mut run = Command::new(plugin)
        .env_clear()
        .envs([
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/bin"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let conf = serde_json::json!({
        "cniVersion": "1.0.0", "name": "aws-cni", "type": "sluice-cni", "agentSocket": node.dir.join("nobody.sock")
    });
    run.stdin.take().context("no stdin")?.write_all(conf.to_string().as_bytes())?;
    let status = run.wait()?;
    ensure!(status.success(), "DEL failed: {status}");
    Ok(())
}
