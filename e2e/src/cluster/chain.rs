//! The primary CNIs: what each leaves in `/etc/cni/net.d` of its nodes, with our entry at the end when it is wanted.

use super::address;
use crate::lab::process::binary;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Which primary CNI a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primary {
    /// ptp, host-local and portmap, with leases that a reboot forgets: kindnet.
    Kindnet,
    /// A bridge, host-local and portmap: what flannel's plugin comes to, without flanneld.
    Flannel,
    /// flannel's plugin, by what the real flanneld wrote, and portmap.
    Flanneld,
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
    /// The one that node `index` has: they alternate, unless flanneld runs everywhere.
    #[must_use]
    pub fn of_node(index: u8, flanneld: bool) -> Self {
        match (flanneld, index % 2) {
            (true, _) => Self::Flanneld,
            (false, 1) => Self::Kindnet,
            (false, _) => Self::Flannel,
        }
    }

    /// The file that it leaves.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Kindnet => "10-kindnet.conflist",
            Self::Flannel | Self::Flanneld => "10-flannel.conflist",
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

/// Writes the list of node `index`'s primary, and with `chain_sluice` our plugin into `bin` and our entry at the list's end, as the
/// installer's program renders it.
///
/// # Errors
/// When a program of ours is not built, or a file cannot be written.
pub fn install(primary: Primary, index: u8, conf: &Path, bin: &Path, chain_sluice: bool) -> Result<()> {
    write(primary, index, conf, Form::List)?;
    let path = conf.join(primary.file_name());
    if !chain_sluice {
        return Ok(());
    }
    let plugin = binary("sluice-cni")?;
    std::fs::copy(&plugin, bin.join("sluice-cni")).with_context(|| format!("copy {}", plugin.display()))?;
    let render = Command::new(binary("sluice-install")?)
        .args(["render", "--conflist"])
        .arg(&path)
        // Both are part of what the plugin would wait for.
        .args(["--exempt-pods", "sluice-system/sluice-agent", "--exempt-pods", "istio-system/ztunnel"])
        .output()
        .context("start sluice-install")?;
    let said = String::from_utf8_lossy(&render.stderr);
    ensure!(render.status.success(), "sluice-install render {}: {}", path.display(), said.trim());
    crate::lab::write_whole(&path, &String::from_utf8(render.stdout)?)
}
