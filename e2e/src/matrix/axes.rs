//! The axes, and the ways in which a cell is run: once as it is, and once for every other value of each axis.

use super::describe::{Axes, Families, Fault, Limit};
use std::collections::BTreeMap;

/// The names of the axes, as descriptions and reports use them.
pub const NAMES: [&str; 6] = ["families", "backend", "rpFilter", "probes", "bridgeNfCall", "fault"];

/// One way in which a cell is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// `base`, or the axis and the value that make the difference.
    pub name: String,
    /// The pods' families.
    pub families: Families,
    /// Who writes rules.
    pub backend: String,
    /// Reverse path filters; the primary's own if none.
    pub rp_filter: Option<u8>,
    /// The probe strategy that is asked for.
    pub probes: String,
    /// `net.bridge.bridge-nf-call-*`; untouched if none.
    pub bridge_nf_call: Option<u8>,
    /// What else stands in the way.
    pub fault: Option<Fault>,
}

/// The ways in which a cell with these axes is run, the base first.
#[must_use]
pub fn variants(axes: &Axes) -> Vec<Variant> {
    let base = Variant {
        name: "base".into(),
        families: axes.families[0],
        backend: axes.backends[0].clone(),
        rp_filter: None,
        probes: axes.probes[0].clone(),
        bridge_nf_call: axes.bridge_nf_call.first().copied(),
        fault: None,
    };
    let mut all = vec![base.clone()];
    let mut add = |axis: &str, value: &str, change: &dyn Fn(&mut Variant)| {
        let mut variant = Variant { name: format!("{axis}={value}"), ..base.clone() };
        change(&mut variant);
        all.push(variant);
    };
    for families in &axes.families[1..] {
        add("families", families.name(), &|variant| variant.families = *families);
    }
    for backend in &axes.backends[1..] {
        add("backend", backend, &|variant| variant.backend.clone_from(backend));
    }
    for value in &axes.rp_filter {
        add("rpFilter", &value.to_string(), &|variant| variant.rp_filter = Some(*value));
    }
    for probes in &axes.probes[1..] {
        add("probes", probes, &|variant| variant.probes.clone_from(probes));
    }
    for value in axes.bridge_nf_call.iter().skip(1) {
        add("bridgeNfCall", &value.to_string(), &|variant| variant.bridge_nf_call = Some(*value));
    }
    for fault in &axes.faults {
        add("fault", fault.name(), &|variant| {
            variant.fault = Some(*fault);
            if *fault == Fault::RefusesRules {
                // What a node would choose by itself there.
                variant.probes = "auto".into();
            }
        });
    }
    all
}

impl Variant {
    /// The values of the axes, for the report; with the probe strategy that is at work.
    #[must_use]
    pub fn values(&self, probes: &str) -> BTreeMap<String, String> {
        let (rp_filter, bridge) = (self.rp_filter, self.bridge_nf_call);
        let values = [
            ("families", Some(self.families.name().to_owned())),
            ("backend", Some(self.backend.clone())),
            ("probes", Some(probes.to_owned())),
            ("rpFilter", rp_filter.map(|value| value.to_string())),
            ("bridgeNfCall", bridge.map(|value| value.to_string())),
            ("fault", self.fault.map(|fault| fault.name().to_owned())),
        ];
        values.into_iter().filter_map(|(axis, value)| Some((axis.to_owned(), value?))).collect()
    }
}

impl Limit {
    /// Whether it holds where the axes have these values.
    #[must_use]
    pub fn holds_at(&self, values: &BTreeMap<String, String>) -> bool {
        self.at.iter().all(|(axis, value)| values.get(axis) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_of_each_axis_is_run_once() {
        let names: Vec<_> = variants(&Axes::default()).into_iter().map(|variant| variant.name).collect();
        assert_eq!(
            names,
            [
                "base",
                "families=v4",
                "families=v6",
                "families=v6-disabled",
                "backend=iptables",
                "rpFilter=0",
                "rpFilter=1",
                "rpFilter=2",
                "probes=source",
                "probes=none",
                "probes=auto",
            ]
        );
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
}
