//! Which ways come of which axes.

use super::*;

fn names(axes: &Axes) -> Vec<String> {
    variants(axes).into_iter().map(|variant| variant.name).collect()
}

#[test]
fn each_value_of_each_axis_is_run_once() {
    assert_eq!(
        names(&Axes::default()),
        [
            "base",
            "families=v4",
            "families=v6",
            "families=v6-disabled",
            "backend=iptables",
            "rpFilter=0",
            "rpFilter=1",
            "rpFilter=2",
            "probes=cookie",
            "probes=source",
            "probes=none",
            "probes=auto",
        ]
    );
}

#[test]
fn a_fault_is_met_by_every_door() {
    let axes = Axes {
        families: vec![Families::Dual],
        backends: vec!["nftables".into()],
        rp_filter: Vec::new(),
        faults: vec![Fault::DropsLinkLocal, Fault::RefusesRules],
        ..Axes::default()
    };
    let ways = variants(&axes);
    let names: Vec<_> = ways.iter().map(|way| way.name.as_str()).collect();
    assert_eq!(
        names[5..],
        [
            "fault=drops-link-local",
            "fault=refuses-rules",
            "probes=cookie fault=drops-link-local",
            "probes=source fault=drops-link-local",
            "probes=auto fault=drops-link-local",
            "probes=cookie fault=refuses-rules",
            "probes=source fault=refuses-rules",
        ]
    );
    let probes: Vec<_> = ways[5..].iter().map(|way| way.probes.as_str()).collect();
    assert_eq!(
        probes,
        ["snat", "auto", "cookie", "source", "auto", "cookie", "source"],
        "a host that refuses rules is left to choose"
    );
}

#[test]
fn with_pairs_every_two_values_of_two_axes_come_together() {
    let axes = Axes {
        pairs: true,
        bridge_nf_call: vec![1, 0],
        faults: vec![Fault::RefusesRules],
        ..Axes::default()
    };
    let ways = variants(&axes);
    let has = |way: &Variant, value: &Value| match value {
        Value::Families(families) => way.families == *families,
        Value::Backend(backend) => way.backend == *backend,
        Value::RpFilter(value) => way.rp_filter == Some(*value),
        Value::Probes(probes) => way.probes == *probes,
        Value::BridgeNfCall(value) => way.bridge_nf_call == Some(*value),
        Value::Fault(fault) => way.fault == Some(*fault),
    };
    let others = others(&axes);
    for (index, one) in others[..5].iter().enumerate() {
        for other in &others[index + 1..5] {
            for (one, other) in one.iter().flat_map(|one| other.iter().map(move |other| (one, other))) {
                assert!(ways.iter().any(|way| has(way, one) && has(way, other)), "{one:?} with {other:?}");
            }
        }
    }
    // Three values by four are twelve ways at least; every other pair must fit into few more.
    let pairs = ways.iter().filter(|way| way.name.contains(' ')).count();
    assert!((12..=18).contains(&pairs), "{pairs}: {:?}", names(&axes));
    let mut unique = names(&axes);
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ways.len(), "each way once");
}

#[test]
fn a_limit_holds_where_all_of_its_values_do() {
    let limit = |at: &[(&str, &str)]| Limit {
        at: at.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        checks: vec!["probe".into()],
        because: "so it is".into(),
        instead: String::new(),
    };
    let base = &variants(&Axes::default())[0];
    let values = base.values("snat");
    assert!(limit(&[]).holds_at(&values));
    assert!(limit(&[("probes", "snat"), ("families", "dual")]).holds_at(&values));
    assert!(!limit(&[("probes", "snat"), ("families", "v4")]).holds_at(&values));
    assert!(!limit(&[("fault", "drops-link-local")]).holds_at(&values));
}
