//! The agent under test on a node: its configuration, its pods file, its life, and what `sluicectl` says of it.

use super::process::{Launch, Process, binary};
use super::topology::Node;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sluice_shared::admin::{NodeStatus, PodStatus, State};
use sluice_shared::facts::{NamespaceFacts, PodFacts, StringMap};
use sluice_shared::ids::PodUid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a loaded machine may take for what should take milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `sluicectl`'s exit code for "there is an answer, and a pod that should be captured is not".
const NOT_CAPTURED: i32 = 2;

/// A node's agent: running or not, with what it is configured to be.
#[derive(Debug)]
pub struct Agent {
    launch: Launch,
    /// Whether `launch` starts another program, which starts the agent.
    wrapped: bool,
    logs: PathBuf,
    admin_socket: PathBuf,
    process: Option<Process>,
    /// What the API server would say.
    pub pods: PodsFile,
}

/// The file that stands in for the API server. Every change is written at once.
#[derive(Debug)]
pub struct PodsFile {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Content {
    namespaces: Vec<NamespaceFacts>,
    pods: Vec<PodFacts>,
}

impl Agent {
    /// Configures a node's agent, with `changes` to the lab's configuration (a key with `null` is left out).
    ///
    /// # Errors
    /// When there is no agent to run, or a file cannot be written.
    pub fn configure(node: &Node, changes: &Value) -> Result<Self> {
        let pods = PodsFile::create(&node.dir.join("pods.yaml"))?;
        let admin_socket = node.socket("admin.sock");
        let ours = json!({
            "source": "file",
            "podsFile": pods.path,
            "nodeName": node.name,
            "agentSocket": node.socket("agent.sock"),
            "adminSocket": admin_socket,
            "zdsSocket": node.socket("ztunnel.sock"),
            "stateDir": node.dir.join("state"),
            "runDir": node.dir.join("run"),
            "hostNetns": node.netns.path(),
            "kubeletCgroup": node.kubelet.path,
            "dnsCapture": true,
            // Not left to the self-test: what a test goes by must not change while it runs.
            "probes": "snat",
            // Below the limit in the chains of this lab, which is shorter than the plugin's own: tests wait for it.
            "addTimeoutSeconds": 8,
            // Every node's pods are in the lab's one directory, with the same addresses.
            "netnsDirs": [],
            "criSocket": "",
            "logLevel": "debug",
        });
        let mut keys: Map<String, Value> = ours.as_object().cloned().unwrap_or_default();
        for (key, value) in changes.as_object().into_iter().flatten() {
            keys.insert(key.clone(), value.clone());
        }
        keys.retain(|_, value| !value.is_null());
        let config = node.dir.join("agent.yaml");
        super::write_whole(&config, &serde_norway::to_string(&keys)?)?;
        let launch = Launch::new(binary("sluice-agent")?, &node.netns)
            .in_cgroup(&node.cgroup("agent")?)
            .arg("--config")
            .arg(&config);
        Ok(Self { launch, wrapped: false, logs: node.logs(), admin_socket, process: None, pods })
    }

    /// Starts it and waits until it serves ADDs.
    ///
    /// # Errors
    /// When it ends or does not serve in time; with its last words.
    pub fn start(&mut self) -> Result<()> {
        self.launch_only()?;
        self.until_serving()
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn launch_only(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the agent runs already");
        self.process = Some(self.launch.start("agent", &self.logs)?);
        Ok(())
    }

    /// Waits until it serves ADDs.
    ///
    /// # Errors
    /// When it ends or does not serve in time; with its last words.
    pub fn until_serving(&mut self) -> Result<()> {
        super::eventually("the agent to serve", PATIENCE, || {
            self.running()?.must_run()?;
            let status = self.status()?;
            ensure!(status.serving, "its status says that it does not serve");
            Ok(())
        })
        .map_err(|why| why.context(self.last_words()))
    }

    /// The running process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent is not running")
    }

    /// Kills it as an out-of-memory killer does.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent is not running")?.kill()
    }

    /// Stops it as the kubelet does.
    ///
    /// # Errors
    /// When it does not end within 10 s, or not well.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("the agent is not running")?;
        let patience = Duration::from_secs(10);
        let status = if self.wrapped { process.stop_child(patience)? } else { process.stop(patience)? };
        ensure!(status.success(), "the agent ended with {status}; {}", self.last_words());
        Ok(())
    }

    /// Stops (`SIGSTOP`) or continues it: a hung agent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn hang(&mut self, hung: bool) -> Result<()> {
        self.running()?.signal(if hung { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    /// The command that starts it, for a test that wants to trace it.
    #[must_use]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Has `wrapper` start it: `strace`, `perf`.
    ///
    /// # Errors
    /// When it runs already.
    pub fn wrap(&mut self, wrapper: &str, args: &[&str]) -> Result<()> {
        ensure!(self.process.is_none(), "the agent runs already");
        self.wrapped = true;
        let program = std::mem::replace(&mut self.launch.program, PathBuf::from(wrapper));
        let rest = std::mem::take(&mut self.launch.args);
        self.launch.args =
            args.iter().map(Into::into).chain([program.into_os_string()]).chain(rest).collect();
        Ok(())
    }

    /// What `sluicectl status` says.
    ///
    /// # Errors
    /// When it fails or its JSON is not what it should be.
    pub fn status(&self) -> Result<NodeStatus> {
        let reply = self.ctl(&["status", "--output", "json"])?;
        serde_json::from_str(&reply).with_context(|| format!("read {reply}"))
    }

    /// What `sluicectl why` says of a pod.
    ///
    /// # Errors
    /// When it fails or its JSON is not what it should be.
    pub fn why(&self, pod: &PodFacts) -> Result<PodStatus> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let reply = self.ctl(&["why", &name, "--output", "json"])?;
        serde_json::from_str(&reply).with_context(|| format!("read {reply}"))
    }

    /// Waits until the agent says that a pod is in `state`.
    ///
    /// # Errors
    /// What it says instead.
    pub fn until(&self, pod: &PodFacts, state: State) -> Result<PodStatus> {
        self.until_says(pod, state, "")
    }

    /// As [`Agent::until`], with `words` in the reason that it gives.
    ///
    /// # Errors
    /// What it says instead.
    pub fn until_says(&self, pod: &PodFacts, state: State, words: &str) -> Result<PodStatus> {
        super::eventually(&format!("{} to be {state} {words}", pod.name), PATIENCE, || {
            let status = self.status()?;
            let found = status.pods.into_iter().find(|found| found.uid == pod.uid);
            let found = found.with_context(|| format!("the agent does not know {}", pod.name))?;
            let as_wanted = found.state == state && found.reason.contains(words);
            ensure!(as_wanted, "it is {}: {}", found.state, found.reason);
            Ok(found)
        })
        .map_err(|why| why.context(self.last_words()))
    }

    /// Runs `sluicectl`; returns its stdout, also when it says by its exit code that a pod is not as it should be.
    ///
    /// # Errors
    /// With what it said when it could not get an answer.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("sluicectl")?);
        command.args(args).arg("--socket").arg(&self.admin_socket);
        let output = self.launch.netns.output(&mut command, b"")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let answered = matches!(output.status.code(), Some(0 | NOT_CAPTURED));
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(answered, "sluicectl {}: {} {}", args.join(" "), stderr.trim(), said.trim());
        Ok(said)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the agent's log ends:\n  {}", lines[lines.len().saturating_sub(12)..].join("\n  "))
    }

    /// Its log, over all of its lives.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.logs.join("agent.log")
    }
}

impl PodsFile {
    fn create(path: &Path) -> Result<Self> {
        let file = Self { path: path.to_path_buf(), content: Mutex::default() };
        file.change(|_| {})?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets a namespace's labels, making it if need be.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let pairs = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let labels: StringMap = BTreeMap::from_iter(pairs);
        self.change(|content| {
            content.namespaces.retain(|found| found.name != name);
            content.namespaces.push(NamespaceFacts { name: name.to_owned(), labels });
        })
    }

    /// Sets what is known of a pod.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn pod(&self, pod: &PodFacts) -> Result<()> {
        self.change(|content| {
            content.pods.retain(|found| found.uid != pod.uid);
            content.pods.push(pod.clone());
        })
    }

    /// Changes a pod that is there.
    ///
    /// # Errors
    /// When it is not there, or the file cannot be written.
    pub fn edit(&self, uid: &PodUid, edit: impl FnOnce(&mut PodFacts)) -> Result<()> {
        let mut found = false;
        self.change(|content| {
            if let Some(pod) = content.pods.iter_mut().find(|pod| pod.uid == *uid) {
                edit(pod);
                found = true;
            }
        })?;
        if !found {
            bail!("no pod {} in {}", uid.as_str(), self.path.display());
        }
        Ok(())
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&self, uid: &PodUid) -> Result<()> {
        self.change(|content| content.pods.retain(|pod| pod.uid != *uid))
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> Result<()> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut content);
        super::write_whole(&self.path, &serde_norway::to_string(&*content)?)
    }
}
