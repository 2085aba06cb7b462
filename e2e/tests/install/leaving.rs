//! Uninstall, a node that leaves the selector, a crash at any moment: pods start, pods are deleted, and the directory
//! is as it was. An upgrade keeps everything.

use crate::Check;
use crate::antagonists::{Antagonist, OVN, aws, by_rename, in_place};
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE, same};
use crate::obstacles::{fill, tmpfs};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::lab::process::binary;
use sluice_shared::install::{Intent, State, Wanted};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub const CHECKS: [Check; 10] = [
    ("SIGTERM: everything stays without an intent, or when the intent is to stay", stays),
    ("SIGTERM: everything goes when the intent is to leave", leaves),
    (
        "remove beside a running installer is done once and for all, and a new installer installs again",
        beside,
    ),
    (
        "the same on a node whose boot has another name than in the installer's container, as in LXC; so has status",
        beside_in_lxc,
    ),
    (
        "50 uninstalls at random moments, with SIGKILL of either program, a full disk, a primary that writes",
        fifty,
    ),
    ("a file that is half written is waited for", half_written),
    (
        "what an uninstall leaves behind: DEL succeeds, the plugin stays while a cached attachment names it",
        leftover,
    ),
    ("the plugin's file stays a while longer than its entry: an ADD may be on its way to it", lingering),
    ("an entry that somebody puts back meanwhile goes before the plugin's file does", put_back),
    ("a removal after one that was killed in that while waits as long", killed_lingering),
];

const FILE: &str = "10-aws.conflist";

pub fn intent(node: &Node, wanted: Wanted) -> Result<()> {
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

fn beside_in_lxc(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?;
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    let said = in_lxc(&node, "status", &[])?;
    ensure!(said.contains("installer  chained"), "status says {said}");
    in_lxc(&node, "remove", &["--wait=20"])?;
    node.is_as(&before)?;
    ensure!(node.state()?.state == State::Removed, "{:?}", node.state()?);
    // The installer that ends and the one that begins: what the former has done is no answer of the latter.
    node.end(Signal::SIGTERM)?;
    node.start_chained(Libcni::Old)?;
    ensure!(
        node.state()?.repairs == 0,
        "a removal that was asked for was taken for somebody's: {:?}",
        node.state()?
    );
    in_lxc(&node, "remove", &["--wait=20"])?;
    node.is_as(&before)?;
    Ok("removed, installed anew, removed".to_owned())
}

/// Runs a command of the program where `boot_id` says something else, by a file over the kernel's; gives its stdout.
fn in_lxc(node: &Node, verb: &str, options: &[&str]) -> Result<String> {
    let boot = node.dir.join("boot_id");
    fs::write(&boot, "b2d0a5de-8a4e-4a3b-9d3e-0c4f5f3f9a11\n")?;
    let program = node.command(verb, options)?;
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&boot).arg(program.get_program());
    command.args(program.get_args()).stdin(Stdio::null());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().context("start unshare")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sluice-install {verb}: {said}; {}", node.log());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A random walk that can be walked again: xorshift64*.
struct Dice(u64);

impl Dice {
    /// From `SLUICE_SEED`, else from the clock.
    fn new() -> Result<Self> {
        let seed = match std::env::var("SLUICE_SEED") {
            Ok(seed) => seed.parse().context("SLUICE_SEED is no number")?,
            Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() % (1 << 48))?,
        };
        Ok(Self(seed.max(1)))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    fn one_in(&mut self, end: u64) -> bool {
        self.below(end) == 0
    }
}

/// What is tried in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// The configuration of a single plugin, a list of our own, a drop-in, or in place.
    way: u64,
    /// From before the first write to after the second, in microseconds.
    moment: u64,
    /// The installer is killed, and the command removes; else a signal and an intent tell it to leave.
    killed: bool,
    /// A first removal is killed after so many microseconds.
    cut: Option<u64>,
    /// No room where it is installed and where it keeps its notes.
    full: bool,
    /// The plugin stays a second longer than its entry.
    lingers: bool,
}

impl Round {
    fn roll(dice: &mut Dice) -> Self {
        Self {
            way: dice.below(4),
            moment: dice.below(1_300_000),
            killed: dice.one_in(2),
            cut: dice.one_in(3).then(|| dice.below(9000)),
            full: dice.one_in(3),
            lingers: dice.one_in(5),
        }
    }
}

fn fifty(parent: &Path, name: &str) -> Result<String> {
    let mut dice = Dice::new()?;
    let seed = dice.0;
    let rounds: Vec<_> = (0..50).map(|_| Round::roll(&mut dice)).collect();
    for (number, round) in rounds.iter().enumerate() {
        uninstalled(parent, &format!("{name}-{number}"), *round)
            .with_context(|| format!("SLUICE_SEED={seed}, round {number}: {round:?}"))?;
    }
    let count = |of: fn(&Round) -> bool| rounds.iter().filter(|round| of(round)).count();
    Ok(format!(
        "SLUICE_SEED={seed}: 50 rounds, {} installers and {} removals killed, {} full disks, {} told by signal, {} \
         with a plugin that stays longer",
        count(|round| round.killed),
        count(|round| round.cut.is_some()),
        count(|round| round.full),
        count(|round| !round.killed),
        count(|round| round.lingers),
    ))
}

fn uninstalled(parent: &Path, name: &str, round: Round) -> Result<()> {
    let single = round.way == 0;
    let file = if single { "10-ovn-kubernetes.conf" } else { FILE };
    let text = move |generation: u64| {
        if single { OVN.replace("\"4\"", &format!("\"{generation}\"")) } else { aws(generation) }
    };
    let options: &[&str] = match round.way {
        2 => &["--way=owned", "--term-wait=20"],
        3 => &["--runtime=containerd://2.1.0", "--term-wait=20"],
        _ => &["--term-wait=20"],
    };
    let mut node = Node::new(parent, name, &[])?.options(options).lingering(u64::from(round.lingers));
    // Seen to be empty: the plugin need not stay for any pod's sake.
    fs::create_dir(node.dir.join("cache"))?;
    let small = |sub: &str| round.full.then(|| tmpfs(&node.dir.join(sub), "size=64k")).transpose();
    let _mounted = (small("conf")?, small("state")?);
    let path = node.conf().join(file);
    by_rename(&path, &text(0), 0o600)?;
    let mut before = node.touched()?;
    node.start()?;
    let (mut generation, written) = (0, path.clone());
    let primary = Antagonist::start(Duration::from_millis(40), move || {
        generation += 1;
        match generation % 2 {
            0 => by_rename(&written, &text(generation), 0o600)?,
            _ => in_place(&written, &text(generation), Duration::from_millis(2), 0o600)?,
        }
        Ok(true)
    });
    std::thread::sleep(Duration::from_micros(round.moment));
    // On a full disk no primary could write: what it has begun it has ended.
    let mut primary = Some(primary);
    let mut last = None;
    if round.full {
        last = primary.take().map(Antagonist::end).transpose()?;
        fill(&node.conf())?;
        fill(&node.dir.join("state"))?;
    }
    if round.killed {
        node.end(Signal::SIGKILL)?;
        cut(&node, round)?;
    } else {
        // The agent has said why before the signal comes; the primary goes on.
        intent(&node, Wanted::Leave)?;
        ensure!(node.end(Signal::SIGTERM)?.success(), "it could not leave; {}", node.log());
    }
    last = primary.take().map(Antagonist::end).transpose()?.or(last);
    if round.killed {
        node.remove()?;
    }
    for sub in ["conf", "state"] {
        let _ = fs::remove_file(node.dir.join(sub).join("filler"));
    }
    // The primary's last word, and nothing else.
    before.insert(path, (0o600, Some(text(last.unwrap_or(0)).into_bytes())));
    same(&before, &node.touched()?).with_context(|| node.log())?;
    let network = node.network(Libcni::New)?;
    ensure!(network.ours() == 0, "{network:?}");
    Ok(())
}

/// A removal that is killed.
fn cut(node: &Node, round: Round) -> Result<()> {
    let Some(moment) = round.cut else { return Ok(()) };
    let mut remove = node.command("remove", &[])?.stderr(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_micros(moment));
    remove.kill()?;
    remove.wait()?;
    Ok(())
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

fn lingering(parent: &Path, name: &str) -> Result<String> {
    let mut node =
        Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.options(&["--term-wait=20"]).lingering(6);
    // No cached attachment names it: it could go at once.
    fs::create_dir(node.dir.join("cache"))?;
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    intent(&node, Wanted::Leave)?;
    node.until("as it was", PATIENCE, |node| node.is_as(&before))?;
    let (out, plugin) = (Instant::now(), node.dir.join("bin/sluice-cni"));
    ensure!(plugin.exists(), "the plugin went together with its entry");
    node.until("without the plugin", PATIENCE, |_| {
        ensure!(!plugin.exists(), "it is there");
        Ok(())
    })?;
    let stayed = out.elapsed();
    ensure!(stayed > Duration::from_secs(1), "it stayed {stayed:?} only");
    Ok("six seconds".to_owned())
}

/// Reads before we go and writes afterwards, as another mesh does that puts its own entry in.
fn put_back(parent: &Path, name: &str) -> Result<String> {
    let mut node =
        Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.options(&["--term-wait=20"]).lingering(6);
    fs::create_dir(node.dir.join("cache"))?;
    let (before, path) = (node.snapshot()?, node.conf().join(FILE));
    node.start_chained(Libcni::Old)?;
    let chained = fs::read_to_string(&path)?;
    intent(&node, Wanted::Leave)?;
    node.until("as it was", PATIENCE, |node| node.is_as(&before))?;
    let plugin = node.dir.join("bin/sluice-cni");
    by_rename(&path, &chained, 0o644)?;
    ensure!(plugin.exists(), "the plugin went before the entry could be put back");
    node.once(Libcni::Old)?;
    node.until("without the plugin", PATIENCE, |_| {
        ensure!(!plugin.exists(), "it is there");
        Ok(())
    })?;
    // From the moment that the plugin is gone, and not some time later.
    node.is_as(&before)?;
    Ok("within six seconds".to_owned())
}

fn killed_lingering(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[(FILE, &aws(0), 0o644)])?.lingering(6);
    fs::create_dir(node.dir.join("cache"))?;
    let (before, plugin) = (node.snapshot()?, node.dir.join("bin/sluice-cni"));
    node.start_chained(Libcni::Old)?;
    node.end(Signal::SIGKILL)?;
    let mut first = node.command("remove", &[])?.stderr(Stdio::null()).spawn()?;
    node.until("as it was", PATIENCE, |node| node.is_as(&before))?;
    first.kill()?;
    first.wait()?;
    ensure!(plugin.exists(), "the plugin went together with its entry");
    let began = Instant::now();
    node.remove()?;
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(6), "the second removal took {took:?} only");
    ensure!(!plugin.exists(), "nobody needs it, and it is there");
    Ok("six seconds".to_owned())
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
