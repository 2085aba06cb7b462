//! Which of the chains that are there are istio-cni's.

use super::{Chain, Does, Listing, NftFamily, PROBE_SETS, Place, Remains, Rule, Table};
use crate::contract::{DNS_CT_ZONE, MARK_PROXIED, PORT_DNS_PROXY, PORT_INBOUND, PORT_OUTBOUND};
use std::collections::BTreeSet;

const IN: &str = "ISTIO_PRERT";
const OUT: &str = "ISTIO_OUTPUT";
const PROBES: &str = "ISTIO_POSTRT";
/// istio-cni's own tables begin so (`nativeNftables`), and have no other chains than these.
const NATIVE_TABLES: [&str; 3] = ["istio-ambient-nat", "istio-ambient-mangle", "istio-ambient-raw"];
const NATIVE_CHAINS: [&str; 5] = ["prerouting", "output", "postrouting", "istio-prerouting", "istio-output"];

/// What one chain of istio-cni's iptables rules looks like.
struct Shape {
    place: Place,
    table: &'static str,
    chain: &'static str,
    /// The kernel's chain that leads to it.
    from: &'static str,
    /// What its rules may do.
    may: fn(&Does) -> bool,
    /// What one of them does at least, or it says nothing about whose it is.
    must: fn(&Does) -> bool,
}

/// istio-cni `tools/istio-iptables` as of Istio 1.31, every option included.
const SHAPES: [Shape; 7] = [
    Shape {
        place: Place::Pod,
        table: "mangle",
        chain: IN,
        from: "PREROUTING",
        may: |does| *does == Does::SetConnmark(MARK_PROXIED),
        must: |does| *does == Does::SetConnmark(MARK_PROXIED),
    },
    Shape {
        place: Place::Pod,
        table: "mangle",
        chain: OUT,
        from: "OUTPUT",
        may: |does| *does == Does::RestoreMark,
        must: |does| *does == Does::RestoreMark,
    },
    Shape {
        place: Place::Pod,
        table: "nat",
        chain: IN,
        from: "PREROUTING",
        may: |does| {
            matches!(does, Does::Accept | Does::Return | Does::Redirect(PORT_INBOUND | PORT_OUTBOUND))
        },
        must: |does| matches!(does, Does::Redirect(_)),
    },
    Shape {
        place: Place::Pod,
        table: "nat",
        chain: OUT,
        from: "OUTPUT",
        may: |does| matches!(does, Does::Accept | Does::Redirect(PORT_DNS_PROXY | PORT_OUTBOUND)),
        must: |does| *does == Does::Redirect(PORT_OUTBOUND),
    },
    Shape {
        place: Place::Pod,
        table: "raw",
        chain: IN,
        from: "PREROUTING",
        may: |does| *does == Does::CtZone(DNS_CT_ZONE),
        must: |does| *does == Does::CtZone(DNS_CT_ZONE),
    },
    Shape {
        place: Place::Pod,
        table: "raw",
        chain: OUT,
        from: "OUTPUT",
        may: |does| *does == Does::CtZone(DNS_CT_ZONE),
        must: |does| *does == Does::CtZone(DNS_CT_ZONE),
    },
    Shape {
        place: Place::Host,
        table: "nat",
        chain: PROBES,
        from: "POSTROUTING",
        may: |does| *does == Does::Snat,
        must: |does| *does == Does::Snat,
    },
];

/// What of a namespace is istio-cni's.
#[must_use]
pub fn recognise(listing: &Listing, place: Place) -> Remains {
    let mut remains = Remains { generation: listing.generation, ..Remains::default() };
    native_tables(listing, &mut remains);
    let candidates = candidates(listing, place, &mut remains);
    // An empty chain of the right name says nothing by itself: it goes with one that says something.
    let certain = !remains.tables.is_empty() || candidates.iter().any(|(_, shape)| shape.is_some());
    for (chain, shape) in candidates {
        if shape.is_some() || certain {
            take(chain, &mut remains);
        } else {
            remains.left.push(format!("{} in {}: it is empty", chain.name, chain.table));
        }
    }
    jumps(listing, &mut remains);
    if place == Place::Pod {
        emptied(listing, &mut remains);
    }
    if place == Place::Host {
        let ours = |set: &&String| PROBE_SETS.contains(&set.as_str());
        remains.ipsets = listing.ipsets.iter().filter(ours).cloned().collect();
    }
    remains
}

/// The chains of iptables' that may be istio-cni's; without a shape where they are empty.
fn candidates<'a>(
    listing: &'a Listing,
    place: Place,
    remains: &mut Remains,
) -> Vec<(&'a Chain, Option<&'static Shape>)> {
    let mut found = Vec::new();
    for chain in &listing.chains {
        let Some(shape) = Shape::named(chain, place) else { continue };
        match shape.judge(chain, listing) {
            Ok(by_rules) => found.push((chain, by_rules.then_some(shape))),
            Err(why) => remains.left.push(format!("{} in {}: {why}", chain.name, chain.table)),
        }
    }
    found
}

impl Shape {
    /// The shape that a chain has by table and name.
    fn named(chain: &Chain, place: Place) -> Option<&'static Self> {
        let table = match &chain.table {
            Table::Nft(NftFamily::Ip | NftFamily::Ip6, name) | Table::Legacy(_, name) => name,
            Table::Nft(NftFamily::Inet, _) => return None,
        };
        let of = |shape: &&Self| shape.place == place && shape.table == table && shape.chain == chain.name;
        SHAPES.iter().find(of).filter(|_| !chain.base)
    }

    /// Whether its rules say that it is istio-cni's (`false`: it is empty), or why it is not.
    fn judge(&self, chain: &Chain, listing: &Listing) -> Result<bool, String> {
        if !chain.rules.iter().all(|rule| (self.may)(&rule.does)) {
            return Err("it has rules that are not istio-cni's".to_owned());
        }
        let others = |from: &&Chain| from.table == chain.table && !(from.base && from.name == self.from);
        if listing.chains.iter().filter(others).any(|from| from.rules.iter().any(|rule| rule.leads_to(chain)))
        {
            return Err("others' chains lead to it".to_owned());
        }
        let from = listing.chains.iter().filter(|from| !others(from) && from.table == chain.table);
        if from.flat_map(|from| &from.rules).any(|rule| rule.leads_to(chain) && !rule.bare) {
            return Err(format!("{} leads only some packets to it", self.from));
        }
        match chain.rules.is_empty() {
            true => Ok(false),
            false if chain.rules.iter().any(|rule| (self.must)(&rule.does)) => Ok(true),
            false => Err("none of its rules tells whose it is".to_owned()),
        }
    }
}

impl Rule {
    fn leads_to(&self, chain: &Chain) -> bool {
        matches!(&self.does, Does::Jump(to) if *to == chain.name)
    }
}

fn take(chain: &Chain, remains: &mut Remains) {
    match &chain.table {
        Table::Nft(..) => remains.chains.push((chain.table.clone(), chain.name.clone())),
        Table::Legacy(family, table) => {
            remains.legacy.entry((*family, table.clone())).or_default().insert(chain.name.clone());
        }
    }
}

/// Tables that are istio-cni's as a whole.
fn native_tables(listing: &Listing, remains: &mut Remains) {
    let tables: BTreeSet<&Table> = listing.chains.iter().map(|chain| &chain.table).collect();
    for table in tables {
        let Table::Nft(NftFamily::Inet, name) = table else { continue };
        if !NATIVE_TABLES.contains(&name.as_str()) {
            continue;
        }
        let chains = || listing.chains.iter().filter(|chain| chain.table == *table);
        match chains().find(|chain| !NATIVE_CHAINS.contains(&chain.name.as_str())) {
            None => remains.tables.push(table.clone()),
            Some(foreign) => {
                remains.left.push(format!("table {table}: its chain {} is not istio-cni's", foreign.name));
            }
        }
    }
}

/// The jumps to the chains in nf_tables; in ip_tables they go with what they lead to.
fn jumps(listing: &Listing, remains: &mut Remains) {
    for from in &listing.chains {
        for rule in &from.rules {
            let ours = |(table, name): &(Table, String)| {
                *table == from.table && matches!(&rule.does, Does::Jump(to) if to == name)
            };
            if remains.chains.iter().any(ours) {
                remains.jumps.push((from.table.clone(), from.name.clone(), rule.id));
            }
        }
    }
}

/// Tables of iptables' nft variant that hold nothing more when istio-cni's chains are out of them.
fn emptied(listing: &Listing, remains: &mut Remains) {
    let tables: BTreeSet<&Table> = remains.chains.iter().map(|(table, _)| table).collect();
    let mut emptied = Vec::new();
    for table in tables {
        let gone = |chain: &Chain| remains.chains.iter().any(|(of, name)| of == table && *name == chain.name);
        let stay: Vec<&Chain> =
            listing.chains.iter().filter(|chain| chain.table == *table && !gone(chain)).collect();
        let jumps = |chain: &Chain, rule: &Rule| {
            remains.jumps.iter().any(|(of, name, id)| of == table && *name == chain.name && *id == rule.id)
        };
        let hollow = |chain: &&Chain| chain.passes && chain.rules.iter().all(|rule| jumps(chain, rule));
        if stay.iter().all(|chain| chain.base) && stay.iter().all(hollow) {
            emptied.push((table.clone(), stay.iter().map(|chain| chain.name.clone()).collect()));
        }
    }
    remains.emptied = emptied;
}
