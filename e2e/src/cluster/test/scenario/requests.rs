//! What the whole run cost, and what nobody should have done in it.

use crate::cluster::test::manifests::{AGENT, ZTUNNEL, of_daemon_set};
use crate::cluster::test::stage::Stage;
use crate::cluster::test::{audit, patches, restarts};
use crate::lab::report::Report;
use anyhow::ensure;
use serde_json::Value;
use std::time::SystemTime;

/// Sums, over all that ran before.
pub fn whole_run(stage: &mut Stage, report: &mut Report) {
    report.step("the whole run, looked at once more");
    report.check("no request of an agent was refused", || {
        let refusals = stage.refusals();
        let (mut judged, mut left_out) = (Vec::new(), 0);
        for request in stage.cluster().audit().requests()? {
            let at = request.received()?;
            if refusals.iter().any(|span| span.contains(&at)) {
                left_out += usize::from(request.user.username == crate::cluster::audit::AGENT);
            } else {
                judged.push(request);
            }
        }
        let by_pod = audit::of_agents(&judged, SystemTime::UNIX_EPOCH..SystemTime::now())?;
        ensure!(!by_pod.is_empty(), "the audit log has no request of an agent");
        for (pod, requests) in &by_pod {
            ensure!(requests.refused.is_empty(), "{pod}: {requests}");
        }
        let lines = by_pod.iter().map(|(pod, requests)| format!("{pod}: {requests}"));
        let last =
            format!("{left_out} more while the API server was not ready, or they had no rights any more");
        Ok(lines.chain([last]).collect::<Vec<_>>().join("\n"))
    });
    report.check("at most one status patch for each change of a pod's state", || {
        let patches = patches::of(&stage.cluster().audit().requests()?)?;
        patches::must_be_changes(&patches, &stage.cluster().outages())
    });
    report.check("ztunnel had nothing to complain of", || {
        let mut adds = 0;
        for pod in of_daemon_set(&stage.seen(), ZTUNNEL) {
            let said = stage.said(&pod, super::ZTUNNEL)?;
            let events: Vec<Value> = said.iter().flat_map(|line| serde_json::from_str(&line.text)).collect();
            let faults: Vec<_> = events.iter().filter(|event| event["event"] == "protocol-error").collect();
            ensure!(faults.is_empty(), "{} on {}: {}", faults.len(), pod.node, faults[0]);
            adds += events.iter().filter(|event| event["event"] == "add").count();
        }
        Ok(format!("{adds} pods were handed over, 0 protocol errors"))
    });
    report.check("no part of the cluster has ended by itself", || {
        stage.cluster().must_run().map(|()| "all of it runs".into())
    });
    report.check("the agents were restarted by nobody but the tests", || {
        let nodes = stage.cluster().nodes().iter();
        let reboots = nodes.map(|node| (node.name().to_owned(), node.reboots())).collect();
        restarts::must_be_reboots(&stage.log(), AGENT, &reboots)
    });
}
