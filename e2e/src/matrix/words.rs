//! What the words in braces of a description stand for.

use super::describe::Side;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The words of a description and what they mean in one cell, or for one pod.
///
/// | word | what |
/// |---|---|
/// | `{node}` `{fabric}` `{outside}` `{router}` `{netns}` | names of network namespaces; the last is the pod's |
/// | `{node4}` `{node6}` `{fabric4}` `{fabric6}` | addresses of the node, and of its way out |
/// | `{dir}` | the node's directory for files |
/// | `{mtu}` | the description's |
/// | `{n}` `{pod4}` `{pod6}` | a pod's number and addresses, without prefix lengths |
/// | `{link}` `{mac}` | the host's end of a pod's link, and its MAC address |
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Words(BTreeMap<String, String>);

/// Which families of entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Entries with IPv4 addresses.
    pub v4: bool,
    /// Entries with IPv6 addresses.
    pub v6: bool,
}

impl Words {
    /// With one more word, or another meaning of it.
    #[must_use]
    pub fn with(mut self, word: &str, meaning: &(impl ToString + ?Sized)) -> Self {
        self.0.insert(word.to_owned(), meaning.to_string());
        self
    }

    /// The text with every known word replaced. Other braces stay as they are.
    #[must_use]
    pub fn put_into(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (word, meaning)| text.replace(&format!("{{{word}}}"), meaning))
    }

    /// A side with every word replaced, and entries of other families left out.
    #[must_use]
    pub fn put_into_side(&self, side: &Side, kept: Kept) -> Side {
        let entries = |entries: &[String]| -> Vec<String> {
            let put = entries.iter().map(|entry| self.put_into(entry));
            put.filter(|entry| kept.keeps(entry)).collect()
        };
        let commands = |commands: &[Vec<String>]| {
            commands.iter().map(|words| words.iter().map(|word| self.put_into(word)).collect()).collect()
        };
        let sysctls = side.sysctls.iter().filter(|(key, _)| kept.v6 || !key.starts_with("ipv6"));
        Side {
            links: entries(&side.links),
            set: entries(&side.set),
            sysctls: sysctls.map(|(key, value)| (self.put_into(key), value.clone())).collect(),
            addresses: entries(&side.addresses),
            routes: entries(&side.routes),
            neighbours: entries(&side.neighbours),
            rules: entries(&side.rules),
            rules_taken_away: entries(&side.rules_taken_away),
            nft: self.put_into(&side.nft),
            run: commands(&side.run),
            undo: commands(&side.undo),
        }
    }
}

impl Kept {
    /// Everything.
    pub const ALL: Self = Self { v4: true, v6: true };

    /// Whether an entry is of a family that is kept. One that names no address is of both, unless it begins with `-6`.
    fn keeps(self, entry: &str) -> bool {
        let address = |word: &str| word.split('/').next().and_then(|word| word.parse::<IpAddr>().ok());
        let is_v4 = entry.split_whitespace().any(|word| matches!(address(word), Some(IpAddr::V4(_))));
        let is_v6 =
            entry.split_whitespace().any(|word| word == "-6" || matches!(address(word), Some(IpAddr::V6(_))));
        (self.v4 || !is_v4) && (self.v6 || !is_v6)
    }
}

/// An address of a pattern like `10.244.1.{n}/32`, for one pod, without the prefix length.
///
/// # Errors
/// When it is none.
pub fn address(pattern: &str, number: u8) -> Result<IpAddr, String> {
    let text = Words::default().with("n", &number).put_into(pattern);
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_| format!("addresses: {address:?} is no address"))
}

/// The words that every cell has.
#[must_use]
pub fn of_node(v4: Ipv4Addr, v6: Ipv6Addr, mtu: u32) -> Words {
    Words::default()
        .with("node4", &v4)
        .with("node6", &v6)
        .with("fabric4", "172.30.0.1")
        .with("fabric6", "fd30::1")
        .with("mtu", &mtu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_words_are_replaced() {
        let words = Words::default().with("n", &5).with("link", "cali5");
        assert_eq!(words.put_into(r#"{link} {n} { n } {"n":{m}}"#), r#"cali5 5 { n } {"n":{m}}"#);
    }

    #[test]
    fn entries_go_by_the_family_of_their_addresses() {
        let (v4, v6) = (Kept { v4: true, v6: false }, Kept { v4: false, v6: true });
        for (entry, is_v4, is_v6) in [
            ("10.1.0.5/32 dev eth0", true, false),
            ("default via fe80::1 dev eth0", false, true),
            ("lookup 5 pref 10", true, true),
            ("-6 lookup 5 pref 10", false, true),
            ("cali0 address ee:ee:ee:ee:ee:ee", true, true),
        ] {
            assert_eq!((v4.keeps(entry), v6.keeps(entry)), (is_v4, is_v6), "{entry}");
        }
    }
}
