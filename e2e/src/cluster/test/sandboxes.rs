//! Why sandboxes failed, and how many may have without Sluice having a part in it.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the kubelet said of sandboxes that failed, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures(pub BTreeMap<String, usize>);

/// Of so many pods, one sandbox may fail by the primary's own wait. Of a hundred at once on two busy processors none to
/// 28 did, with nothing of Sluice on the nodes up to 12 (docs/testing.md); each run has its own control. More than this
/// would be somebody who holds the kernel's lock, and that might be Sluice.
const ONE_OF: usize = 2;

impl Failures {
    /// What a list of Events says, by `POD: MESSAGE`.
    #[must_use]
    pub fn of(events: &Value) -> Self {
        let mut failures = Self::default();
        for event in events["items"].as_array().into_iter().flatten() {
            let of = event["involvedObject"]["name"].as_str().unwrap_or_default();
            let said = format!("{of}: {}", event["message"].as_str().unwrap_or_default());
            // The kubelet counts what it says again; once is once, whether or not it counts it.
            let times = event["count"].as_u64().unwrap_or_default().max(1);
            *failures.0.entry(said).or_default() += usize::try_from(times).unwrap_or(usize::MAX);
        }
        failures
    }

    /// Those that came since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let news = self.0.iter().filter_map(|(said, times)| {
            let known = before.0.get(said).copied().unwrap_or_default();
            times.checked_sub(known).filter(|new| *new > 0).map(|new| (said.clone(), new))
        });
        Self(news.collect())
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// How many of `pods` pods' sandboxes failed though nothing was wrong with Sluice: the plugin that makes the
    /// interface, which runs before ours, gave up waiting for IPv6's duplicate address detection. That is not to be
    /// switched off: the kernel takes an address for tentative, whatever `accept_dad` says, until its worker has had the
    /// RTNL lock (addrconf_dad_work), which a burst holds all the time, and the plugins wait 5 s.
    ///
    /// # Errors
    /// When one failed for another reason, with the first such reason; and when there are more than a primary alone
    /// accounts for.
    pub fn must_be_the_primarys(&self, pods: usize) -> Result<usize> {
        let other: Vec<_> = self.0.iter().filter(|(said, _)| !is_tentative(said)).collect();
        let times: usize = other.iter().map(|(_, times)| **times).sum();
        ensure!(other.is_empty(), "{times} sandboxes failed: {}", other[0].0);
        let (count, limit) = (self.count(), pods.div_ceil(ONE_OF));
        ensure!(
            count <= limit,
            "the primary CNI waited in vain for IPv6 addresses {count} times for {pods} pods; {limit} are its own"
        );
        Ok(count)
    }
}

/// The primary's own words, in a runtime's report of that plugin: what is chained behind it never ran.
fn is_tentative(said: &str) -> bool {
    let primary = ["ptp", "bridge"].iter().any(|plugin| {
        said.contains(&format!("plugin type=\"{plugin}\" failed (add): failed to settle addresses"))
    });
    primary && said.contains("still has tentative addresses") && !said.contains("sluice-cni")
}

#[cfg(test)]
mod tests {
    use super::Failures;
    use serde_json::json;

    const TENTATIVE: &str = "a: Failed to create pod sandbox: rpc error: failed to setup network for sandbox \"0\": plugin \
        type=\"ptp\" failed (add): failed to settle addresses for \"eth0\": link eth0 still has tentative addresses after 5 seconds";

    fn failures(all: &[(&str, usize)]) -> Failures {
        Failures(all.iter().map(|(said, times)| ((*said).to_owned(), *times)).collect())
    }

    #[test]
    fn only_the_primarys_own_wait_is_none_of_ours() {
        assert_eq!(failures(&[]).must_be_the_primarys(100).unwrap(), 0);
        assert_eq!(failures(&[(TENTATIVE, 2)]).must_be_the_primarys(100).unwrap(), 2);
        let others = [
            "a: plugin type=\"sluice-cni\" failed (add): it waits for ztunnel".to_owned(),
            "a: plugin type=\"ptp\" failed (add): failed to allocate for range 0".to_owned(),
            "a: context deadline exceeded".to_owned(),
            format!("{TENTATIVE}; sluice-cni"),
        ];
        for other in others {
            let why = failures(&[(TENTATIVE, 1), (&other, 3)]).must_be_the_primarys(100).unwrap_err();
            assert_eq!(why.to_string(), format!("3 sandboxes failed: {other}"));
        }
    }

    #[test]
    fn the_primary_is_no_excuse_for_everything() {
        assert_eq!(failures(&[(TENTATIVE, 50)]).must_be_the_primarys(100).unwrap(), 50);
        let why = failures(&[(TENTATIVE, 51)]).must_be_the_primarys(100).unwrap_err().to_string();
        assert!(why.contains("51 times for 100 pods; 50 are its own"), "{why}");
        assert!(failures(&[(TENTATIVE, 1)]).must_be_the_primarys(0).is_err());
    }

    #[test]
    fn events_are_read_with_how_often_they_happened() {
        let event =
            |pod: &str, count: u64| json!({"involvedObject": {"name": pod}, "message": "no", "count": count});
        let list = json!({"items": [event("a", 3), event("b", 0), {"involvedObject": {"name": "a"}, "message": "no"}]});
        assert_eq!(Failures::of(&list), failures(&[("a: no", 4), ("b: no", 1)]));
    }

    #[test]
    fn one_that_failed_again_is_news() {
        let before = failures(&[("a", 2), ("b", 1)]);
        assert_eq!(failures(&[("a", 5), ("b", 1), ("c", 1)]).since(&before), failures(&[("a", 3), ("c", 1)]));
    }
}
