//! What the scenarios share: the cluster, what the API server shows of it, the stand-in for istiod, and how to look.

use super::container_log::{self, Line};
use super::evidence::Evidence;
use super::leaks::{Judgement, judge};
use super::lives::lives;
use super::sandboxes::Failures;
use super::wire::Wire;
use super::{manifests, processes, shapes};
use crate::app::totals::Totals;
use crate::cluster::istiod::Istiod;
use crate::cluster::node::{Node, daemon::Daemon};
use crate::cluster::watch::seen::Pod;
use crate::cluster::watch::{Change, Seen, Watch};
use crate::cluster::{Cluster, Options};
use crate::lab::outer::Outer;
use crate::lab::process::binary;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_shared::admin::NodeStatus;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a loaded machine may take for what should take a second.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take for a hundred pods.
pub const CROWD: Duration = Duration::from_secs(240);

/// Everything that the scenarios use. Its parts end in the order in which they are named.
pub struct Stage {
    istiod: Istiod,
    watch: Arc<Watch>,
    cluster: Arc<Cluster>,
    /// Since when nothing of a pod of the mesh may leave uncaptured, from its first packet on.
    guarded: Option<SystemTime>,
    captures: PathBuf,
    /// When the agents had no rights.
    without_rights: Mutex<Vec<Range<SystemTime>>>,
}

impl Stage {
    /// Starts a cluster without Sluice, and what watches it; with a real primary CNI's daemon, if it is to be.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn set(outer: &Outer, daemon: Option<Daemon>) -> Result<Self> {
        let options = Options { daemon, ..Options::default() }.with_built_images()?;
        ensure!(!options.images.is_empty(), "there are no images: `make images` builds them");
        let cluster = Arc::new(Cluster::up(outer, &options)?);
        let captures = cluster.dir().join("captures");
        std::fs::create_dir_all(&captures).with_context(|| format!("make {}", captures.display()))?;
        let theirs = Arc::clone(&cluster);
        let kubectl = move |args: &[&str]| {
            let mut command = theirs.kubectl_command(args);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            theirs.fabric().run(|| command.spawn().context("start kubectl"))
        };
        let watch = Arc::new(Watch::start(Arc::new(kubectl), PATIENCE)?);
        let theirs = Arc::clone(&cluster);
        let files = move || {
            let nodes = theirs.nodes().iter();
            nodes.filter_map(|node| node.path(manifests::WORKLOADS_FILE).ok()).collect()
        };
        let istiod = Istiod::start(Arc::clone(&watch), files)?;
        Ok(Self { istiod, watch, cluster, guarded: None, captures, without_rights: Mutex::default() })
    }

    /// Puts Sluice and ztunnel onto every node, if they are not there; returns when they are Ready.
    ///
    /// # Errors
    /// What is not Ready, and why.
    pub fn install(&mut self) -> Result<()> {
        if self.guarded.is_some() {
            return Ok(());
        }
        for node in self.cluster.nodes() {
            node.chain_sluice()?;
        }
        for manifest in manifests::sluice()?.iter().chain(&manifests::ztunnel()?) {
            self.cluster.apply(manifest)?;
        }
        self.until_installed()?;
        self.guarded = Some(SystemTime::now());
        Ok(())
    }

    /// Applies Sluice's manifests again, and returns when everything is Ready.
    ///
    /// # Errors
    /// What is not Ready, and why.
    pub fn reinstall(&self) -> Result<()> {
        for manifest in manifests::sluice()? {
            self.cluster.apply(&manifest)?;
        }
        self.until_installed()
    }

    /// Takes away what [`Stage::install`] put there, but for ztunnel, so that Sluice can be installed by other means.
    /// Pods of the mesh keep their rules, and ztunnel serves them on.
    ///
    /// # Errors
    /// What does not go.
    pub fn uninstall(&self) -> Result<()> {
        self.taking_rights_away(|| {
            for manifest in manifests::admission()?.iter().chain(&manifests::sluice()?) {
                self.cluster.delete(manifest)?;
            }
            self.cluster.nodes().iter().try_for_each(Node::unchain_sluice)?;
            // The namespace is one of the manifests; it goes last.
            let namespace = format!("namespace/{}", manifests::AGENT.0);
            self.kubectl(&["wait", "--for=delete", &namespace, "--timeout=90s"]).map(drop)
        })
    }

    /// Does what takes the agents' rights away while they still end; returns when they are gone.
    ///
    /// # Errors
    /// Those of `act`.
    pub fn taking_rights_away<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = SystemTime::now();
        let done = act();
        let mut spans = self.without_rights.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(begun..SystemTime::now());
        done
    }

    /// When the API server was right to refuse the agents: it was not ready, or the test had taken their rights away.
    #[must_use]
    pub fn refusals(&self) -> Vec<Range<SystemTime>> {
        let taken = self.without_rights.lock().unwrap_or_else(PoisonError::into_inner);
        [self.cluster.outages(), taken.clone()].concat()
    }

    /// Takes everything down; says what is left then: processes of this pid namespace, cgroups, nodes' disks.
    ///
    /// # Errors
    /// What is left.
    pub fn strike(self) -> Result<String> {
        let cgroups = self.cluster.cgroups().dirs().to_vec();
        let disks = self.cluster.dir().join("nodes");
        drop(self);
        let mut left: Vec<_> =
            cgroups.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()).collect();
        let disks = std::fs::read_dir(&disks).with_context(|| format!("list {}", disks.display()))?;
        left.extend(disks.flatten().map(|entry| entry.path().display().to_string()));
        left.extend(processes::others()?);
        ensure!(left.is_empty(), "{} left: {}", left.len(), left.join(", "));
        Ok(format!("no process, no disk, none of {} cgroups", cgroups.len()))
    }

    /// Gathers what a failure is to be understood by: logs, captures, the audit log; not what nodes run from.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn evidence(&self) -> Result<Evidence> {
        let mut evidence = Evidence::begin(self.cluster.dir())?;
        evidence.take(&self.cluster.dir().join("logs"), "logs");
        evidence.take(&self.captures, "captures");
        evidence.take(&self.cluster.dir().join("audit.log"), "audit.log");
        for node in self.cluster.nodes() {
            // From the disk itself: a node may be off by now.
            evidence.take(&node.disk("var/log/pods"), node.name());
        }
        for (name, args) in [("events", ["get", "events"]), ("pods", ["get", "pods"])] {
            let said = self.kubectl(&[&args[..], &["--all-namespaces", "--output=wide"]].concat());
            evidence.write(name, &said.unwrap_or_else(|why| format!("{why:#}")));
        }
        Ok(evidence)
    }

    /// Waits until agent and ztunnel are Ready on every node.
    ///
    /// # Errors
    /// Which are not, and what they said last.
    pub fn until_installed(&self) -> Result<()> {
        let wanted = self.cluster.nodes().len();
        self.watch.until("agent and ztunnel to be Ready on every node", PATIENCE * 2, |seen| {
            for daemon_set in [manifests::AGENT, manifests::ZTUNNEL] {
                let pods = manifests::of_daemon_set(seen, daemon_set);
                let ready = pods.iter().filter(|pod| pod.ready && !pod.deleting).count();
                let all = ready == wanted && pods.len() == wanted;
                ensure!(all, "{ready} of {wanted} pods of {} are Ready", daemon_set.1);
            }
            Ok(())
        })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A node: the first is 1.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, index: usize) -> Result<&Node> {
        self.cluster.node(&format!("node{index}"))
    }

    /// Makes objects, or changes them.
    ///
    /// # Errors
    /// With the API server's words.
    pub fn apply(&self, items: &[Value]) -> Result<()> {
        self.cluster.apply(&shapes::list(items).to_string()).map(drop)
    }

    /// `kubectl ARGS…`
    ///
    /// # Errors
    /// With its words.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(args)
    }

    /// Removes namespaces with all that is in them, and returns when their pods are gone.
    ///
    /// # Errors
    /// When they do not go.
    pub fn remove(&self, namespaces: &[&str]) -> Result<()> {
        let args = [&["delete", "namespace", "--wait=false", "--ignore-not-found"], namespaces].concat();
        self.kubectl(&args)?;
        self.watch.until("the pods to go", CROWD, |seen| {
            let left = seen.pods.values().filter(|pod| namespaces.contains(&pod.namespace.as_str())).count();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
    }

    /// What the API server has now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.watch.seen()
    }

    /// Everything that the API server showed, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Change> {
        self.watch.log()
    }

    /// Waits for something that the API server shows.
    ///
    /// # Errors
    /// What was waited for, and what there was instead.
    pub fn until<T>(
        &self,
        what: &str,
        patience: Duration,
        look: impl FnMut(&Seen) -> Result<T>,
    ) -> Result<T> {
        self.watch.until(what, patience, look)
    }

    /// A pod as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.seen().pod(namespace, name).cloned()
    }

    /// Waits until these pods are Ready; returns them.
    ///
    /// # Errors
    /// Which are not.
    pub fn until_ready(&self, namespace: &str, names: &[&str]) -> Result<Vec<Pod>> {
        self.until(&format!("{} to be Ready", names.join(", ")), PATIENCE, |seen| {
            let pods = names.iter().map(|name| {
                let pod = seen.pod(namespace, name)?;
                ensure!(pod.ready && !pod.deleting, "{} is {}, not Ready", pod.full_name(), pod.phase);
                Ok(pod.clone())
            });
            pods.collect()
        })
    }

    /// Waits until these pods' annotation says `enabled`, or is not there.
    ///
    /// # Errors
    /// Which pods say something else.
    pub fn until_captured(&self, namespace: &str, names: &[&str], captured: bool) -> Result<Vec<Pod>> {
        let state = if captured { "captured" } else { "let go" };
        self.until(&format!("{} to be {state}", names.join(", ")), PATIENCE, |seen| {
            let pods = names.iter().map(|name| {
                let pod = seen.pod(namespace, name)?;
                let says = &pod.redirection;
                let as_wanted = if captured { pod.hbone() } else { says.is_none() };
                ensure!(as_wanted, "the annotation of {} says {says:?}", pod.full_name());
                Ok(pod.clone())
            });
            pods.collect()
        })
    }

    /// What `sluicectl status` says on a node.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self, node: &Node) -> Result<NodeStatus> {
        let socket = node.path(sluice_shared::contract::ADMIN_SOCKET)?;
        let mut command = Command::new(binary("sluicectl")?);
        let output = command.args(["status", "--output", "json", "--socket"]).arg(&socket).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        // 2 says that a pod is not as it should be; there is an answer all the same.
        ensure!(matches!(output.status.code(), Some(0 | 2)), "sluicectl on {}: {}", node.name(), said.trim());
        serde_json::from_slice(&output.stdout).context("read what sluicectl says")
    }

    /// What a client pod counted until now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn totals(&self, namespace: &str, name: &str) -> Result<Totals> {
        processes::totals(&self.pod(namespace, name)?)
    }

    /// The agent's pod on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent(&self, node: &str) -> Result<Pod> {
        manifests::on_node(&self.seen(), manifests::AGENT, node)
    }

    /// ztunnel's pod on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn ztunnel(&self, node: &str) -> Result<Pod> {
        manifests::on_node(&self.seen(), manifests::ZTUNNEL, node)
    }

    /// What a pod's container said in all of its lives on this node, a line each, without the runtime's prefix. Read
    /// from the node's disk, so that neither API server nor kubelet has to be up.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn said(&self, pod: &Pod, container: &str) -> Result<Vec<Line>> {
        let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        let dir =
            self.cluster.node(&pod.node)?.path(Path::new("/var/log/pods").join(name).join(container))?;
        container_log::read(&dir)
    }

    /// Listens everywhere.
    ///
    /// # Errors
    /// When a capture cannot be started.
    pub fn listen(&self) -> Result<Wire> {
        Wire::everywhere(&self.cluster, &self.captures)
    }

    /// Listens everywhere but on this node.
    ///
    /// # Errors
    /// When a capture cannot be started.
    pub fn listen_but_on(&self, node: &Node) -> Result<Wire> {
        Wire::everywhere_but_on(node, &self.cluster, &self.captures)
    }

    /// Where captures go.
    #[must_use]
    pub fn captures(&self) -> &Path {
        &self.captures
    }

    /// Ends captures, and judges what they saw by what the pods were.
    ///
    /// # Errors
    /// When a capture lost packets, or the stand-in for istiod could not do its work.
    pub fn judge(&self, wire: Result<Wire>) -> Result<Judgement> {
        let packets = wire?.close()?;
        ensure!(self.istiod.failure().is_none(), "the stand-in for istiod: {:?}", self.istiod.failure());
        let guarded = self.guarded.context("nothing is installed")?;
        Ok(judge(&packets, &lives(&self.log(), guarded)))
    }

    /// Sandboxes that failed in a namespace until now: `POD: MESSAGE`, and how often.
    ///
    /// # Errors
    /// With kubectl's words.
    pub fn failed_sandboxes(&self, namespace: &str) -> Result<Failures> {
        let selector = "--field-selector=reason=FailedCreatePodSandBox";
        let args = ["get", "events", "--namespace", namespace, selector, "--output=json"];
        Ok(Failures::of(&serde_json::from_str(&self.kubectl(&args)?)?))
    }
}
