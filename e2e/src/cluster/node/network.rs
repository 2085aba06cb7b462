//! A host on the fabric: its network namespace, its link and its routes.

use crate::cluster::{MAX_NODES, address};
use crate::lab::netns::Netns;
use crate::lab::topology::{host, uplink};
use anyhow::Result;

/// Node `index`'s network namespace, with one link to the fabric, and the fabric's routes to its pods; with `routes`,
/// also its own to other nodes' pods, which a primary CNI's daemon makes otherwise.
///
/// # Errors
/// When the node is connected already, or the kernel refuses.
pub fn connect(fabric: &Netns, name: &str, index: u8, routes: bool) -> Result<Netns> {
    let netns = host(&format!("cluster.{name}"))?;
    let ((v4, v6), (pods_v4, pods_v6)) = (address::node(index), address::pods(index));
    // A machine keeps its card over a reboot; with another, its neighbours would talk to the old one until they notice
    // (RFC 4861, 7.3.3: half a minute and more).
    let [a, b, c, d] = v4.octets();
    fabric.ip(&format!(
        "link add {name} type veth peer name eth0 address 02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x} netns {}\n\
         link set {name} master br0 up\n\
         route replace {pods_v4} via {v4}\n\
         route replace {pods_v6} via {v6}\n",
        netns.name()
    ))?;
    uplink(&netns, (v4, v6), (address::CONTROL_PLANE_V4, address::CONTROL_PLANE_V6))?;
    for other in (1..=MAX_NODES).filter(|other| routes && *other != index) {
        let ((v4, v6), (pods_v4, pods_v6)) = (address::node(other), address::pods(other));
        netns.ip(&format!("route add {pods_v4} via {v4}\nroute add {pods_v6} via {v6}\n"))?;
    }
    Ok(netns)
}
