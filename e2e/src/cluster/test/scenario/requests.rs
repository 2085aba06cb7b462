//! What the whole run cost, and what nobody should have done in it.

use crate::cluster::test::audit;
use crate::cluster::test::manifests::{AGENT, ZTUNNEL, of_daemon_set};
use crate::cluster::test::stage::Stage;
use crate::lab::report::Report;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::SystemTime;

/// Sums, over all that ran before.
pub fn whole_run(stage: &mut Stage, report: &mut Report) {
    report.step("the whole run, looked at once more");
    report.check("no request of an agent was refused", || {
        let outages = stage.cluster().outages();
        let mut requests = Vec::new();
        for request in stage.cluster().audit().requests()? {
            let at = request.received()?;
            // Before it is ready, an API server knows no rights and refuses everybody.
            if !outages.iter().any(|outage| outage.contains(&at)) {
                requests.push(request);
            }
        }
        let mut by_pod = audit::of_agents(&requests, SystemTime::UNIX_EPOCH..SystemTime::now())?;
        by_pod.retain(|pod, _| pod.starts_with(AGENT.1));
        ensure!(!by_pod.is_empty(), "the audit log has no request of an agent");
        for (pod, requests) in &by_pod {
            ensure!(requests.refused.is_empty(), "{pod}: {requests}");
        }
        let lines = by_pod.iter().map(|(pod, requests)| format!("{pod}: {requests}"));
        Ok(lines.collect::<Vec<_>>().join("\n"))
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
        let agents: Result<Vec<_>> =
            stage.cluster().nodes().iter().map(|node| stage.agent(node.name())).collect();
        let restarts =
            agents?.iter().map(|pod| format!("{}: {}", pod.node, pod.restarts)).collect::<Vec<_>>();
        Ok(format!("restarts of the containers that run now: {}", restarts.join(", ")))
    });
}
