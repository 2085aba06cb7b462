//! Runs the plugins of a list as libcni does: environment, stdin, prevResult from plugin to plugin, the cached result
//! for DEL and CHECK, DEL in reverse, and error objects.

use super::list::stdin_of;
use super::{CniError, NetworkList};
use crate::lab::netns::Netns;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One sandbox's one interface, as the runtime names it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`; empty when the runtime has none any more.
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`, in this order.
    pub args: Vec<(String, String)>,
    /// What the runtime offers to plugins that declare the capability.
    pub capabilities: BTreeMap<String, Value>,
}

/// A container runtime's CNI side on one node.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Where the plugins run.
    pub netns: Netns,
    /// `CNI_PATH`
    pub path: Vec<PathBuf>,
    /// Where results are kept between ADD and DEL.
    pub cache: PathBuf,
    /// How long one plugin may take.
    pub timeout: Duration,
}

/// What is kept between ADD and DEL.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    netns: String,
    cni_args: Vec<(String, String)>,
    capability_args: BTreeMap<String, Value>,
    result: Box<RawValue>,
}

/// The cached entry's format, as libcni calls its own.
const KIND: &str = "cniCacheV1";

impl Attachment {
    /// A Kubernetes pod's `eth0`, as containerd describes it.
    #[must_use]
    pub fn of_pod(container_id: &str, netns: &Path, namespace: &str, name: &str, uid: &str) -> Self {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Self {
            container_id: container_id.to_owned(),
            netns: netns.display().to_string(),
            ifname: "eth0".into(),
            args: vec![
                pair("IgnoreUnknown", "1"),
                pair("K8S_POD_NAMESPACE", namespace),
                pair("K8S_POD_NAME", name),
                pair("K8S_POD_INFRA_CONTAINER_ID", container_id),
                pair("K8S_POD_UID", uid),
            ],
            capabilities: BTreeMap::new(),
        }
    }

    fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}

impl Runner {
    /// ADD of the whole list; returns the last plugin's result. Nothing is undone on failure: a runtime follows a
    /// failed ADD with a DEL.
    ///
    /// # Errors
    /// Of the first plugin that fails; those after it are not called.
    pub fn add(&self, list: &NetworkList, to: &Attachment) -> Result<Value, CniError> {
        let mut previous: Option<Box<RawValue>> = None;
        for plugin in &list.plugins {
            let extra = previous.as_ref().map(|result| ("prevResult", result.get()));
            let stdin = stdin_of(list, plugin, &to.capabilities, extra.as_slice());
            let stdout = self.exec(plugin, "ADD", to, &stdin)?;
            previous = Some(result_of(kind(plugin), "add", &stdout)?);
        }
        let wrong = |why: String| CniError::List { name: list.name.clone(), why };
        let result = previous.ok_or_else(|| wrong("no plugin gave a result".into()))?;
        self.keep(list, to, result.clone()).map_err(|why| wrong(format!("keep the result: {why}")))?;
        serde_json::from_str(result.get()).map_err(|why| wrong(why.to_string()))
    }

    /// DEL of the whole list, the last plugin first, with the kept result if there is one.
    ///
    /// # Errors
    /// Of the first plugin that fails; those before it in the list are not called, and the result stays kept.
    pub fn del(&self, list: &NetworkList, to: &Attachment) -> Result<(), CniError> {
        let kept = if list.at_least("0.4.0") { self.kept(list, to) } else { None };
        let extra = kept.as_ref().map(|cached| ("prevResult", cached.result.get()));
        for plugin in list.plugins.iter().rev() {
            let stdin = stdin_of(list, plugin, &to.capabilities, extra.as_slice());
            self.exec(plugin, "DEL", to, &stdin)?;
        }
        // A repeated DEL has nothing to forget.
        let _ = std::fs::remove_file(self.cache_file(list, to));
        Ok(())
    }

    /// CHECK of the whole list, with the kept result.
    ///
    /// # Errors
    /// When the list's version has no CHECK, ADD was not seen, or a plugin fails.
    pub fn check(&self, list: &NetworkList, to: &Attachment) -> Result<(), CniError> {
        let wrong = |why: String| CniError::List { name: list.name.clone(), why };
        if !list.at_least("0.4.0") {
            return Err(wrong(format!("version {} does not support the CHECK command", list.cni_version)));
        }
        if list.disable_check {
            return Ok(());
        }
        let kept = self.kept(list, to).ok_or_else(|| wrong("no cached result of this attachment".into()))?;
        for plugin in &list.plugins {
            let stdin = stdin_of(list, plugin, &to.capabilities, &[("prevResult", kept.result.get())]);
            self.exec(plugin, "CHECK", to, &stdin)?;
        }
        Ok(())
    }

    /// STATUS of the whole list; lists before 1.1.0 have none and are fine.
    ///
    /// # Errors
    /// Of the first plugin that cannot serve ADD.
    pub fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        if !list.at_least("1.1.0") {
            return Ok(());
        }
        for plugin in &list.plugins {
            let stdin = stdin_of(list, plugin, &BTreeMap::new(), &[]);
            self.exec(plugin, "STATUS", &Attachment::default(), &stdin)?;
        }
        Ok(())
    }

    /// DEL of every kept attachment that is not valid any more, then, for lists from 1.1.0 on, GC of every plugin.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn gc(&self, list: &NetworkList, valid: &[Attachment]) -> Result<(), CniError> {
        let is_valid = |cached: &Cached| {
            valid.iter().any(|to| to.container_id == cached.container_id && to.ifname == cached.if_name)
        };
        let mut first = Ok(());
        for cached in self.all_kept(list).into_iter().filter(|cached| !is_valid(cached)) {
            let to = Attachment {
                container_id: cached.container_id,
                netns: cached.netns,
                ifname: cached.if_name,
                args: cached.cni_args,
                capabilities: cached.capability_args,
            };
            first = first.and(self.del(list, &to));
        }
        if !list.at_least("1.1.0") || list.disable_gc {
            return first;
        }
        let named: Vec<Value> = valid
            .iter()
            .map(|to| serde_json::json!({"containerID": to.container_id, "ifname": to.ifname}))
            .collect();
        let named = Value::Array(named).to_string();
        for plugin in &list.plugins {
            let stdin = stdin_of(list, plugin, &BTreeMap::new(), &[("cni.dev/valid-attachments", &named)]);
            first = first.and(self.exec(plugin, "GC", &Attachment::default(), &stdin).map(drop));
        }
        first
    }

    /// The spec versions that a plugin says it supports.
    ///
    /// # Errors
    /// When it fails or says something else.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>, CniError> {
        let conf = Map::from_iter([("type".to_owned(), Value::from(plugin))]);
        let stdout = self.exec(&conf, "VERSION", &Attachment::default(), r#"{"cniVersion":"1.1.0"}"#)?;
        let result = result_of(plugin, "version", &stdout)?;
        let said: Value = serde_json::from_str(result.get()).unwrap_or_default();
        let versions = said["supportedVersions"].as_array().map(|all| {
            all.iter().filter_map(|version| version.as_str().map(str::to_owned)).collect::<Vec<_>>()
        });
        versions.ok_or_else(|| CniError::Result {
            plugin: plugin.to_owned(),
            verb: "version".into(),
            why: "no supportedVersions".into(),
            said: result.get().to_owned(),
        })
    }

    /// Runs one plugin; returns its stdout.
    fn exec(
        &self,
        plugin: &Map<String, Value>,
        verb: &str,
        to: &Attachment,
        stdin: &str,
    ) -> Result<Vec<u8>, CniError> {
        let output = self.exec_raw(kind(plugin), verb, to, stdin.as_bytes())?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(CniError::of_plugin(kind(plugin), verb, &output.stdout, &output.stderr))
    }

    /// Runs one plugin with `stdin` as given, for tests of bad input.
    ///
    /// # Errors
    /// When it cannot be started or does not end; its exit status is for the caller to judge.
    pub fn exec_raw(
        &self,
        plugin: &str,
        verb: &str,
        to: &Attachment,
        stdin: &[u8],
    ) -> Result<Output, CniError> {
        let not_started = |why: String| CniError::NotStarted { plugin: plugin.to_owned(), why };
        let path = self.path.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        let path = path.ok_or_else(|| not_started(format!("not found in {:?}", self.path)))?;
        let mut command = Command::new(path);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", joined(&self.path));
        command.env("CNI_CONTAINERID", &to.container_id).env("CNI_NETNS", &to.netns);
        command.env("CNI_IFNAME", &to.ifname).env("CNI_ARGS", to.args_text()).current_dir("/");
        let run = || Ok(timed(&mut command, stdin, self.timeout));
        let done = self.netns.run(run).map_err(|why| not_started(format!("{why:#}")))?;
        done.map_err(|why| not_started(why.to_string()))?.ok_or_else(|| CniError::TimedOut {
            plugin: plugin.to_owned(),
            verb: verb.to_ascii_lowercase(),
            seconds: self.timeout.as_secs(),
        })
    }

    fn cache_file(&self, list: &NetworkList, to: &Attachment) -> PathBuf {
        self.cache.join(format!("{}-{}-{}", list.name, to.container_id, to.ifname))
    }

    fn keep(&self, list: &NetworkList, to: &Attachment, result: Box<RawValue>) -> std::io::Result<()> {
        let cached = Cached {
            kind: KIND.into(),
            container_id: to.container_id.clone(),
            if_name: to.ifname.clone(),
            network_name: list.name.clone(),
            netns: to.netns.clone(),
            cni_args: to.args.clone(),
            capability_args: to.capabilities.clone(),
            result,
        };
        std::fs::create_dir_all(&self.cache)?;
        std::fs::write(self.cache_file(list, to), serde_json::to_vec(&cached)?)
    }

    fn kept(&self, list: &NetworkList, to: &Attachment) -> Option<Cached> {
        let cached: Cached = serde_json::from_slice(&std::fs::read(self.cache_file(list, to)).ok()?).ok()?;
        (cached.kind == KIND).then_some(cached)
    }

    fn all_kept(&self, list: &NetworkList) -> Vec<Cached> {
        let entries = std::fs::read_dir(&self.cache).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| serde_json::from_slice::<Cached>(&std::fs::read(entry.path()).ok()?).ok())
            .filter(|cached| cached.kind == KIND && cached.network_name == list.name)
            .collect()
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn joined(path: &[PathBuf]) -> String {
    let dirs: Vec<String> = path.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(":")
}

/// A plugin's result as it stands: one JSON object.
fn result_of(plugin: &str, verb: &str, stdout: &[u8]) -> Result<Box<RawValue>, CniError> {
    let text = String::from_utf8_lossy(stdout).into_owned();
    let wrong = |why: &str| CniError::Result {
        plugin: plugin.to_owned(),
        verb: verb.to_owned(),
        why: why.to_owned(),
        said: text.clone(),
    };
    let value: Value = serde_json::from_str(&text).map_err(|why| wrong(&why.to_string()))?;
    if !value.is_object() {
        return Err(wrong("it is no JSON object"));
    }
    RawValue::from_string(text.trim().to_owned()).map_err(|why| wrong(&why.to_string()))
}

/// Runs a command with `input`, or kills it at the deadline and returns `None`.
fn timed(command: &mut Command, input: &[u8], patience: Duration) -> std::io::Result<Option<Output>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn_written(command)?;
    let stdin = child.stdin.take();
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // A plugin that does not read its input is no failure of ours.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        let out = scope.spawn(move || drain(stdout.as_mut()));
        let err = scope.spawn(move || drain(stderr.as_mut()));
        let status = wait(&mut child, patience)?;
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        Ok(status.map(|status| Output { status, stdout: out, stderr: err }))
    })
}

/// Starts a program whose file may have been written a moment ago: another thread's fork can still hold it open for
/// writing, which libcni answers with a few more tries too.
fn spawn_written(command: &mut Command) -> std::io::Result<Child> {
    for _ in 0..5 {
        match command.spawn() {
            Err(why) if why.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
    command.spawn()
}

fn drain(pipe: Option<&mut impl Read>) -> Vec<u8> {
    let mut all = Vec::new();
    // What was read before an error is what there is.
    let _ = pipe.map(|pipe| pipe.read_to_end(&mut all));
    all
}

fn wait(child: &mut Child, patience: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
