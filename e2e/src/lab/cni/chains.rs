//! Network lists that primary CNIs leave on a node, with ours chained at their end or left out.

use super::NetworkList;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where Debian's containernetworking-plugins are, and where upstream's archive is unpacked by most.
pub const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A pod network of one node.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// The list's `cniVersion`.
    pub cni_version: String,
    /// The list's name.
    pub name: String,
    /// The node's pod range, IPv4, as CIDR; or none.
    pub v4: Option<String>,
    /// The node's pod range, IPv6, as CIDR; or none.
    pub v6: Option<String>,
    /// Where host-local keeps its leases.
    pub leases: PathBuf,
    /// Our entry, or none.
    pub sluice: Option<Value>,
}

/// A directory of real plugins.
///
/// # Errors
/// When the plugins are not installed.
pub fn plugin_dir() -> anyhow::Result<PathBuf> {
    let found = PLUGIN_DIRS.iter().map(Path::new).find(|dir| dir.join("ptp").is_file());
    found.map(Path::to_path_buf).ok_or_else(|| {
        anyhow::anyhow!(
            "no CNI plugins in {PLUGIN_DIRS:?}: `make setup` installs containernetworking-plugins"
        )
    })
}

/// Our chain entry.
#[must_use]
pub fn sluice_entry(agent_socket: &Path, state_dir: &Path) -> Value {
    json!({"type": "sluice-cni", "agentSocket": agent_socket, "stateDir": state_dir, "timeoutSeconds": 10,
           "logLevel": "info"})
}

impl PodNetwork {
    /// ptp, host-local and portmap: what kindnet and GKE leave.
    ///
    /// # Errors
    /// When the list that comes out is not one.
    pub fn ptp(&self) -> anyhow::Result<NetworkList> {
        self.list(vec![json!({"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": self.ipam()}), portmap()])
    }

    /// A bridge with host-local, portmap, bandwidth and tuning: what minikube and kubenet leave.
    ///
    /// # Errors
    /// When the list that comes out is not one.
    pub fn bridge(&self) -> anyhow::Result<NetworkList> {
        let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                            "hairpinMode": true, "ipam": self.ipam()});
        let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
        let tuning = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}});
        self.list(vec![bridge, portmap(), bandwidth, tuning])
    }

    /// The runtime's own loopback network, which brings `lo` up.
    ///
    /// # Errors
    /// When the list that comes out is not one.
    pub fn loopback() -> anyhow::Result<NetworkList> {
        let list = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]});
        Ok(NetworkList::parse(&list.to_string())?)
    }

    fn list(&self, mut plugins: Vec<Value>) -> anyhow::Result<NetworkList> {
        plugins.extend(self.sluice.clone());
        let list = json!({"cniVersion": self.cni_version, "name": self.name, "plugins": plugins});
        Ok(NetworkList::parse(&list.to_string())?)
    }

    fn ipam(&self) -> Value {
        let families = [(&self.v4, "0.0.0.0/0"), (&self.v6, "::/0")];
        let families = families.iter().filter_map(|(range, all)| Some((range.as_ref()?, all)));
        let (ranges, routes): (Vec<_>, Vec<_>) =
            families.map(|(range, all)| (json!([{"subnet": range}]), json!({"dst": all}))).unzip();
        json!({"type": "host-local", "dataDir": self.leases, "ranges": ranges, "routes": routes})
    }
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true})
}
