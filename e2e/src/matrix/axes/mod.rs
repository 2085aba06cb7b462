//! The axes, and the ways in which a cell is run.
//!
//! Each cell is run once as it is, and once for every other value of each axis that can make a difference there. A fault
//! is met by the kubelet's door, so it is run with every strategy that opens one. What two axes do together is left to the
//! cells that say `pairs`: there every two values of two axes come together in some way.

mod pairs;

use super::describe::{Axes, Families, Fault, Limit};
use std::collections::BTreeMap;

/// The names of the axes, as descriptions and reports use them.
pub const NAMES: [&str; 6] = ["families", "backend", "rpFilter", "probes", "bridgeNfCall", "fault"];

/// One way in which a cell is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// `base`, or the axes and the values that make the difference.
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

/// One value of one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The pods' families.
    Families(Families),
    /// Who writes rules.
    Backend(String),
    /// Reverse path filters.
    RpFilter(u8),
    /// The probe strategy.
    Probes(String),
    /// `net.bridge.bridge-nf-call-*`.
    BridgeNfCall(u8),
    /// What else stands in the way.
    Fault(Fault),
}

/// The ways in which a cell with these axes is run, the base first.
#[must_use]
pub fn variants(axes: &Axes) -> Vec<Variant> {
    let base = base(axes);
    let others = others(axes);
    let mut ways = vec![Vec::new()];
    ways.extend(others.iter().flatten().cloned().map(|value| vec![value]));
    for fault in &axes.faults {
        ways.extend(doors(axes, *fault).map(|door| vec![door, Value::Fault(*fault)]));
    }
    if axes.pairs {
        ways.extend(pairs::cover(&others[..others.len() - 1]));
    }
    ways.into_iter().map(|differences| base.with(&differences)).collect()
}

/// The first value of each axis.
fn base(axes: &Axes) -> Variant {
    Variant {
        name: "base".into(),
        families: axes.families[0],
        backend: axes.backends[0].clone(),
        rp_filter: None,
        probes: axes.probes[0].clone(),
        bridge_nf_call: axes.bridge_nf_call.first().copied(),
        fault: None,
    }
}

/// The other values of each axis, faults last.
fn others(axes: &Axes) -> [Vec<Value>; 6] {
    [
        axes.families[1..].iter().copied().map(Value::Families).collect(),
        axes.backends[1..].iter().cloned().map(Value::Backend).collect(),
        axes.rp_filter.iter().copied().map(Value::RpFilter).collect(),
        axes.probes[1..].iter().cloned().map(Value::Probes).collect(),
        axes.bridge_nf_call.iter().skip(1).copied().map(Value::BridgeNfCall).collect(),
        axes.faults.iter().copied().map(Value::Fault).collect(),
    ]
}

/// The other strategies that open a door, or find out which one opens, and that do not need what the fault takes away.
fn doors(axes: &Axes, fault: Fault) -> impl Iterator<Item = Value> {
    let fits = move |probes: &&String| match fault {
        Fault::RefusesRules => ["cookie", "source"].contains(&probes.as_str()),
        _ => probes.as_str() != "none",
    };
    axes.probes[1..].iter().filter(fits).cloned().map(Value::Probes)
}

impl Value {
    /// The axis's name.
    #[must_use]
    pub fn axis(&self) -> &'static str {
        match self {
            Self::Families(_) => "families",
            Self::Backend(_) => "backend",
            Self::RpFilter(_) => "rpFilter",
            Self::Probes(_) => "probes",
            Self::BridgeNfCall(_) => "bridgeNfCall",
            Self::Fault(_) => "fault",
        }
    }

    /// The value's name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Families(families) => families.name().into(),
            Self::Backend(name) | Self::Probes(name) => name.clone(),
            Self::RpFilter(value) | Self::BridgeNfCall(value) => value.to_string(),
            Self::Fault(fault) => fault.name().into(),
        }
    }
}

impl Variant {
    /// With other values; that is its name then.
    fn with(&self, differences: &[Value]) -> Self {
        let mut variant = self.clone();
        for value in differences {
            match value.clone() {
                Value::Families(families) => variant.families = families,
                Value::Backend(backend) => variant.backend = backend,
                Value::RpFilter(value) => variant.rp_filter = Some(value),
                Value::Probes(probes) => variant.probes = probes,
                Value::BridgeNfCall(value) => variant.bridge_nf_call = Some(value),
                Value::Fault(fault) => {
                    variant.fault = Some(fault);
                    if fault == Fault::RefusesRules
                        && !differences.iter().any(|value| value.axis() == "probes")
                    {
                        // What a node would choose by itself there.
                        variant.probes = "auto".into();
                    }
                }
            }
        }
        if !differences.is_empty() {
            let names = differences.iter().map(|value| format!("{}={}", value.axis(), value.name()));
            variant.name = names.collect::<Vec<_>>().join(" ");
        }
        variant
    }

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
mod tests;
