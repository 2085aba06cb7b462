//! Kubernetes on one machine: upstream's own programs, with no container engine and no image registry.
//!
//! [`Cluster::up`] makes, inside the private world of [`crate::lab::outer`], a fabric, a [`control_plane`] and
//! [`node`]s on it ([`address`] says where), each node with containerd, a kubelet, kube-proxy and a primary CNI
//! ([`chain`]). [`programs`] finds what `make cluster-bin` has built, [`pki`] says who everybody is, [`audit`] reads
//! what was asked of the API server. [`standing`] keeps a cluster in the background.
//!
//! [`watch`] follows what the API server shows, [`istiod`] tells ztunnel of it, and [`test`] is what all of it is for.
//!
//! There is no DNS in the cluster: pods call each other by address.

pub mod address;
pub mod audit;
pub mod chain;
pub mod control_plane;
pub mod istiod;
pub mod node;
pub mod pki;
pub mod programs;
pub mod progress;
pub mod standing;
pub mod test;
pub mod watch;

use crate::lab::eventually;
use crate::lab::hierarchies::Subtree;
use crate::lab::netns::Netns;
use crate::lab::outer::Outer;
use crate::lab::topology::host;
use anyhow::{Context, Result, anyhow, ensure};
use audit::Audit;
use control_plane::ControlPlane;
use node::daemon::Daemon;
use node::{Node, Site};
use pki::Authority;
use programs::Programs;
use progress::Progress;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The cluster's files, in its private world: `admin.kubeconfig`, `audit.log`, `logs/`, `nodes/<name>/`, `pki/`.
pub const DIR: &str = "/run/sluice-cluster";
/// The fabric's network namespace.
pub const FABRIC: &str = "cluster.fabric";
/// How many nodes there can be.
pub const MAX_NODES: u8 = 3;

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes, 1 to [`MAX_NODES`].
    pub nodes: u8,
    /// How many pods a node takes.
    pub max_pods: u16,
    /// Whether our plugin is chained behind each node's primary CNI.
    pub chain_sluice: bool,
    /// Whose daemon is every node's primary CNI; the usual ones, without a daemon, when it is none.
    pub daemon: Option<Daemon>,
    /// OCI archives that every node's containerd loads.
    pub images: Vec<PathBuf>,
}

/// A running cluster. Dropping it ends it, and leaves nothing.
pub struct Cluster {
    nodes: Vec<Node>,
    control_plane: ControlPlane,
    fabric: Netns,
    dir: PathBuf,
    cgroups: Subtree,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, max_pods: 200, chain_sluice: false, daemon: None, images: Vec::new() }
    }
}

impl Options {
    /// With every image that `make images` has built.
    ///
    /// # Errors
    /// When the directory is there and cannot be listed.
    pub fn with_built_images(mut self) -> Result<Self> {
        let dir = programs::target_dir()?.join("images");
        if dir.is_dir() {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "tar") {
                    self.images.push(path);
                }
            }
        }
        self.images.sort();
        Ok(self)
    }
}

impl Cluster {
    /// Starts a cluster, and returns when its nodes are Ready and pods can be made.
    ///
    /// # Errors
    /// Which part did not come up, why, and what it said last. Nothing of it is left then.
    pub fn up(outer: &Outer, options: &Options) -> Result<Self> {
        let progress = Progress::begin();
        ensure!((1..=MAX_NODES).contains(&options.nodes), "a cluster has 1 to {MAX_NODES} nodes");
        let programs = Programs::find()?;
        let dir = PathBuf::from(DIR);
        match std::fs::remove_dir_all(&dir) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                return Err(why).context("remove what an earlier cluster left");
            }
            _ => {}
        }
        std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("make {DIR}"))?;
        own_files_of_machine()?;
        let fabric = host(FABRIC)?;
        fabric.ip(&format!(
            "link add br0 type bridge\n\
             link set br0 up\n\
             addr add {}/24 dev br0\n\
             addr add {}/64 dev br0 nodad\n",
            address::CONTROL_PLANE_V4,
            address::CONTROL_PLANE_V6,
        ))?;
        let authority = Authority::create(&dir.join("pki"))?;
        let control_plane = ControlPlane::prepare(&fabric, &programs, &dir, &authority, &progress)?;
        let cgroups = Subtree::create(outer.cgroups().name())?;
        let site =
            Site { fabric: &fabric, programs: &programs, dir: &dir, cgroups: &cgroups, progress: &progress };
        let nodes = (1..=options.nodes)
            .map(|index| Node::prepare(&site, index, &authority, options))
            .collect::<Result<_>>()?;
        progress.say("certificates, disks and the fabric are made");
        let cluster = Self { nodes, control_plane, fabric, dir, cgroups };
        cluster.start(&options.images)?;
        if let Some(daemon) = options.daemon {
            cluster.start_daemons(daemon, &programs)?;
            // Only now is there a list of every kind.
            if options.chain_sluice {
                at_once(&cluster.nodes, Node::chain_sluice)?;
            }
        }
        cluster.until_ready(&progress)?;
        Ok(cluster)
    }

    /// Runs kubectl as the administrator; returns its stdout.
    ///
    /// # Errors
    /// With its stderr when it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control_plane.kubectl(args, b"")
    }

    /// The same as a command to start, for what runs beside the caller. It must be started in [`Cluster::fabric`].
    #[must_use]
    pub fn kubectl_command(&self, args: &[&str]) -> std::process::Command {
        self.control_plane.kubectl_command(args)
    }

    /// `kubectl apply` of manifests; returns what was done.
    ///
    /// # Errors
    /// With kubectl's words.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.control_plane.kubectl(&["apply", "--filename", "-"], yaml.as_bytes())
    }

    /// `kubectl delete` of what manifests describe, where it is there.
    ///
    /// # Errors
    /// With kubectl's words.
    pub fn delete(&self, yaml: &str) -> Result<String> {
        let args = ["delete", "--ignore-not-found", "--wait=false", "--filename", "-"];
        self.control_plane.kubectl(&args, yaml.as_bytes())
    }

    /// `helm ARGS…`, with `values` for `--values -`; returns what it said.
    ///
    /// # Errors
    /// With helm's words.
    pub fn helm(&self, args: &[&str], values: &str) -> Result<String> {
        self.control_plane.helm(args, values.as_bytes())
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// The nodes, from `node1` on.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where the control plane is, and a link to each node by the node's name.
    #[must_use]
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// Where it and its nodes are in each cgroup hierarchy.
    #[must_use]
    pub fn cgroups(&self) -> &Subtree {
        &self.cgroups
    }

    /// Its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The administrator's kubeconfig. It works inside of the cluster's private world.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// What was asked of the API server since the beginning.
    #[must_use]
    pub fn audit(&self) -> Audit {
        Audit::of(&self.dir.join("audit.log"))
    }

    /// Loads an OCI archive into every node's containerd.
    ///
    /// # Errors
    /// The first that fails.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        at_once(&self.nodes, |node| node.load_image(archive))
    }

    /// Kills the API server. Everything else goes on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop_apiserver(&self) -> Result<()> {
        self.control_plane.stop_apiserver()
    }

    /// When the API server was away, each time until it was ready again.
    #[must_use]
    pub fn outages(&self) -> Vec<Range<SystemTime>> {
        self.control_plane.outages()
    }

    /// Starts the API server again, and returns when it is ready.
    ///
    /// # Errors
    /// When it runs, or does not get ready.
    pub fn start_apiserver(&self) -> Result<()> {
        self.control_plane.start_apiserver()
    }

    /// Fails if a part of the cluster has ended by itself.
    ///
    /// # Errors
    /// Which, and its last words.
    pub fn must_run(&self) -> Result<()> {
        self.control_plane.must_run()?;
        self.nodes.iter().try_for_each(Node::must_run)
    }

    /// The control plane and the machines at the same time; then the kubelets, which need both.
    fn start(&self, images: &[PathBuf]) -> Result<()> {
        std::thread::scope(|scope| {
            let control_plane = scope.spawn(|| self.control_plane.start());
            let booted = at_once(&self.nodes, |node| node.boot(images));
            let begun = control_plane
                .join()
                .map_err(|_| anyhow!("the thread that starts the control plane panicked"));
            begun.flatten().and(booted)
        })?;
        at_once(&self.nodes, Node::join)
    }

    /// They ask the API server for the node's range of pods, which no controller gives out here.
    fn start_daemons(&self, daemon: Daemon, programs: &Programs) -> Result<()> {
        for objects in daemon.objects(programs)? {
            self.apply(&objects)?;
        }
        for (index, node) in (1..).zip(&self.nodes) {
            let (v4, v6) = address::pods(index);
            let ranges = serde_json::json!({"spec": {"podCIDR": v4, "podCIDRs": [v4, v6]}}).to_string();
            let patch = ["patch", "node", node.name(), "--patch", ranges.as_str()];
            eventually("the node to be known", Duration::from_secs(60), || self.kubectl(&patch))?;
        }
        at_once(&self.nodes, Node::start_daemon)
    }

    fn until_ready(&self, progress: &Progress) -> Result<()> {
        let ready = "-o=jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} {end}";
        eventually("every node to be Ready", Duration::from_secs(120), || {
            // What has ended does not get ready.
            if let Err(why) = self.must_run() {
                return Ok(Err(why));
            }
            let said = self.kubectl(&["get", "nodes", ready])?;
            let all = self.nodes.iter().all(|node| said.contains(&format!("{}=True", node.name())));
            let outcome = if all { Ok(Ok(())) } else { Err(anyhow!("they are: {said}")) };
            outcome.inspect_err(|_| std::thread::sleep(Duration::from_millis(200)))
        })??;
        progress.say("every node is Ready");
        eventually("the namespace default to have its service account", Duration::from_secs(60), || {
            self.kubectl(&["get", "serviceaccount", "default", "-o=name"])
        })?;
        progress.say("the cluster is up");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes first: what runs in cgroups keeps them.
        self.nodes.clear();
        let gone = self.cgroups.remove().and_then(|()| self.fabric.remove());
        if let Err(why) = gone {
            eprintln!("the cluster left something behind: {why:#}");
        }
    }
}

/// Does the same on every node at the same time; the first error, when all are done.
fn at_once(nodes: &[Node], what: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = nodes.iter().map(|node| scope.spawn(|| what(node))).collect();
        let done =
            all.into_iter().map(|one| one.join().map_err(|_| anyhow!("a node's thread panicked")).flatten());
        done.collect::<Vec<_>>().into_iter().collect()
    })
}

/// What each node has its own of must be there to be covered: plain files and a directory, in the private `/etc`.
fn own_files_of_machine() -> Result<()> {
    std::fs::create_dir_all("/etc/cni").context("make /etc/cni")?;
    for path in ["/etc/machine-id", "/etc/hostname", "/etc/resolv.conf"] {
        // The machine's may be a link to somewhere that is not here.
        let kept = std::fs::read(path).unwrap_or_default();
        match std::fs::remove_file(path) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why.into()),
            _ => std::fs::write(path, kept).with_context(|| format!("write {path}"))?,
        }
    }
    Ok(())
}
