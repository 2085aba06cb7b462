//! A node as far as the installer sees one: directories, an agent that answers STATUS, and the real `sluice-install`.

mod agent;
mod snapshot;

pub use snapshot::{Snapshot, same};

use crate::libcni::{Libcni, Network, load};
use agent::Agent;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_e2e::lab::process::binary;
use sluice_shared::conflist;
use sluice_shared::install::Installation;
use snapshot::collect;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The promise: our entry is there within this time of the last writer.
pub const CONVERGED: Duration = Duration::from_secs(1);
/// What looking adds to it: one each 5 ms, and the grain of timers and of what the kernel says of waiting.
pub const GRAIN: Duration = Duration::from_millis(30);
/// How often something is looked at.
const BEAT: Duration = Duration::from_millis(5);
/// A sleep that ends so late is still the timer's grain.
const TARDY: Duration = Duration::from_millis(5);
/// Far more than anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node in a directory of its own.
pub struct Node {
    pub dir: PathBuf,
    installer: Option<Child>,
    /// What the installer had written down when the one that runs was started.
    before: Option<Stamp>,
    agent: Option<Agent>,
    options: Vec<String>,
    /// How long the plugin's file outlives its entry, in seconds.
    linger: u64,
}

/// Tells one writing of a file from the next: inode, seconds and nanoseconds.
type Stamp = (u64, i64, i64);

impl Node {
    /// A node with these files in its configuration directory, and an agent.
    pub fn new(parent: &Path, name: &str, files: &[(&str, &str, u32)]) -> Result<Self> {
        let dir = parent.join(name);
        for sub in ["conf", "bin", "state", "run"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let mut node =
            Self { dir, installer: None, before: None, agent: None, options: Vec::new(), linger: 0 };
        for plugin in [
            "ptp",
            "portmap",
            "bridge",
            "ovn-k8s-cni-overlay",
            "cilium-cni",
            "linkerd-cni",
            "multus",
            "multus-shim",
        ] {
            node.write(&format!("bin/{plugin}"), "#!", 0o755)?;
        }
        for (name, text, mode) in files {
            node.write(&format!("conf/{name}"), text, *mode)?;
        }
        node.write("conf/calico-kubeconfig", "no configuration of a network\n", 0o600)?;
        node.serve()?;
        Ok(node)
    }

    /// With more options for the installer.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// With a plugin that stays so many seconds longer than its entry.
    pub fn lingering(mut self, seconds: u64) -> Self {
        self.linger = seconds;
        self
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.join("conf")
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.dir.join(path);
        fs::write(&path, text)?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(mode))?)
    }

    /// The agent begins to serve.
    pub fn serve(&mut self) -> Result<()> {
        self.agent = Some(Agent::start(&self.dir.join("agent.sock"))?);
        Ok(())
    }

    /// The agent ends.
    pub fn end_agent(&mut self) -> Result<()> {
        self.agent = None;
        Ok(fs::remove_file(self.dir.join("agent.sock"))?)
    }

    /// The real program, not yet started.
    pub fn command(&self, verb: &str, options: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("sluice-install")?);
        command.arg(verb).args(options);
        for (variable, sub) in [
            ("SLUICE_CONF_DIR", "conf"),
            ("SLUICE_BIN_DIR", "bin"),
            ("SLUICE_HOST_STATE_DIR", "state"),
            ("SLUICE_RUN_DIR", "run"),
            ("SLUICE_CNI_CACHE", "cache"),
            ("SLUICE_AGENT_SOCKET", "agent.sock"),
        ] {
            command.env(variable, self.dir.join(sub));
        }
        // Nobody attaches pods here, but where a test says so.
        command.env("SLUICE_LINGER", self.linger.to_string());
        command.env("SLUICE_PLUGIN", binary("sluice-cni")?).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts `sluice-install run`.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("install.log"))?;
        self.start_telling(log)
    }

    /// The same, with its log elsewhere.
    pub fn start_telling(&mut self, log: impl Into<Stdio>) -> Result<()> {
        self.before = self.stamp();
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        let child = self.command("run", &options)?.stderr(log).spawn().context("start sluice-install")?;
        self.installer = Some(child);
        Ok(())
    }

    /// Starts it and waits until we are in the chain, and it says so.
    pub fn start_chained(&mut self, libcni: Libcni) -> Result<()> {
        self.start()?;
        self.until("our entry is in the chain", PATIENCE, |node| node.once(libcni))?;
        self.runs()?;
        self.says_chained()?;
        // Later checks are about what happens from here on.
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// Waits until the installer that was started has looked, and written down what it found: what an earlier one wrote
    /// is no sign of it.
    pub fn runs(&self) -> Result<()> {
        self.until("the installer has looked", PATIENCE, |node| {
            ensure!(node.stamp().is_some_and(|now| Some(now) != node.before), "it has written nothing down");
            Ok(())
        })
        .map(drop)
    }

    /// Waits until the installer has written down that we are in the chain, which comes after the fact.
    pub fn says_chained(&self) -> Result<()> {
        self.until("the installer says that we are in the chain", PATIENCE, |node| {
            let state = node.state()?;
            ensure!(state.state.is_chained(), "{state:?}");
            Ok(())
        })
        .map(drop)
    }

    fn stamp(&self) -> Option<Stamp> {
        let found = fs::metadata(self.dir.join("run/install.json")).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.installer.as_ref().context("no installer runs")?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let mut child = self.installer.take().context("no installer runs")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                bail!("the installer did not end after {signal}; {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command of the program to its end.
    pub fn run(&self, verb: &str, options: &[&str]) -> Result<Output> {
        self.command(verb, options)?.output().context("run sluice-install")
    }

    /// Removes everything, by the command.
    pub fn remove(&self) -> Result<()> {
        let output = self.run("remove", &[])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "sluice-install remove failed: {said}; {}", self.log());
        Ok(())
    }

    /// What the installer has written down.
    pub fn state(&self) -> Result<Installation> {
        let bytes = fs::read(self.dir.join("run/install.json")).context("read install.json")?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The plugins of a pod.
    pub fn network(&self, libcni: Libcni) -> Result<Network> {
        load(&self.conf(), &self.dir.join("bin"), libcni)
    }

    /// Fails unless pods start with us in the chain once.
    pub fn once(&self, libcni: Libcni) -> Result<()> {
        let network = self.network(libcni)?;
        ensure!(network.ours() == 1, "we are in the chain {} times: {network:?}", network.ours());
        Ok(())
    }

    /// Fails unless the file says what its owner wrote, but for our entry.
    pub fn is_theirs(&self, name: &str, theirs: &str) -> Result<()> {
        let text = fs::read_to_string(self.conf().join(name))?;
        let without = conflist::remove(&text).with_context(|| format!("{name}: {text}"))?;
        ensure!(without == theirs, "{name} is not what its owner wrote last:\n{without}\n{theirs}");
        Ok(())
    }

    /// The same for a file that may be the configuration of a single plugin, which is never touched.
    pub fn is_theirs_or_untouched(&self, name: &str, theirs: &str) -> Result<()> {
        match fs::read_to_string(self.conf().join(name))? {
            text if text == theirs => Ok(()),
            _ => self.is_theirs(name, theirs),
        }
    }

    /// The configuration directory.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut found = Snapshot::new();
        collect(&self.conf(), &mut found)?;
        Ok(found)
    }

    /// All that an installation touches on a node. What tells of it until the next boot is left out: the state that the
    /// agent and `status` show, the lock, the intent.
    pub fn touched(&self) -> Result<Snapshot> {
        let mut found = self.snapshot()?;
        for sub in ["bin", "state", "run"] {
            collect(&self.dir.join(sub), &mut found)?;
        }
        for told in ["install.json", "install.lock", "intent.json"] {
            found.remove(&self.dir.join("run").join(told));
        }
        Ok(found)
    }

    /// Fails unless the configuration directory is as it was.
    pub fn is_as(&self, before: &Snapshot) -> Result<()> {
        same(before, &self.snapshot()?).with_context(|| self.log())
    }

    /// Waits until something holds; gives how long it took.
    pub fn until(
        &self,
        what: &str,
        patience: Duration,
        look: impl Fn(&Self) -> Result<()>,
    ) -> Result<Duration> {
        self.watch(what, patience, look).map(|(took, _)| took)
    }

    /// The same, and how much longer than it had asked for this thread has slept meanwhile.
    fn watch(
        &self,
        what: &str,
        patience: Duration,
        look: impl Fn(&Self) -> Result<()>,
    ) -> Result<(Duration, Duration)> {
        let (began, mut overslept) = (Instant::now(), Duration::ZERO);
        loop {
            match look(self) {
                Ok(()) => return Ok((began.elapsed(), overslept)),
                Err(why) if began.elapsed() > patience => {
                    return Err(why.context(format!("not within {patience:?}: {what}; {}", self.log())));
                }
                Err(_) => {
                    let asleep = Instant::now();
                    std::thread::sleep(BEAT);
                    overslept += asleep.elapsed().saturating_sub(BEAT + TARDY);
                }
            }
        }
    }

    /// Waits until something holds that was promised within a second from now, and fails when it took longer. The
    /// second is the installer's: what it and this program waited for a processor, and this machine for its host, is
    /// measured and not counted. A host that stops this machine need not say so: then this thread has slept too long.
    /// Gives how long it took.
    pub fn promptly(&self, what: &str, look: impl Fn(&Self) -> Result<()>) -> Result<Duration> {
        let before = self.waited()?;
        let (took, overslept) = self.watch(what, PATIENCE, look)?;
        let waited = self.waited()?.saturating_sub(before).max(overslept);
        ensure!(
            took <= CONVERGED + GRAIN + waited,
            "{what}: after {took:?}, of which {waited:?} were waited for a processor; {}",
            self.log()
        );
        Ok(took.saturating_sub(waited))
    }

    /// Waits until we are in the chain again; fails when it took longer than promised.
    pub fn converges(&self, libcni: Libcni) -> Result<Duration> {
        self.promptly("our entry is back in the chain", |node| node.once(libcni))
    }

    /// How long the installer and this program have stood in a processor's queue since they began (proc(5),
    /// `schedstat`), and this machine in its host's (`steal`).
    fn waited(&self) -> Result<Duration> {
        let queued = |process: &str| -> Result<u64> {
            let mut sum = 0;
            for thread in fs::read_dir(format!("/proc/{process}/task"))? {
                // A thread may have ended meanwhile.
                let said = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
                sum += said.split_whitespace().nth(1).and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            }
            Ok(sum)
        };
        let installer = self.installer.as_ref().map_or(Ok(0), |child| queued(&child.id().to_string()))?;
        let stat = fs::read_to_string("/proc/stat")?;
        let stolen = stat.split_whitespace().nth(8).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
        Ok(Duration::from_nanos(installer + queued("self")?) + Duration::from_millis(10 * stolen))
    }

    /// The end of the installer's log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("install.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("the installer said last: {}", lines[lines.len().saturating_sub(6)..].join(" | "))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.installer.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
