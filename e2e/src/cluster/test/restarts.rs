//! How often the pods of a DaemonSet were restarted, and by whom: a node's power cut restarts each of its pods once, and
//! nothing else may.

use super::manifests::is_of;
use crate::cluster::watch::seen::Object;
use crate::cluster::watch::{Change, What};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// What the log tells of one pod.
struct Told {
    name: String,
    node: String,
    seen: SystemTime,
    restarts: u64,
}

/// Fails if a pod of one container of this DaemonSet, one that is gone by now included, was restarted more often than
/// its node was while it was there. `reboots` is when each node's power was cut.
///
/// # Errors
/// Which pod, how often, and how often it may have been; or that the log tells of no such pod.
pub fn must_be_reboots(
    log: &[Change],
    daemon_set: (&str, &str),
    reboots: &BTreeMap<String, Vec<SystemTime>>,
) -> Result<String> {
    let mut pods: BTreeMap<&str, Told> = BTreeMap::new();
    for change in log {
        let What::Is(Object::Pod(pod)) = &change.what else { continue };
        if is_of(pod, daemon_set) {
            let empty = || Told { name: pod.name.clone(), node: String::new(), seen: change.at, restarts: 0 };
            let told = pods.entry(&pod.uid).or_insert_with(empty);
            told.node.clone_from(&pod.node);
            // A power cut restarts each of a pod's containers once.
            told.restarts = told.restarts.max(pod.most_restarts);
        }
    }
    ensure!(!pods.is_empty(), "there was no pod of {}", daemon_set.1);
    let mut said = Vec::new();
    for Told { name, node, seen, restarts } in pods.values() {
        let cuts = reboots.get(node).into_iter().flatten().filter(|at| *at >= seen).count();
        ensure!(
            *restarts <= u64::try_from(cuts)?,
            "{name} on {node} was restarted {restarts} times, and its node {cuts} times"
        );
        said.push(format!("{name} on {node}: {restarts}"));
    }
    said.sort();
    Ok(said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::watch::seen::Pod;
    use std::time::Duration;

    const AGENT: (&str, &str) = ("sluice-system", "sluice-agent");

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn pod(seconds: u64, uid: &str, node: &str, restarts: u64) -> Change {
        let (namespace, name) = (AGENT.0.to_owned(), format!("{}-{uid}", AGENT.1));
        let pod = Pod {
            uid: uid.into(),
            namespace,
            name,
            node: node.into(),
            most_restarts: restarts,
            ..Pod::default()
        };
        Change { at: at(seconds), what: What::Is(Object::Pod(Box::new(pod))) }
    }

    fn judge(log: &[Change]) -> String {
        let reboots = BTreeMap::from([("node2".to_owned(), vec![at(50)])]);
        must_be_reboots(log, AGENT, &reboots).unwrap_or_else(|why| format!("ERROR {why:#}"))
    }

    #[test]
    fn a_reboot_restarts_the_pods_that_were_there_once() {
        let log = [pod(10, "a", "node1", 0), pod(10, "b", "node2", 0), pod(60, "b", "node2", 1)];
        assert_eq!(judge(&log), "sluice-agent-a on node1: 0, sluice-agent-b on node2: 1");
        let twice = [log.as_slice(), &[pod(70, "b", "node2", 2)]].concat();
        assert!(
            judge(&twice).contains("sluice-agent-b on node2 was restarted 2 times, and its node 1 times")
        );
    }

    #[test]
    fn others_are_restarted_by_nobody() {
        assert!(judge(&[pod(10, "a", "node1", 1)]).starts_with("ERROR sluice-agent-a on node1"));
        assert!(judge(&[pod(60, "c", "node2", 1)]).starts_with("ERROR"), "it came after the reboot");
        let gone = Change { at: at(40), what: What::PodGone("a".into()) };
        assert!(
            judge(&[pod(10, "a", "node1", 1), gone]).starts_with("ERROR"),
            "one that is gone counts, too"
        );
        assert!(judge(&[]).starts_with("ERROR there was no pod"));
    }
}
