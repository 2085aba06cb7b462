//! A node: a host on the fabric with a mount, pid, uts, ipc and cgroup namespace of its own, and on it containerd, a
//! kubelet and kube-proxy.
//!
//! What a node keeps over a reboot is its disk, a directory with `/var/lib`, `/var/log`, `/etc/cni` and `/opt`. The rest,
//! `/run` with it, ends with the node's first process, as on a machine.

pub mod cilium;
pub mod containerd;
pub mod daemon;
pub mod enter;
pub mod flanneld;
pub mod init;
pub mod kube_proxy;
pub mod kubelet;
pub mod network;
mod power;
mod primary;
mod service;

use super::pki::Authority;
use super::programs::Programs;
use super::progress::Progress;
use super::{Options, address, chain, chain::Primary};
use crate::lab::hierarchies::Subtree;
use crate::lab::netns::Netns;
use crate::lab::process::Process;
use crate::lab::{eventually, write_whole};
use anyhow::{Context, Result, ensure};
use daemon::Daemon;
use enter::Place;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a program may take to come up or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node. Dropping it ends it, with all that runs on it.
pub struct Node {
    name: String,
    index: u8,
    primary: Primary,
    daemon: Option<Daemon>,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    place: Place,
    fabric: Netns,
    programs: Programs,
    logs: PathBuf,
    progress: Progress,
    cluster_cgroups: Subtree,
    cgroups: Subtree,
    running: Mutex<Running>,
    reboots: Mutex<Vec<SystemTime>>,
}

/// What ends with a reboot.
#[derive(Default)]
struct Running {
    netns: Option<Netns>,
    kubelet: Option<Process>,
    kube_proxy: Option<Process>,
    daemon: Option<Process>,
    containerd: Option<Process>,
    init: Option<Process>,
}

/// What a node is made of.
pub struct Site<'a> {
    /// The fabric.
    pub fabric: &'a Netns,
    /// The upstream programs.
    pub programs: &'a Programs,
    /// The cluster's directory.
    pub dir: &'a Path,
    /// The cgroup of the whole cluster.
    pub cgroups: &'a Subtree,
    /// Who says what happens.
    pub progress: &'a Progress,
}

impl Node {
    /// Makes node `index`'s disk and certificates; nothing runs yet.
    ///
    /// # Errors
    /// When a file or a cgroup cannot be made.
    pub fn prepare(site: &Site<'_>, index: u8, authority: &Authority, options: &Options) -> Result<Self> {
        let name = format!("node{index}");
        let (v4, v6) = address::node(index);
        let place = Place::create(&site.dir.join("nodes").join(&name))?;
        let bin = place.disk("opt/cni/bin");
        for plugin in std::fs::read_dir(site.programs.cni()).context("list the CNI plugins")? {
            let plugin = plugin?;
            std::fs::copy(plugin.path(), bin.join(plugin.file_name())).context("copy a CNI plugin")?;
        }
        let primary = options.daemon.map_or_else(|| Primary::of_node(index), Daemon::primary);
        if let Some(daemon) = options.daemon {
            daemon.configure(&place, authority, site.programs)?;
        }
        let chain_sluice = options.chain_sluice && options.daemon.is_none();
        chain::install(primary, index, &place.disk("etc/cni/net.d"), &bin, chain_sluice)?;
        containerd::configure(&place, site.programs)?;
        kubelet::configure(&place, authority, &name, [v4.into(), v6.into()], options)?;
        kube_proxy::configure(&place, authority, &name)?;
        Ok(Self {
            v4,
            v6,
            place,
            fabric: site.fabric.clone(),
            programs: site.programs.clone(),
            logs: site.dir.join("logs"),
            progress: site.progress.clone(),
            cgroups: site.cgroups.below(&name)?,
            cluster_cgroups: site.cgroups.clone(),
            running: Mutex::default(),
            reboots: Mutex::default(),
            index,
            primary,
            daemon: options.daemon,
            name,
        })
    }

    /// Starts the machine and its containerd, and loads `images`. The kubelet comes later: it needs the API server.
    ///
    /// # Errors
    /// Which part did not come up, and what it said last.
    pub fn boot(&self, images: &[PathBuf]) -> Result<()> {
        self.power_on()?;
        self.start_containerd()?;
        images.iter().try_for_each(|image| self.load_image(image))
    }

    /// Its name, as Kubernetes knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the fabric, IPv4.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its address on the fabric, IPv6.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// The fabric's end of its link: `node1`, for captures of all that the node sends and receives.
    #[must_use]
    pub fn link(&self) -> &str {
        &self.name
    }

    /// Its network namespace: another one after each reboot.
    ///
    /// # Errors
    /// When it is off.
    pub fn netns(&self) -> Result<Netns> {
        self.lock().netns.clone().with_context(|| format!("{} is off", self.name))
    }

    /// Its cgroup, in every hierarchy. What runs on the node sees it as the root.
    #[must_use]
    pub fn cgroup(&self) -> &Subtree {
        &self.cgroups
    }

    /// Where a path of the node is for those outside of it, while the node is on.
    ///
    /// # Errors
    /// When it is off.
    pub fn path(&self, inside: impl AsRef<Path>) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.place.init()?));
        let inside = inside.as_ref();
        Ok(root.join(inside.strip_prefix("/").unwrap_or(inside)))
    }

    /// Where a path of the node's disk (`var/lib`, `var/log`, `etc/cni`, `opt`) is for those outside of it, on or off.
    #[must_use]
    pub fn disk(&self, path: &str) -> PathBuf {
        self.place.disk(path)
    }

    /// The process id of the node's first process, outside of the node.
    ///
    /// # Errors
    /// When it is off.
    pub fn init(&self) -> Result<i32> {
        self.place.init()
    }

    /// A command that runs a program on the node, as somebody who logged in would.
    ///
    /// # Errors
    /// When this crate's own program is not built.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, program: &[S]) -> Result<Command> {
        self.launch("user.slice", program)?.command()
    }

    /// Runs a program on the node that must succeed; returns its stdout.
    ///
    /// # Errors
    /// With its stderr when it fails.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        let output = self.output(program, b"")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} on {}: {}", program.join(" "), self.name, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program on the node to its end, with `input` on its stdin.
    ///
    /// # Errors
    /// When it cannot be started. Its exit status is for the caller to judge.
    pub fn output(&self, program: &[&str], input: &[u8]) -> Result<Output> {
        self.fabric.output(&mut self.command(program)?, input)
    }

    /// Loads an OCI archive into containerd.
    ///
    /// # Errors
    /// With `ctr`'s words.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        // From stdin, since the node sees other files than we do.
        let mut import = self.command(&["ctr", "--namespace", "k8s.io", "images", "import", "-"])?;
        let file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        let output = import.stdin(file).output().context("start ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "load {} on {}: {}", archive.display(), self.name, said.trim());
        Ok(())
    }

    /// Starts containerd, and returns when it answers.
    ///
    /// # Errors
    /// When it runs already or does not come up.
    pub fn start_containerd(&self) -> Result<()> {
        ensure!(self.lock().containerd.is_none(), "containerd runs already on {}", self.name);
        let program = ["containerd", "--config", containerd::CONFIG];
        let mut process = self.start("containerd", &program)?;
        let socket = self.path(containerd::SOCKET)?;
        eventually("containerd to answer", PATIENCE, || {
            process.must_run()?;
            UnixStream::connect(&socket).context("connect to containerd")
        })
        .map_err(|why| why.context(process.last_words()))?;
        self.lock().containerd = Some(process);
        self.progress.say(&format!("{}: containerd is up", self.name));
        Ok(())
    }

    /// Kills containerd; its containers go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_containerd(&self) -> Result<()> {
        self.kill("containerd", |running| &mut running.containerd)
    }

    /// Starts the kubelet, and returns when it is healthy. It ends at once if containerd does not answer, and nobody
    /// starts it again, as a service manager would.
    ///
    /// # Errors
    /// When it runs already or does not come up.
    pub fn start_kubelet(&self) -> Result<()> {
        ensure!(self.lock().kubelet.is_none(), "the kubelet runs already on {}", self.name);
        let mut process = self.start("kubelet", &kubelet::program(&self.name, self.v4, self.v6))?;
        let (netns, health) = (self.netns()?, SocketAddr::from((Ipv4Addr::LOCALHOST, kubelet::HEALTH_PORT)));
        eventually("the kubelet to be healthy", PATIENCE, || {
            process.must_run()?;
            netns.run(|| TcpStream::connect(health).context("connect to the kubelet"))
        })
        .map_err(|why| why.context(process.last_words()))?;
        self.lock().kubelet = Some(process);
        self.progress.say(&format!("{}: the kubelet is up", self.name));
        Ok(())
    }

    /// Starts what takes part in the cluster: the kubelet, and kube-proxy.
    ///
    /// # Errors
    /// As [`Node::start_kubelet`] and [`Node::start_kube_proxy`].
    pub fn join(&self) -> Result<()> {
        self.start_kube_proxy()?;
        self.start_kubelet()
    }

    /// Kills the kubelet; pods go on. Its cgroup goes with it, as a service manager has it: the next kubelet's is another
    /// one of the same name.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_kubelet(&self) -> Result<()> {
        self.kill("kubelet", |running| &mut running.kubelet)?;
        self.service("kubelet")?.remove()
    }

    /// Starts kube-proxy.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_kube_proxy(&self) -> Result<()> {
        let kube_proxy = self.start("kube-proxy", &kube_proxy::program())?;
        self.lock().kube_proxy = Some(kube_proxy);
        Ok(())
    }

    /// Fails if something on it has ended by itself.
    ///
    /// # Errors
    /// What, and its last words.
    pub fn must_run(&self) -> Result<()> {
        let mut running = self.lock();
        let Running { kubelet, kube_proxy, daemon, containerd, init, .. } = &mut *running;
        [init, containerd, kubelet, kube_proxy, daemon].into_iter().flatten().try_for_each(Process::must_run)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let on = self.lock().init.is_some();
        let off = if on { self.power_off() } else { Ok(()) };
        if let Err(why) = off.and_then(|()| self.place.discard()) {
            eprintln!("{} left something behind: {why:#}", self.name);
        }
    }
}

/// Writes a node's configuration file, as YAML.
fn write_config(place: &Place, inside: &str, config: &serde_json::Value) -> Result<()> {
    let path = place.disk(inside.trim_start_matches('/'));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    write_whole(&path, &serde_norway::to_string(config)?)
}
