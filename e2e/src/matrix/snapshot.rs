//! Everything that can be configured in a network namespace, as text: two snapshots are equal, byte for byte, or they
//! say where they differ.

use crate::lab::agent::PATIENCE;
use crate::lab::eventually;
use crate::lab::netns::Netns;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;

/// What is looked at, and how: the programs print in the order in which the kernel keeps things.
const LOOKS: [(&str, &str); 9] = [
    ("nft", "nft --stateless list ruleset"),
    ("iptables-legacy", "iptables-legacy-save | sed -e '/^#/d' -e 's/\\[[0-9:]*\\]//'"),
    ("ip6tables-legacy", "ip6tables-legacy-save | sed -e '/^#/d' -e 's/\\[[0-9:]*\\]//'"),
    ("rules", "ip rule; ip -6 rule"),
    ("routes", "ip -4 route show table all; ip -6 route show table all"),
    ("links", "ip -o link"),
    ("addresses", "ip -o addr"),
    ("qdiscs", "tc qdisc show; tc filter show dev eth0 2>/dev/null || true"),
    ("policies", "ip xfrm policy; ip xfrm state"),
];

/// Below `/proc/sys/net`; counters and secrets of the kernel's own are no configuration.
const SYSCTLS: [&str; 3] = ["ipv4", "ipv6", "netfilter"];
const NOT_CONFIGURATION: [&str; 5] =
    ["nf_conntrack_count", "stable_secret", "tcp_fastopen_key", "fib_sync_mem", "tcp_ehash_entries"];

/// A namespace's configuration, part by part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// Looks at everything.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn take(netns: &Netns) -> Result<Self> {
        settle(netns)?;
        let mut parts = BTreeMap::new();
        for (name, look) in LOOKS {
            parts.insert(name.to_owned(), netns.must("sh", &["-c", look])?);
        }
        let sysctls = netns.run(|| {
            let mut found = String::new();
            for below in SYSCTLS {
                read(&Path::new("/proc/sys/net").join(below), &mut found);
            }
            Ok(found)
        })?;
        parts.insert("sysctls".into(), sysctls);
        Ok(Self(parts))
    }

    /// Without a link and all that goes with it: what the primary CNI leaves there until the namespace ends. Rules,
    /// filters and every other setting stay.
    #[must_use]
    pub fn without_link(&self, link: &str) -> Self {
        let of_link =
            [format!(": {link}@"), format!(" {link} "), format!(" dev {link} "), format!("/{link}/")];
        let kept = |part: &str| -> String {
            let lines = part.lines().filter(|line| {
                let line = format!("{line} ");
                !of_link.iter().any(|word| line.contains(word)) && !line.starts_with("broadcast ")
            });
            lines.flat_map(|line| [line, "\n"]).collect()
        };
        Self(self.0.iter().map(|(name, part)| (name.clone(), kept(part))).collect())
    }

    /// Fails unless both are the same.
    ///
    /// # Errors
    /// The lines that are in one of them only.
    pub fn must_equal(&self, later: &Self) -> Result<usize> {
        let mut differences = Vec::new();
        for (name, before) in &self.0 {
            let after = later.0.get(name).map(String::as_str).unwrap_or_default();
            if before != after {
                let only = |these: &str, those: &str, sign: char| -> Vec<String> {
                    let absent = these.lines().filter(|line| !those.lines().any(|other| other == *line));
                    absent.map(|line| format!("{name}: {sign}{line}")).collect()
                };
                let mut lines = only(before, after, '-');
                lines.extend(only(after, before, '+'));
                if lines.is_empty() {
                    let moved = before.lines().zip(after.lines()).find(|(before, after)| before != after);
                    lines.push(format!("{name}: the order is another, from {moved:?} on"));
                }
                differences.extend(lines);
            }
        }
        ensure!(differences.is_empty(), "not as before:\n{}", differences.join("\n"));
        Ok(self.0.values().map(String::len).sum())
    }
}

/// Waits until every address has been looked for on its link: what the kernel does itself afterwards is nobody's change.
fn settle(netns: &Netns) -> Result<()> {
    eventually("duplicate address detection to end", PATIENCE, || {
        let shown = netns.must("ip", &["-o", "-6", "addr", "show", "tentative"])?;
        let open: Vec<_> = shown.lines().filter(|line| !line.contains("dadfailed")).collect();
        ensure!(open.is_empty(), "{open:?}");
        Ok(())
    })
}

fn read(path: &Path, into: &mut String) {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    if NOT_CONFIGURATION.contains(&name) {
        return;
    }
    if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.iter().for_each(|path| read(path, into));
    } else if let Ok(value) = std::fs::read_to_string(path) {
        into.push_str(&format!("{} = {}\n", path.display(), value.trim_end()));
    }
}
