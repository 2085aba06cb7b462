//! What else may stand in the way, put at a pod's link or on the node.

use super::describe::Fault;
use super::side;
use crate::lab::eventually;
use crate::lab::netns::Netns;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// The sources that Sluice gives to probes by default: link-local, and a unique local address that no node has.
const PROBE_SOURCE_V6: &str = "fd16:9254:7127:1337::/64";

/// What refuses rules, for as long as it lives.
#[derive(Debug)]
pub struct Refusal {
    child: Child,
    _commands: ChildStdin,
}

impl Drop for Refusal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts a fault at the host's end of the link of `pod`; `node` are the node's own addresses. What the node itself does is in [`refusing_rules`].
///
/// # Errors
/// When nft refuses.
pub fn at_link(fault: Fault, place: &Netns, link: &str, pod: &str, node: &BTreeSet<IpAddr>) -> Result<()> {
    let hook = |hook: &str, rules: &str| {
        format!(
            "table netdev dataplane_{hook}_{pod} {{ chain {hook} {{ type filter hook {hook} device \"{link}\" priority 0; {rules}; }}\n}}\n"
        )
    };
    match fault {
        // Metadata services are routed on; only what should come to the host's own stack is lost.
        Fault::DropsLinkLocal => side::nft(
            place,
            &hook(
                "ingress",
                &format!(
                    "ip daddr 169.254.0.0/16 ip daddr != 169.254.169.254 drop; ip6 daddr {PROBE_SOURCE_V6} drop"
                ),
            ),
        ),
        Fault::BypassesConntrack => side::nft(
            place,
            &format!(
                "table inet dataplane_{pod} {{ chain raw {{ type filter hook prerouting priority raw; \
                 iifname \"{link}\" ip daddr 169.254.0.0/16 ip daddr != 169.254.169.254 notrack; \
                 iifname \"{link}\" ip6 daddr {PROBE_SOURCE_V6} notrack; }}\n}}\n"
            ),
        ),
        // Opening SYNs; answers on connections that the pod began pass.
        Fault::AdmitsNodeOnly => {
            let opening = "tcp flags & (fin | syn | rst | ack) == syn";
            let rules = [("ip", true), ("ip6", false)].map(|(family, v4)| {
                let own = node.iter().filter(|own| own.is_ipv4() == v4).map(ToString::to_string);
                format!("{opening} {family} saddr != {{ {} }} drop", own.collect::<Vec<_>>().join(", "))
            });
            side::nft(place, &hook("egress", &rules.join("; ")))
        }
        Fault::RefusesRules => Ok(()),
    }
}

/// Has the node refuse our table with EPERM: somebody else owns a table of that name, which the kernel answers so.
///
/// # Errors
/// When nft cannot be started or cannot own a table.
pub fn refusing_rules(node: &Netns) -> Result<Refusal> {
    let mut command = Command::new("nft");
    command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = node.run(|| command.spawn().context("start nft"))?;
    let mut commands = child.stdin.take().context("nft without a stdin")?;
    commands.write_all(b"add table inet sluice { flags owner; }\n")?;
    commands.flush()?;
    let refusal = Refusal { child, _commands: commands };
    eventually("the host to refuse rules", Duration::from_secs(10), || {
        let refused = side::nft(node, "add chain inet sluice x");
        let why = refused.err().context("a rule was taken")?;
        let why = format!("{why:#}");
        ensure!(why.contains("not permitted"), "it was refused with {why}");
        Ok(())
    })?;
    Ok(refusal)
}
