//! What primary CNIs and their friends do to the configuration directory, as their sources have it.

use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A list as aws-node writes one: strings for numbers, a key of the list that few know. `generation` tells one writing
/// from the next.
pub fn aws(generation: u64) -> String {
    format!(
        "{{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"aws-cni\",\n  \"disableCheck\": true,\n  \"plugins\": [\n    \
         {{\"name\": \"aws-cni\", \"type\": \"ptp\", \"mtu\": \"9001\", \"enabled\": \"false\", \"generation\": \
         \"{generation}\"}},\n    {{\"type\": \"portmap\", \"capabilities\": {{\"portMappings\": true}}, \"snat\": \
         true}}\n  ]\n}}\n"
    )
}

/// One plugin, as ovnkube-node writes it: no list.
pub const OVN: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"ovn-kubernetes\",\"type\":\"ovn-k8s-cni-overlay\",\"ipam\":\
                       {},\"dns\":{},\"logFile\":\"/var/log/ovn.log\",\"logLevel\":\"4\",\"logfile-maxsize\":100}";

pub const CILIUM: &str = "\n{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\n       \
                          \"type\": \"cilium-cni\",\n       \"enable-debug\": false\n    }\n  ]\n}\n";

/// Writes beside the file and renames: aws-node, kindnetd, netd, cilium-agent.
pub fn by_rename(path: &Path, text: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension("theirs.tmp");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
    Ok(fs::rename(temporary, path)?)
}

/// Truncates, waits, writes, sets the mode: Calico's install-cni, Multus, Antrea's shell.
pub fn in_place(path: &Path, text: &str, gap: Duration, mode: u32) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let (first, second) = text.split_at(text.len() / 2);
    std::thread::sleep(gap / 2);
    file.write_all(first.as_bytes())?;
    std::thread::sleep(gap / 2);
    file.write_all(second.as_bytes())?;
    drop(file);
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// A program that goes on until it is ended.
pub struct Antagonist {
    stop: Arc<AtomicBool>,
    /// How often it has done what it does.
    pub acts: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Antagonist {
    /// Runs `act` every `pause`; it gives whether it did something.
    pub fn start(pause: Duration, mut act: impl FnMut() -> Result<bool> + Send + 'static) -> Self {
        let (stop, acts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acts));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if act()? {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(pause);
            }
            Ok(())
        });
        Self { stop, acts, thread: Some(thread) }
    }

    pub fn count(&self) -> u64 {
        self.acts.load(Ordering::Relaxed)
    }

    /// Ends it; gives what went wrong with it.
    pub fn end(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("ended twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the antagonist panicked"))??;
        Ok(self.count())
    }
}

impl Drop for Antagonist {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// cilium-agent with cni.exclusive=true: parks every other configuration, and writes its own anew whenever it differs.
pub fn exclusive(conf: PathBuf) -> Antagonist {
    Antagonist::start(Duration::from_millis(5), move || {
        let own = conf.join("05-cilium.conflist");
        let mut acted = false;
        for entry in fs::read_dir(&conf)? {
            let path = entry?.path();
            let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
            if path != own && path.is_file() && ["conf", "conflist", "json"].contains(&end) {
                let mut parked = path.clone().into_os_string();
                parked.push(".cilium_bak");
                acted |= fs::rename(&path, parked).is_ok();
            }
        }
        if fs::read_to_string(&own).unwrap_or_default() != CILIUM {
            by_rename(&own, CILIUM, 0o644)?;
            acted = true;
        }
        Ok(acted)
    })
}

/// Which Multus: the thin one has the primary's list in its own file, the thick one's shim names the primary's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multus {
    Thin,
    Thick,
}

impl Multus {
    /// `00-multus.conf` as its entrypoint, or its daemon, makes it of the primary's file.
    fn config(self, primary: &str, delegate: &serde_json::Value) -> serde_json::Value {
        match self {
            Self::Thin => serde_json::json!({
                "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus",
                "capabilities": {"portMappings": true},
                "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig", "delegates": [delegate]
            }),
            Self::Thick => serde_json::json!({
                "capabilities": {"portMappings": true}, "cniVersion": "0.3.1", "logLevel": "verbose",
                "logToStderr": true, "name": "multus-cni-network",
                "clusterNetwork": format!("/host/etc/cni/net.d/{primary}"), "type": "multus-shim"
            }),
        }
    }

    /// Its generator: follows the primary's file, and removes its own while that is gone (`readinessindicatorfile`).
    pub fn start(self, conf: PathBuf, primary: &'static str) -> Antagonist {
        let (own, mut last) = (conf.join("00-multus.conf"), String::new());
        Antagonist::start(Duration::from_millis(10), move || {
            let Ok(text) = fs::read_to_string(conf.join(primary)) else {
                last.clear();
                return Ok(fs::remove_file(&own).is_ok());
            };
            let Ok(delegate) = serde_json::from_str(&text) else { return Ok(false) };
            if text == last {
                return Ok(false);
            }
            let config = self.config(primary, &delegate).to_string();
            in_place(&own, &config, Duration::ZERO, 0o600)?;
            last = text;
            Ok(true)
        })
    }
}

/// cilium-agent that chains behind another primary: the first list of that network that is not its own is copied, with
/// its entry appended; exclusive or not.
pub fn chaining_cilium(conf: PathBuf, exclusive: bool) -> Antagonist {
    let own = conf.join("05-cilium.conflist");
    Antagonist::start(Duration::from_millis(10), move || {
        let mut lists: Vec<_> = fs::read_dir(&conf)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        lists.sort();
        lists.retain(|path| *path != own && path.is_file());
        let mut acted = false;
        for list in &mut lists {
            if exclusive
                && list.extension().is_some_and(|end| ["conf", "conflist"].iter().any(|known| *known == end))
            {
                let parked = PathBuf::from(format!("{}.cilium_bak", list.display()));
                acted |= fs::rename(&*list, &parked).is_ok();
                *list = parked;
            }
        }
        lists.retain(|path| path.display().to_string().contains(".conflist"));
        let read = |path: &PathBuf| serde_json::from_str(&fs::read_to_string(path).ok()?).ok();
        let mut bases =
            lists.iter().filter_map(read).filter(|list: &serde_json::Value| list["name"] == "aws-cni");
        let Some(mut list) = bases.next() else { return Ok(acted) };
        let Some(plugins) = list["plugins"].as_array_mut() else { return Ok(acted) };
        plugins.retain(|plugin| plugin["type"] != "cilium-cni");
        plugins.push(
            serde_json::json!({"type": "cilium-cni", "chaining-mode": "aws-cni", "enable-debug": false}),
        );
        let text = serde_json::to_string_pretty(&list)?;
        if fs::read_to_string(&own).unwrap_or_default() != text {
            by_rename(&own, &text, 0o644)?;
            acted = true;
        }
        Ok(acted)
    })
}

/// Another mesh that edits in place: it appends its entry whenever that is missing.
pub fn other_mesh(path: PathBuf) -> Antagonist {
    Antagonist::start(Duration::from_millis(10), move || {
        let Ok(text) = fs::read_to_string(&path) else { return Ok(false) };
        let Ok(mut list) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(false) };
        let Some(plugins) = list["plugins"].as_array_mut() else { return Ok(false) };
        if plugins.iter().any(|plugin| plugin["type"] == "linkerd-cni") {
            return Ok(false);
        }
        plugins.push(serde_json::json!({"type": "linkerd-cni", "name": "linkerd-cni"}));
        by_rename(&path, &serde_json::to_string_pretty(&list)?, 0o600)?;
        Ok(true)
    })
}
