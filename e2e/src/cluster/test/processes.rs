//! A pod's processes, found by the pod's cgroup, which names its uid: what they use, and what they tell in their own
//! network namespace, where asking disturbs nothing.

use crate::app::totals::Totals;
use crate::cluster::watch::seen::Pod;
use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A process of a pod.
#[derive(Clone, Debug)]
pub struct PodProcess {
    dir: PathBuf,
}

/// The kernel's unit of a process's start time: USER_HZ, which is 100 on every architecture that Linux has today.
const TICKS: f64 = 100.0;
/// How long an application on the same machine may take to tell something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every process of `pod`, its pause container's included.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of(pod: &Pod) -> Result<Vec<PodProcess>> {
    // With the cgroup driver cgroupfs, a pod's directory is called so.
    let name = format!("/pod{}/", pod.uid);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let is_process = dir.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
        // One that has ended in between is of no pod any more.
        let cgroups = is_process.then(|| fs::read_to_string(dir.join("cgroup")).unwrap_or_default());
        if cgroups.is_some_and(|cgroups| cgroups.contains(&name)) {
            found.push(PodProcess { dir });
        }
    }
    Ok(found)
}

/// The process of `pod` that runs the program called `program`.
///
/// # Errors
/// When none does.
pub fn program(pod: &Pod, program: &str) -> Result<PodProcess> {
    // The kernel keeps the first 15 bytes of a name.
    let short = &program[..program.len().min(15)];
    let mut processes = of(pod)?.into_iter();
    let found = processes.find(|process| process.read("comm").is_ok_and(|name| name.trim() == short));
    found.with_context(|| format!("no process of {} runs {program}", pod.full_name()))
}

/// What a client pod counted.
///
/// # Errors
/// When it does not run, or does not answer.
pub fn totals(pod: &Pod) -> Result<Totals> {
    let process = program(pod, "sluice-app")?;
    let body = process.get(super::shapes::TOTALS, "/totals")?;
    serde_json::from_str(&body).with_context(|| format!("read the totals of {}: {body}", pod.full_name()))
}

impl PodProcess {
    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Its resident memory (`VmRSS`), in kB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS is {line:?}"))
    }

    /// Kills it, as a crash does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(&self) -> Result<()> {
        let pid = self.dir.file_name().and_then(|name| name.to_str()?.parse().ok()).context("no process")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill it")
    }

    /// When it was started, to a hundredth of a second.
    ///
    /// # Errors
    /// When it has ended.
    pub fn started(&self) -> Result<SystemTime> {
        let stat = self.read("stat")?;
        // Field 22; the name in field 2 may hold anything, so what follows it is counted (proc_pid_stat(5)).
        let after = stat.rsplit_once(") ").context("a strange stat")?.1;
        let ticks: f64 = after.split(' ').nth(19).context("a short stat")?.parse()?;
        let uptime = fs::read_to_string("/proc/uptime")?;
        let uptime: f64 = uptime.split(' ').next().context("a strange uptime")?.parse()?;
        let age = Duration::try_from_secs_f64((uptime - ticks / TICKS).max(0.0))?;
        Ok(SystemTime::now() - age)
    }

    /// `GET PATH` on the loopback address of its pod.
    ///
    /// # Errors
    /// When nothing answers there, or with another status than 200.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        self.ask("GET", port, path)
    }

    /// `METHOD PATH` on the loopback address of its pod.
    ///
    /// # Errors
    /// When nothing answers there, or with another status than 200.
    pub fn ask(&self, method: &str, port: u16, path: &str) -> Result<String> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        let answer = self.within(|| {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream =
                TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("ask {to}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{head}: {body}");
        Ok(body.to_owned())
    }

    /// Does something in the network namespace of its pod.
    ///
    /// # Errors
    /// When it has ended, and those of `act`.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(self.dir.join("ns/net")).context("open the pod's network namespace")?;
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).context("enter the pod's network namespace")?;
                act()
            });
            acting.join().map_err(|_| anyhow!("the thread in the pod's network namespace panicked"))?
        })
    }
}
/// What runs in this pid namespace beside this program, by id and name. One that has ended and waits to be reaped goes
/// with the namespace.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn others() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may end while it is looked at. The name is in parentheses, and may have some itself (proc_pid_stat(5)).
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if pid != std::process::id() && !rest.trim_start().starts_with(['Z', 'X']) {
            found.push(format!("{name})"));
        }
    }
    Ok(found)
}
