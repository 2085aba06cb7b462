//! A primary CNI that gives its pods IPv4 alone, for a while.
//!
//! With IPv6, ptp and bridge wait up to 5 s until the kernel has shown each address to be nobody else's, and fail the
//! sandbox if it has not: in a burst that happens whether or not there is a mesh ([`super::sandboxes`]). Without IPv6
//! nothing of a sandbox may fail.

use super::shapes::{Shape, namespace};
use super::stage::{PATIENCE, Stage};
use crate::lab::{eventually, write_whole};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The namespace of the pods that show which families new pods get.
const CANARY: &str = "families";

/// The primaries' own lists, which come back when this is dropped.
pub struct Ipv4Only(Vec<(PathBuf, String)>);

impl Ipv4Only {
    /// Takes IPv6 out of every node's primary CNI, and returns when new pods have none. `None` where the primary's list
    /// names no addresses: then a daemon of its own decides.
    ///
    /// # Errors
    /// When a list cannot be read or written, or new pods still get IPv6.
    pub fn set(stage: &Stage) -> Result<Option<Self>> {
        let mut before = Self(Vec::new());
        for node in stage.cluster().nodes() {
            let path = node.primary_list();
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let Some(list) = without_ipv6(&text)? else { return Ok(None) };
            before.0.push((path.clone(), text));
            write_whole(&path, &list)?;
        }
        // The runtime reads a changed list when it hears of it.
        eventually("new pods to have IPv4 alone", PATIENCE, || have_ipv4_alone(stage))?;
        Ok(Some(before))
    }
}

impl Drop for Ipv4Only {
    fn drop(&mut self) {
        for (path, text) in &self.0 {
            // Nothing that follows is judged by it alone: a pod without IPv6 fails where IPv6 is asked for.
            if let Err(why) = write_whole(path, text) {
                eprintln!("{why:#}");
            }
        }
    }
}

/// A list with the ranges and routes of IPv4 alone, if it has ranges.
fn without_ipv6(list: &str) -> Result<Option<String>> {
    let mut list: Value = serde_json::from_str(list).context("read a network configuration list")?;
    let ipam = &mut list["plugins"][0]["ipam"];
    let Some(ranges) = ipam["ranges"].as_array() else { return Ok(None) };
    let is_v4 = |value: &Value| value.as_str().is_some_and(|cidr| !cidr.contains(':'));
    let ranges: Vec<_> = ranges.iter().filter(|range| is_v4(&range[0]["subnet"])).cloned().collect();
    let routes = ipam["routes"].as_array().cloned().unwrap_or_default();
    let routes: Vec<_> = routes.into_iter().filter(|route| is_v4(&route["dst"])).collect();
    ensure!(!ranges.is_empty(), "the list has no range of IPv4");
    (ipam["ranges"], ipam["routes"]) = (json!(ranges), json!(routes));
    Ok(Some(serde_json::to_string_pretty(&list)?))
}

/// Makes a pod on every node, and takes it away again.
fn have_ipv4_alone(stage: &Stage) -> Result<()> {
    let names: Vec<_> = stage.cluster().nodes().iter().map(|node| node.name().to_owned()).collect();
    let pods = names.iter().map(|node| Shape::idle(CANARY, node).on(node).pod());
    stage.apply(&[vec![namespace(CANARY, None)], pods.collect()].concat())?;
    let pods = stage.until_ready(CANARY, &names.iter().map(String::as_str).collect::<Vec<_>>());
    stage.remove(&[CANARY])?;
    for pod in pods? {
        ensure!(pod.ips.iter().all(std::net::IpAddr::is_ipv4), "{} has {:?}", pod.full_name(), pod.ips);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::chain::Primary;

    #[test]
    fn what_a_list_says_of_ipv6_goes_and_all_else_stays() {
        for (index, primary) in [(1, Primary::Kindnet), (2, Primary::Flannel)] {
            let before = primary.list(index);
            let after = without_ipv6(&before.to_string()).unwrap().unwrap();
            assert!(!after.contains("::"), "{after}");
            let mut after: Value = serde_json::from_str(&after).unwrap();
            let ipam = &mut after["plugins"][0]["ipam"];
            let (v4, _) = crate::cluster::address::pods(index);
            assert_eq!(
                (&ipam["ranges"], &ipam["routes"]),
                (&json!([[{"subnet": v4}]]), &json!([{"dst": "0.0.0.0/0"}]))
            );
            *ipam = before["plugins"][0]["ipam"].clone();
            assert_eq!(after, before);
        }
        assert_eq!(without_ipv6(&Primary::Flanneld.list(1).to_string()).unwrap(), None);
    }
}
