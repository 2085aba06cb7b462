use super::*;
use crate::contract::MARK_PROXIED;
use crate::lower::{Backend, Step, lower};
use crate::op::KernelOp;

const IP: NftFamily = NftFamily::Ip;

type Change = fn(&mut Vec<Chain>);

fn nft(name: &str) -> Table {
    Table::Nft(IP, name.into())
}

fn legacy(name: &str) -> Table {
    Table::Legacy(Family::V4, name.into())
}

fn rules(does: &[Does]) -> Vec<Rule> {
    let numbered = does.iter().enumerate();
    numbered.map(|(at, does)| Rule { id: RuleId(at as u64 + 1), bare: true, does: does.clone() }).collect()
}

fn chain(table: &Table, name: &str, does: &[Does]) -> Chain {
    Chain { table: table.clone(), name: name.into(), base: false, passes: true, rules: rules(does) }
}

fn hook(table: &Table, name: &str, does: &[Does]) -> Chain {
    Chain { base: true, ..chain(table, name, does) }
}

fn jump(to: &str) -> Does {
    Does::Jump(to.into())
}

fn listing(chains: Vec<Chain>) -> Listing {
    Listing { generation: Some(7), chains, ipsets: BTreeSet::new() }
}

/// A pod's chains in one table as istio-cni writes them.
fn nat(table: &Table) -> Vec<Chain> {
    vec![
        hook(table, "PREROUTING", &[jump("ISTIO_PRERT")]),
        hook(table, "OUTPUT", &[jump("ISTIO_OUTPUT")]),
        chain(table, "ISTIO_PRERT", &[Does::Accept, Does::Redirect(15006)]),
        chain(
            table,
            "ISTIO_OUTPUT",
            &[Does::Accept, Does::Redirect(15053), Does::Accept, Does::Redirect(15001)],
        ),
    ]
}

fn names(remains: &Remains) -> Vec<&str> {
    remains.chains.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn its_chains_and_the_jumps_to_them_go_and_the_table_with_them() {
    let remains = recognise(&listing(nat(&nft("nat"))), Place::Pod);
    assert_eq!(names(&remains), ["ISTIO_PRERT", "ISTIO_OUTPUT"]);
    let expected = ["PREROUTING", "OUTPUT"].map(|hook| (nft("nat"), hook.to_owned(), RuleId(1)));
    assert_eq!(remains.jumps, expected);
    assert_eq!(remains.emptied, [(nft("nat"), vec!["PREROUTING".to_owned(), "OUTPUT".to_owned()])]);
    assert_eq!(remains.generation, Some(7));
    assert!(remains.left.is_empty() && !remains.is_empty());
    assert_eq!(remains.to_string(), "ISTIO_OUTPUT in ip nat; ISTIO_PRERT in ip nat");
}

#[test]
fn a_table_with_something_of_anybodys_stays() {
    let kept: [Change; 3] = [
        |chains| chains.push(chain(&nft("nat"), "OWN", &[])),
        |chains| chains[0].rules.push(Rule { id: RuleId(9), bare: false, does: Does::Else }),
        |chains| chains[1].passes = false,
    ];
    for change in kept {
        let mut chains = nat(&nft("nat"));
        change(&mut chains);
        let remains = recognise(&listing(chains), Place::Pod);
        assert_eq!((remains.chains.len(), remains.jumps.len()), (2, 2));
        assert!(remains.emptied.is_empty());
    }
    // On the host tables are others' to keep.
    let chains = vec![
        hook(&nft("nat"), "POSTROUTING", &[jump("ISTIO_POSTRT")]),
        chain(&nft("nat"), "ISTIO_POSTRT", &[Does::Snat]),
    ];
    let remains = recognise(&listing(chains), Place::Host);
    assert_eq!(names(&remains), ["ISTIO_POSTRT"]);
    assert!(remains.emptied.is_empty());
}

#[test]
fn what_only_looks_like_it_is_left_and_named() {
    let spoilt: [(&str, Change); 5] = [
        ("rules that are not", |chains| chains[3].rules.push(rules(&[jump("ISTIO_REDIRECT")]).remove(0))),
        ("rules that are not", |chains| chains[3].rules[1].does = Does::Redirect(8080)),
        ("none of its rules", |chains| chains[3].rules.truncate(1)),
        ("only some packets", |chains| chains[1].rules[0].bare = false),
        ("others' chains lead", |chains| chains.push(chain(&nft("nat"), "OWN", &[jump("ISTIO_OUTPUT")]))),
    ];
    for (why, change) in spoilt {
        let mut chains = nat(&nft("nat"));
        change(&mut chains);
        let remains = recognise(&listing(chains), Place::Pod);
        assert_eq!(names(&remains), ["ISTIO_PRERT"], "{why}");
        assert_eq!(remains.left.len(), 1, "{why}");
        assert!(remains.left[0].starts_with("ISTIO_OUTPUT in ip nat: ") && remains.left[0].contains(why));
        assert!(remains.emptied.is_empty(), "{why}");
    }
}

#[test]
fn names_count_only_where_istio_cni_has_them() {
    let elsewhere = [
        chain(&nft("filter"), "ISTIO_OUTPUT", &[Does::Redirect(15001)]),
        chain(&nft("nat"), "ISTIO_POSTRT", &[Does::Snat]),
        chain(&Table::Nft(NftFamily::Inet, "nat".into()), "ISTIO_OUTPUT", &[Does::Redirect(15001)]),
        chain(&nft("nat"), "ISTIO_OUTPUT2", &[Does::Redirect(15001)]),
        hook(&nft("nat"), "ISTIO_OUTPUT", &[Does::Redirect(15001)]),
    ];
    for one in elsewhere {
        let remains = recognise(&listing(vec![one]), Place::Pod);
        assert!(remains.is_empty() && remains.left.is_empty(), "{remains:?}");
    }
}

#[test]
fn an_empty_chain_goes_with_others_and_not_by_itself() {
    let empty = chain(&nft("nat"), "ISTIO_PRERT", &[]);
    let alone = recognise(&listing(vec![empty.clone()]), Place::Pod);
    assert!(alone.is_empty());
    assert_eq!(alone.left, ["ISTIO_PRERT in ip nat: it is empty"]);
    let marks = chain(&nft("mangle"), "ISTIO_PRERT", &[Does::SetConnmark(MARK_PROXIED)]);
    let remains = recognise(&listing(vec![empty, marks]), Place::Pod);
    assert_eq!(remains.chains.len(), 2);
}

#[test]
fn whole_tables_of_its_own() {
    let table = |name: &str| Table::Nft(NftFamily::Inet, name.into());
    let own = table("istio-ambient-nat");
    let chains = vec![hook(&own, "prerouting", &[]), chain(&own, "istio-prerouting", &[Does::Else])];
    assert_eq!(recognise(&listing(chains.clone()), Place::Pod).tables, std::slice::from_ref(&own));
    let mut foreign = chains;
    foreign.push(chain(&own, "mine", &[]));
    let remains = recognise(&listing(foreign), Place::Pod);
    assert!(remains.tables.is_empty());
    assert_eq!(remains.left, ["table inet istio-ambient-nat: its chain mine is not istio-cni's"]);
    let other = vec![hook(&table("istio-ambient-x"), "prerouting", &[])];
    assert!(recognise(&listing(other), Place::Pod).is_empty());
}

#[test]
fn sets_are_the_hosts_and_only_the_two() {
    let ipsets = ["istio-inpod-probes-v4", "istio-inpod-probes-v4-old"].map(String::from).into();
    let listing = Listing { ipsets, ..Listing::default() };
    assert_eq!(recognise(&listing, Place::Host).ipsets, BTreeSet::from([PROBE_SETS[0].to_owned()]));
    assert!(recognise(&listing, Place::Pod).is_empty());
}

#[test]
fn nat_goes_first_where_it_is_not_one_transaction_and_sets_last() {
    let mut chains = nat(&legacy("nat"));
    chains.push(chain(&legacy("mangle"), "ISTIO_PRERT", &[Does::SetConnmark(MARK_PROXIED)]));
    chains.push(chain(&nft("mangle"), "ISTIO_OUTPUT", &[Does::RestoreMark]));
    let mut remains = recognise(&listing(chains), Place::Pod);
    remains.ipsets.insert("istio-inpod-probes-v4".into());
    let ops = lower(Backend::Nftables, Step::Dismantle(&remains));
    let [
        KernelOp::NftBatch(batch),
        KernelOp::LegacyWithout { table: first, .. },
        KernelOp::LegacyWithout { table: second, .. },
        KernelOp::DestroyIpset(_),
    ] = &ops[..]
    else {
        panic!("{ops:?}")
    };
    assert_eq!((first.as_str(), second.as_str()), ("nat", "mangle"));
    assert_eq!(
        batch.labels,
        [
            "begin",
            "delete istio-cni's the rules of ip mangle ISTIO_OUTPUT",
            "delete istio-cni's chain ip mangle ISTIO_OUTPUT",
            "delete istio-cni's table ip mangle",
            "commit"
        ]
    );
}
