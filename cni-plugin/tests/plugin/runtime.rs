//! The runtime's side: a node's directories, a sandbox's namespace, one run of the plugin.

use serde_json::{Value, json};
use sluice_shared::ids::NetnsId;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The versions that the plugin speaks.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Far more than any run may take, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node: where the agent's socket and its state would be.
pub struct Node {
    dir: tempfile::TempDir,
}

/// A sandbox's network namespace, kept by a process that waits in it.
pub struct Sandbox {
    keeper: Child,
}

/// One run of the plugin, to be described and then done.
pub struct Call {
    env: Vec<(&'static str, OsString)>,
    stdin: Vec<u8>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Node {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub fn membership(&self) -> PathBuf {
        self.dir.path().join("membership.json")
    }

    pub fn lease(&self) -> PathBuf {
        self.dir.path().join("lease.json")
    }

    /// A netconf for this node, as text, with prevResult put in byte for byte.
    pub fn conf(&self, version: &str, prev_result: Option<&str>) -> String {
        self.conf_with(version, prev_result, &json!({}))
    }

    /// The same with more keys, which win over ours.
    pub fn conf_with(&self, version: &str, prev_result: Option<&str>, more: &Value) -> String {
        let mut conf = json!({
            "cniVersion": version,
            "name": "k8s-pod-network",
            "type": "sluice-cni",
            "agentSocket": self.socket(),
            "stateDir": self.dir.path(),
            // Long enough for every agent here that answers, and short for those that do not.
            "timeoutSeconds": 2,
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": null},
        });
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let text = conf.to_string();
        match prev_result {
            None => text,
            Some(raw) => format!("{},\n \"prevResult\" : {raw}\n}}\n", &text[..text.len() - 1]),
        }
    }
}

impl Sandbox {
    pub fn new() -> Self {
        let mut unshare = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        let keeper = unshare
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need unshare(1) of util-linux");
        let sandbox = Self { keeper };
        let ours = identity("/proc/self/ns/net").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while identity(&sandbox.netns()).is_none_or(|theirs| theirs == ours) {
            assert!(Instant::now() < deadline, "unshare --net made no network namespace: not root?");
            std::thread::sleep(Duration::from_millis(2));
        }
        sandbox
    }

    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    pub fn id(&self) -> NetnsId {
        identity(&self.netns()).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Call {
    /// A verb about pod shop/cart, with `stdin` as the netconf.
    pub fn new(verb: &str, stdin: impl Into<Vec<u8>>) -> Self {
        Self { env: Vec::new(), stdin: stdin.into() }
            .with("CNI_COMMAND", verb)
            .with("CNI_CONTAINERID", "c0ffee")
            .with("CNI_IFNAME", "eth0")
            .with("CNI_PATH", "/opt/cni/bin")
            .pod("shop", "cart")
    }

    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| *known != name);
        self
    }

    pub fn pod(self, namespace: &str, name: &str) -> Self {
        self.with(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=6f1d8d1e-0001"
            ),
        )
    }

    pub fn netns(self, sandbox: &Sandbox) -> Self {
        self.with("CNI_NETNS", sandbox.netns())
    }

    pub fn run(self) -> Outcome {
        self.run_with(|stdin, bytes| {
            // A plugin that has seen enough may be gone before it has read everything.
            let _ = stdin.write_all(bytes);
            true
        })
    }

    /// With a stdin that is written and then stays open.
    pub fn run_with_open_stdin(self) -> Outcome {
        self.run_with(|stdin, bytes| {
            let _ = stdin.write_all(bytes);
            false
        })
    }

    /// The plugin's process, not yet started. `SLUICE_CNI` names another binary than the one just built: the static
    /// one that is put on nodes.
    pub fn process(&self) -> Command {
        let built = || OsString::from(env!("CARGO_BIN_EXE_sluice-cni"));
        let mut plugin = Command::new(std::env::var_os("SLUICE_CNI").unwrap_or_else(built));
        plugin.env_clear().envs(self.env.iter().cloned());
        plugin
    }

    fn run_with(self, write: impl FnOnce(&mut std::process::ChildStdin, &[u8]) -> bool) -> Outcome {
        let began = Instant::now();
        let mut plugin = self
            .process()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = plugin.stdin.take().unwrap();
        let keep = if write(&mut stdin, &self.stdin) {
            drop(stdin);
            None
        } else {
            Some(stdin)
        };
        let (mut stdout, mut stderr) = (String::new(), String::new());
        plugin.stdout.take().unwrap().read_to_string(&mut stdout).expect("stdout is UTF-8");
        plugin.stderr.take().unwrap().read_to_string(&mut stderr).expect("stderr is UTF-8");
        let success = plugin.wait().unwrap().success();
        drop(keep);
        Outcome { success, stdout, stderr, took: began.elapsed() }
    }
}

impl Outcome {
    /// Asserts an error object with this code, in this version, as all of stdout; gives its first line.
    #[track_caller]
    pub fn error(&self, version: &str, code: u32) -> String {
        assert!(!self.success, "succeeded: {self:?}");
        let object: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON object ({e}): {self:?}"));
        assert_eq!(object["code"], code, "{self:?}");
        assert_eq!(object["cniVersion"], version, "{self:?}");
        let msg = object["msg"].as_str().unwrap().to_owned();
        assert!(!msg.is_empty() && !msg.contains('\n'), "{self:?}");
        msg
    }

    /// Asserts success and this stdout, to the byte.
    #[track_caller]
    pub fn printed(&self, expected: &str) {
        assert!(self.success, "{self:?}");
        assert_eq!(self.stdout, expected, "{self:?}");
    }
}

pub fn identity(path: &str) -> Option<NetnsId> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(NetnsId { dev: metadata.dev(), inode: metadata.ino() })
}
