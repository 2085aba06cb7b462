//! A node's power is cut, and it starts again.

use super::{until_enabled, until_started_again};
use crate::cluster::test::demo::{self, DEMO, OUTSIDE, OUTSIDER, PODS};
use crate::cluster::test::leaks::Talker;
use crate::cluster::test::stage::Stage;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Result, anyhow, ensure};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

const NODE: usize = 2;

/// Everything of a node ends at once, `/run` and its network with it; what is on its disk stays.
pub fn node(stage: &mut Stage, report: &mut Report) {
    report.step("the power of node2 is cut, and it starts again");
    let prepared = demo::set_in_mesh(stage);
    let wire = stage.node(NODE).and_then(|node| stage.listen_but_on(node));
    let rebooted = || -> Result<(SystemTime, Vec<Pod>)> {
        prepared?;
        let before = stage.seen();
        stage.node(NODE)?.reboot()?;
        let on = SystemTime::now();
        Ok((on, until_started_again(stage, stage.node(NODE)?, &before, &[DEMO, OUTSIDE])?))
    };
    let rebooted = rebooted();
    let rebooted = || rebooted.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("after a reboot of its node, agent and ztunnel are back", || {
        rebooted()?;
        stage.until_installed().map(|()| "Ready".into())
    });
    report.check("after a reboot of its node, a pod of the mesh comes back captured", || {
        for pod in rebooted()?.1.iter().filter(|pod| pod.namespace == DEMO) {
            until_enabled(stage, stage.node(NODE)?, pod)?;
        }
        stage.until_captured(DEMO, &PODS, true)?;
        let clients = [(DEMO, "client-2")];
        let (direct, proxied) = demo::paths(stage, &clients)?;
        ensure!(direct == 0, "{direct} of its connections are direct, {proxied} proxied");
        Ok(format!("{proxied} new connections through ztunnel"))
    });
    report.check("after a reboot of its node, a pod outside the mesh comes back uncaptured", || {
        let pod = stage.pod(OUTSIDE, OUTSIDER)?;
        ensure!(pod.ready && pod.redirection.is_none(), "it is {} and {:?}", pod.phase, pod.redirection);
        Ok("it is Ready".into())
    });
    report.check("from the power cut on, no uncaptured SYN on the fabric and on the other node", || {
        // A little of what they do now, in the same capture.
        sleep(Duration::from_secs(1));
        // Of the node's pods of the mesh it is the one that talks, and to the other node.
        let client = Talker::new(&stage.pod(DEMO, "client-2")?, demo::TALKS).since(rebooted()?.0);
        stage.judge(wire)?.must_hold(&[client])
    });
}
