//! Long-lived programs under test: started in a network namespace and a cgroup, watched, stopped, killed.

use super::cgroup::Cgroup;
use super::netns::Netns;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where the programs under test are, unless `SLUICE_BIN_DIR` says otherwise: beside the running program, or, for a
/// test, in the directory above.
///
/// # Errors
/// When there is no such program; says which command builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let found = match (name, named("SLUICE_CNI"), named("SLUICE_BIN_DIR")) {
        ("sluice-cni", Some(plugin), _) => plugin,
        (under_test, _, Some(dir)) if under_test != "sluice-lab" => dir.join(name),
        _ => {
            let this = std::env::current_exe().context("which program is this?")?;
            let dir = this.parent().context("a program without a directory")?;
            let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
            dir.join(name)
        }
    };
    if !found.is_file() {
        bail!("{} is not there: `make build` makes it (or set SLUICE_BIN_DIR)", found.display());
    }
    Ok(found)
}

/// How a program is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment, in addition to the lab's own.
    pub env: Vec<(String, OsString)>,
    /// Where it runs.
    pub netns: Netns,
    /// In which cgroup; the lab's own if none.
    pub cgroup: Option<Cgroup>,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Launch {
    /// `program` in `netns`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, netns: &Netns) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            netns: netns.clone(),
            cgroup: None,
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// With one more environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// In a cgroup.
    #[must_use]
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.clone());
        self
    }

    /// The command that starts it. A process can only move itself before its first socket is made, so the lab's own
    /// program goes first, moves, and becomes the program.
    ///
    /// # Errors
    /// When the lab's own program is not there.
    pub fn command(&self) -> Result<Command> {
        let mut command = match &self.cgroup {
            None => Command::new(&self.program),
            Some(cgroup) => {
                let mut command = Command::new(binary("sluice-lab")?);
                command.arg("run-in").arg("--cgroup").arg(cgroup.dir()).arg("--").arg(&self.program);
                command
            }
        };
        command.args(&self.args).envs(self.env.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Starts it, with its output in `<logs>/<name>.out` and `<logs>/<name>.log` (stderr), appended to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, logs: &Path) -> Result<Process> {
        let open = |suffix: &str| -> Result<(PathBuf, File)> {
            let path = logs.join(format!("{name}.{suffix}"));
            let file = File::options().create(true).append(true).open(&path);
            Ok((path.clone(), file.with_context(|| format!("open {}", path.display()))?))
        };
        let ((stdout, out), (stderr, err)) = (open("out")?, open("log")?);
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = self.netns.run(|| command.spawn().with_context(|| format!("start {name}")))?;
        Ok(Process { name: name.to_owned(), child, stdout, stderr })
    }
}

impl Process {
    /// Its process id in the lab's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Everything that it, and its predecessors of the same name, wrote to stdout.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stdout(&self) -> Result<String> {
        read_from(&self.stdout, 0)
    }

    /// What came to stdout after the first `offset` bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stdout_from(&self, offset: u64) -> Result<String> {
        read_from(&self.stdout, offset)
    }

    /// How many bytes stdout has by now.
    #[must_use]
    pub fn stdout_len(&self) -> u64 {
        std::fs::metadata(&self.stdout).map_or(0, |found| found.len())
    }

    /// The last lines of its stderr and stdout: what an error should quote.
    #[must_use]
    pub fn last_words(&self) -> String {
        let tail = |path: &Path| {
            let all = read_from(path, 0).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            lines[lines.len().saturating_sub(8)..].join("\n  ")
        };
        format!("{} said last:\n  {}\n  {}", self.name, tail(&self.stderr), tail(&self.stdout))
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// How it ended, and its last words.
    pub fn must_run(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); {}", self.name, self.last_words()),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// As [`Process::stop`] for what it runs in its turn: a tracer passes no signal on, and ends with what it traces.
    ///
    /// # Errors
    /// When it runs nothing, or does not end in time.
    pub fn stop_child(mut self, patience: Duration) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child_pid()?), Signal::SIGTERM)?;
        self.until_ended(patience)
    }

    /// As [`Process::kill`] for what it runs in its turn, and waits for its own end too.
    ///
    /// # Errors
    /// When it runs nothing, or does not end in time.
    pub fn kill_child(mut self, patience: Duration) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child_pid()?), Signal::SIGKILL)?;
        self.until_ended(patience)
    }

    /// The process id of what it runs in its turn, in the lab's pid namespace.
    ///
    /// # Errors
    /// When it runs nothing.
    pub fn child_pid(&self) -> Result<i32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .with_context(|| format!("{} has ended", self.name))?;
        let child = children.split_whitespace().next().and_then(|child| child.parse().ok());
        child.with_context(|| format!("{} runs nothing", self.name))
    }

    /// Stops it as an init system does: SIGTERM, and SIGKILL if it has not ended in `patience`.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.until_ended(patience)
    }

    fn until_ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let ended = super::eventually("the end after SIGTERM", patience, || {
            self.ended()?.with_context(|| format!("{name} still runs"))
        });
        ended.map_err(|why| why.context(self.last_words()))
    }

    /// Kills it at once, as an out-of-memory killer does.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_from(path: &Path, offset: u64) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut all = Vec::new();
    file.read_to_end(&mut all)?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}
