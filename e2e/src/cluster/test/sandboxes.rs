//! Why sandboxes failed.

use anyhow::{Result, ensure};

/// How many sandboxes failed though nothing was wrong with Sluice: the plugin that makes the interface, which runs before
/// ours, gave up waiting for IPv6's duplicate address detection. Its work in the kernel takes the RTNL lock
/// (addrconf_dad_work), which a burst holds all the time, and the plugins wait 5 s. With nothing of Sluice on the nodes it
/// was up to 12 of 100 pods that started at once on two processors (docs/testing.md).
///
/// # Errors
/// When one failed for another reason; with the first such reason.
pub fn none_but_tentative(failed: &[String]) -> Result<usize> {
    let other: Vec<_> = failed.iter().filter(|said| !is_tentative(said)).collect();
    ensure!(other.is_empty(), "{} sandboxes failed: {}", other.len(), other[0]);
    Ok(failed.len())
}

fn is_tentative(said: &str) -> bool {
    let primary = ["ptp", "bridge"].iter().any(|plugin| {
        said.contains(&format!("plugin type=\"{plugin}\" failed (add): failed to settle addresses"))
    });
    primary && said.contains("still has tentative addresses") && !said.contains("sluice-cni")
}

#[cfg(test)]
mod tests {
    use super::none_but_tentative;

    const TENTATIVE: &str = "a: Failed to create pod sandbox: rpc error: failed to setup network for sandbox \"0\": plugin \
        type=\"ptp\" failed (add): failed to settle addresses for \"eth0\": link eth0 still has tentative addresses after 5 seconds";

    #[test]
    fn only_the_primarys_own_wait_is_none_of_ours() {
        assert_eq!(none_but_tentative(&[]).unwrap(), 0);
        assert_eq!(none_but_tentative(&[TENTATIVE.into(), TENTATIVE.into()]).unwrap(), 2);
        let others = [
            "a: plugin type=\"sluice-cni\" failed (add): it waits for ztunnel".to_owned(),
            "a: plugin type=\"ptp\" failed (add): failed to allocate for range 0".to_owned(),
            "a: context deadline exceeded".to_owned(),
            format!("{TENTATIVE}; sluice-cni"),
        ];
        for other in others {
            let why = none_but_tentative(&[TENTATIVE.into(), other.clone()]).unwrap_err().to_string();
            assert_eq!(why, format!("1 sandboxes failed: {other}"));
        }
    }
}
