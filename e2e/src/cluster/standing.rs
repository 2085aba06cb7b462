//! A cluster that stands in the background: who started it goes away, others come and use it.
//!
//! One per build directory, known by `target/cluster/standing/`: `pid` is the first process of its private world, `log`
//! what it said, `ready` is there when it is up.

use super::{DIR, FABRIC, programs};
use crate::lab::cgroup::Cgroups;
use crate::lab::eventually;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The standing cluster, seen from outside.
#[derive(Debug)]
pub struct Standing {
    dir: PathBuf,
}

impl Standing {
    /// This build directory's, whether it is up or not.
    ///
    /// # Errors
    /// When the running program is in no build directory.
    pub fn here() -> Result<Self> {
        Ok(Self { dir: programs::target_dir()?.join("cluster/standing") })
    }

    /// Starts `serve`, a command of this program that brings a cluster up and calls [`Standing::ready`], and returns
    /// when it has. What it says is shown.
    ///
    /// # Errors
    /// When a cluster stands already, or does not come up.
    pub fn start(&self, serve: &mut Command) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("a cluster stands already (process {pid}): `make cluster-down` ends it");
        }
        self.forget()?;
        std::fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let log = File::create(self.dir.join("log"))?;
        let mut world = serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut said = File::open(self.dir.join("log"))?;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let ended = world.try_wait()?;
            let mut news = Vec::new();
            said.read_to_end(&mut news)?;
            std::io::stdout().write_all(&news)?;
            if let Some(status) = ended {
                bail!("the cluster did not come up ({status}); {}", self.dir.join("log").display());
            }
            self.note_pid(world.id())?;
            if self.dir.join("ready").exists() {
                return Ok(());
            }
        }
    }

    /// Says that it is up; from inside.
    ///
    /// # Errors
    /// When it cannot be said.
    pub fn ready(&self) -> Result<()> {
        std::fs::write(self.dir.join("ready"), "").context("say that the cluster is up")
    }

    /// Ends it, and returns when nothing of it is left; of one that was killed, too. Says whether one stood.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Result<bool> {
        let Some(pid) = self.pid() else {
            Cgroups::remove_dead()?;
            self.forget()?;
            return Ok(false);
        };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .context("end the cluster")?;
        eventually("the cluster to end", Duration::from_secs(60), || {
            ensure!(self.pid().is_none(), "process {pid} still runs");
            Ok(())
        })?;
        self.forget()?;
        Ok(true)
    }

    /// Becomes `program`, on the control plane's host, with kubectl and its kubeconfig ready.
    ///
    /// # Errors
    /// When no cluster stands, or the kernel refuses.
    pub fn enter(&self, program: &[OsString]) -> Result<()> {
        let pid = self.must_stand()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = programs::Programs::find()?.dir().display().to_string();
        let failure = Command::new("nsenter")
            .args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--pid"])
            .arg(format!("--net=/proc/{pid}/root/run/netns/{FABRIC}"))
            .arg("--")
            .args(program)
            .env("PATH", format!("{bin}:{path}"))
            .env("KUBECONFIG", format!("{DIR}/admin.kubeconfig"))
            .exec();
        bail!("nsenter(1), from the package util-linux, could not be started: {failure}")
    }

    fn must_stand(&self) -> Result<i32> {
        self.pid().context("no cluster stands: `make cluster-up` starts one")
    }

    /// The first process of the private world, if it still lives.
    fn pid(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.dir.join("pid")).ok()?;
        let (pid, begun) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        // The number may be another process's by now.
        (begin(pid)? == begun).then_some(pid)
    }

    /// Writes down the first process of the world that `unshare(1)`, process `parent`, has made.
    fn note_pid(&self, parent: u32) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) else {
            return Ok(());
        };
        let Some(begun) = begin(pid) else { return Ok(()) };
        crate::lab::write_whole(&self.dir.join("pid"), &format!("{pid} {begun}\n"))
    }

    fn forget(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                Err(why).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// When a process began, in clock ticks since the machine's start: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
/// None when there is none, or only its zombie.
fn begin(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}
