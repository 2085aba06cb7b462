//! What is looked at in every cell.
//!
//! Traffic is judged by whom the server sees: a client binds a port that no proxy takes, so another port is a proxy's.

mod leaving;
mod probes;
mod second;
mod traffic;

use super::axes::Variant;
use super::describe::{Cell, Fault, Plugins};
use super::stage::Stage;
use crate::lab::outer::Outer;
use anyhow::Result;

/// Looks at one thing; says what was seen.
type Look = fn(&mut Stage<'_>, &Outer) -> Result<String>;

/// One thing that must hold.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name, in descriptions and reports.
    pub name: &'static str,
    /// What holds.
    pub sentence: &'static str,
    /// The look at it.
    pub look: Look,
}

/// Every check, in the order in which they are made: those that change something come last.
pub const ALL: [Check; 18] = [
    Check {
        name: "stands",
        sentence: "the chain attaches the pods, and those of the mesh are captured",
        look: traffic::stands,
    },
    Check { name: "result", sentence: "the runtime gets the primary's own result", look: traffic::result },
    Check { name: "mtu", sentence: "the pod's link is as the primary left it", look: traffic::mtu },
    Check {
        name: "outbound",
        sentence: "what a pod of the mesh sends goes through ztunnel",
        look: traffic::outbound,
    },
    Check {
        name: "inbound",
        sentence: "what reaches a pod of the mesh goes through ztunnel, forwarded or from its node",
        look: traffic::inbound,
    },
    Check {
        name: "hbone",
        sentence: "HBONE reaches ztunnel itself, and between pods of the mesh nothing else is on the link",
        look: traffic::hbone,
    },
    Check { name: "own-ip", sentence: "a pod reaches itself by its own address", look: traffic::own_address },
    Check { name: "loopback", sentence: "a pod reaches itself by loopback", look: traffic::loopback },
    Check { name: "dns", sentence: "names are resolved by ztunnel", look: traffic::names },
    Check {
        name: "link-local",
        sentence: "the cloud's metadata service answers, through ztunnel",
        look: traffic::metadata,
    },
    Check {
        name: "service",
        sentence: "service addresses work, ztunnel's and kube-proxy's",
        look: traffic::services,
    },
    Check {
        name: "headless",
        sentence: "another pod's own address is called by mTLS",
        look: traffic::headless,
    },
    Check {
        name: "large",
        sentence: "large transfers pass both ways, over a path narrower than the pod's link",
        look: traffic::large,
    },
    Check {
        name: "probe",
        sentence: "the kubelet's probe reaches the application itself",
        look: probes::kubelet,
    },
    Check {
        name: "door",
        sentence: "nobody else uses the probe's door: other processes of the node, forwarded traffic from the node's own address",
        look: probes::others,
    },
    Check {
        name: "second",
        sentence: "a second network goes on, whether it came before enrolment or after, also over a restart of the agent",
        look: second::network,
    },
    Check {
        name: "leave",
        sentence: "a pod that joined and left has its namespace as it was, byte for byte",
        look: leaving::leave,
    },
    Check {
        name: "del",
        sentence: "after DEL the pod's namespace and the node are as they were, byte for byte",
        look: leaving::del,
    },
];

/// The names of all checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|check| check.name)
}

impl Check {
    /// Whether it can be made in this cell, run in this way.
    #[must_use]
    pub fn applies(&self, cell: &Cell, variant: &Variant) -> bool {
        // This fault lets nothing in but from the node, so what others send in has no say.
        let from_elsewhere = ["inbound", "hbone", "service", "headless", "large", "leave", "del"];
        match self.name {
            "result" => cell.plugins == Plugins::Emulated,
            "second" => cell.secondary.is_some(),
            name if variant.fault == Some(Fault::AdmitsNodeOnly) => !from_elsewhere.contains(&name),
            _ => true,
        }
    }
}
