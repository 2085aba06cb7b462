//! The primary CNIs: what each leaves in `/etc/cni/net.d` of its nodes, with our entry at the end when it is wanted.

use super::{address, node::cilium};
use crate::lab::process::binary;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_shared::cni::ExemptPod;
use sluice_shared::conflist::{self, DROP_IN_FILE, Entry};
use std::path::Path;
use std::process::Command;

/// Pods that are part of what the plugin would wait for.
const EXEMPT: [&str; 2] = ["sluice-system/sluice-agent", "istio-system/ztunnel"];

/// Which primary CNI a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primary {
    /// ptp, host-local and portmap, with leases that a reboot forgets: kindnet.
    Kindnet,
    /// A bridge, host-local and portmap: what flannel's plugin comes to, without flanneld.
    Flannel,
    /// flannel's plugin, by what the real flanneld wrote, and portmap.
    Flanneld,
    /// Cilium's plugin, and portmap: the real agent writes the list itself.
    Cilium,
}

/// In which form a primary leaves its configuration: what ways into the chain there are depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A list, to which runtimes add what is in the network's directory.
    List,
    /// A list that forbids them to.
    Inlined,
    /// Its first plugin alone, in a `.conf`.
    Single,
}

impl Primary {
    /// The one that node `index` has where no daemon of one runs: they alternate.
    #[must_use]
    pub fn of_node(index: u8) -> Self {
        if index % 2 == 1 { Self::Kindnet } else { Self::Flannel }
    }

    /// The file that it leaves.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Kindnet => "10-kindnet.conflist",
            Self::Flannel | Self::Flanneld => "10-flannel.conflist",
            Self::Cilium => cilium::LIST,
        }
    }

    /// The file that it leaves in another form.
    #[must_use]
    pub fn file_of(self, form: Form) -> String {
        let name = self.file_name();
        if form == Form::Single { name.replace(".conflist", ".conf") } else { name.to_owned() }
    }

    /// What it leaves there on node `index`.
    #[must_use]
    pub fn configuration(self, index: u8, form: Form) -> Value {
        let mut list = self.list(index);
        match form {
            Form::List => list,
            Form::Inlined => {
                list["loadOnlyInlinedPlugins"] = json!(true);
                list
            }
            Form::Single => {
                let mut plugin = list["plugins"][0].take();
                for key in ["cniVersion", "name"] {
                    plugin[key] = list[key].take();
                }
                plugin
            }
        }
    }

    /// Its network configuration list for node `index`.
    #[must_use]
    pub fn list(self, index: u8) -> Value {
        let (v4, v6) = address::pods(index);
        let ranges = json!([[{"subnet": v4}], [{"subnet": v6}]]);
        let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        match self {
            Self::Kindnet => json!({"cniVersion": "1.0.0", "name": "kindnet", "plugins": [
                {"type": "ptp", "ipMasq": false, "mtu": 1500,
                 "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": routes, "ranges": ranges}},
                portmap]}),
            Self::Flannel => json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
                 "ipam": {"type": "host-local", "routes": routes, "ranges": ranges}},
                portmap]}),
            // As kube-flannel's own manifest has it.
            Self::Flanneld => json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
                {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
                portmap]}),
            Self::Cilium => json!({"cniVersion": "1.0.0", "name": "portmap", "plugins": [
                {"type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log"},
                portmap]}),
        }
    }
}

/// Writes what node `index`'s primary leaves in this form, and takes away what it had left in another: new before old, so
/// that there is always one.
///
/// # Errors
/// When a file cannot be written or removed.
pub fn write(primary: Primary, index: u8, conf: &Path, form: Form) -> Result<()> {
    let name = primary.file_of(form);
    let text = serde_json::to_string_pretty(&primary.configuration(index, form))?;
    crate::lab::write_whole(&conf.join(&name), &text)?;
    for other in [Form::List, Form::Single].map(|form| primary.file_of(form)) {
        let path = conf.join(&other);
        if other != name && path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes the list of node `index`'s primary, and with `chain_sluice` our plugin into `bin` and our entry into the chain:
/// at the list's end, as the installer's program renders it, or in a file beside a list that is the daemon's own.
///
/// # Errors
/// When a program of ours is not built, or a file cannot be written.
pub fn install(primary: Primary, index: u8, conf: &Path, bin: &Path, chain_sluice: bool) -> Result<()> {
    if primary != Primary::Cilium {
        write(primary, index, conf, Form::List)?;
    }
    if chain_sluice {
        let plugin = binary("sluice-cni")?;
        std::fs::copy(&plugin, bin.join("sluice-cni"))
            .with_context(|| format!("copy {}", plugin.display()))?;
    }
    let list = conf.join(primary.file_name());
    match (primary, chain_sluice) {
        (Primary::Cilium, true) => drop_in(&list),
        (_, true) => render(&list),
        (Primary::Cilium, false) => remove_drop_in(conf),
        (_, false) => Ok(()),
    }
}

/// Our entry at the end of a list.
fn render(list: &Path) -> Result<()> {
    let render = Command::new(binary("sluice-install")?)
        .args(["render", "--conflist"])
        .arg(list)
        .args(EXEMPT.into_iter().flat_map(|pods| ["--exempt-pods", pods]))
        .output()
        .context("start sluice-install")?;
    let said = String::from_utf8_lossy(&render.stderr);
    ensure!(render.status.success(), "sluice-install render {}: {}", list.display(), said.trim());
    crate::lab::write_whole(list, &String::from_utf8(render.stdout)?)
}

/// Our entry where runtimes look for more of a list (CNI 1.1): Cilium writes its own anew at every start.
fn drop_in(list: &Path) -> Result<()> {
    let text = std::fs::read(list).with_context(|| format!("read {}", list.display()))?;
    let text: Value = serde_json::from_slice(&text).with_context(|| format!("read {}", list.display()))?;
    let network = text["name"].as_str().with_context(|| format!("{} has no name", list.display()))?;
    let exempt = EXEMPT.map(|pods| {
        let (namespace, name_prefix) = pods.split_once('/').unwrap_or_default();
        ExemptPod { namespace: namespace.into(), name_prefix: name_prefix.into() }
    });
    let entry = Entry { exempt_pods: exempt.into(), ..Entry::default() };
    let dir = list.with_file_name(network);
    if dir.is_dir() {
        return crate::lab::write_whole(&dir.join(DROP_IN_FILE), &conflist::drop_in(&entry)?);
    }
    // Runtimes watch the directory above, so what is in this one must be there when it appears.
    let new = list.with_file_name(format!(".{network}"));
    std::fs::create_dir_all(&new).with_context(|| format!("make {}", new.display()))?;
    crate::lab::write_whole(&new.join(DROP_IN_FILE), &conflist::drop_in(&entry)?)?;
    std::fs::rename(&new, &dir).with_context(|| format!("make {}", dir.display()))
}

fn remove_drop_in(conf: &Path) -> Result<()> {
    for entry in std::fs::read_dir(conf).with_context(|| format!("list {}", conf.display()))? {
        let dir = entry?.path();
        let file = dir.join(DROP_IN_FILE);
        if file.is_file() {
            std::fs::remove_file(&file).and_then(|()| std::fs::remove_dir(&dir))?;
        }
    }
    Ok(())
}
