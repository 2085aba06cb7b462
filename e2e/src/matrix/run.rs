//! Runs cells, one way after the other, and judges each check by the limits that are recorded.

use super::axes::{Variant, variants};
use super::checks::{self, Check};
use super::describe::{Cell, Limit, Plugins};
use super::programs::built_plugins;
use super::record::{Outcome, Run};
use super::stage::Stage;
use super::workers::Said;
use crate::lab::agent::PATIENCE;
use crate::lab::cni::{CniError, chains};
use crate::lab::outer::Outer;
use anyhow::{Result, anyhow};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long to wait for what should not come: two retransmits of a SYN.
const NO_ANSWER: Duration = Duration::from_secs(5);
/// After so many failures a run is given up.
const ENOUGH: usize = 2;
/// How often a way is run at most, where the primary alone fails.
const ATTEMPTS: usize = 3;

/// Which ways of a cell are run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only ways of these names; all when empty.
    pub ways: Vec<String>,
}

/// Runs a cell in every way that is selected, and tells of each. Nothing that goes wrong ends it.
pub fn cell(outer: &Outer, cell: &Cell, common: &[Limit], selection: &Selection, mut tell: impl FnMut(Said)) {
    // Where one is missing and must not be, the runner says which, and where it looked.
    if let Ok(missing) = missing(cell)
        && !missing.is_empty()
        && !cell.optional.is_empty()
    {
        return tell(Said::NotRun(format!("{} (missing: {})", cell.optional, missing.join(", "))));
    }
    let limits: Vec<&Limit> = cell.cannot.iter().chain(common).collect();
    for (number, variant) in variants(&cell.axes).iter().enumerate() {
        if selection.has(&variant.name) {
            let world = format!("{}-{number}", cell.cell);
            tell(Said::Ran(way(outer, &world, cell, variant, &limits)));
        }
    }
}

impl Selection {
    /// Whether a way of this name is run.
    #[must_use]
    pub fn has(&self, way: &str) -> bool {
        self.ways.is_empty() || self.ways.iter().any(|name| name == way)
    }
}

/// Runs a cell in one way; anew, as a kubelet would, where nothing failed but the primary's own wait for the kernel.
#[must_use]
pub fn way(outer: &Outer, world: &str, cell: &Cell, variant: &Variant, limits: &[&Limit]) -> Run {
    for attempt in 1..ATTEMPTS {
        let (run, primarys_own) = once(outer, &format!("{world}-{attempt}"), cell, variant, limits);
        if !primarys_own {
            return run;
        }
    }
    once(outer, world, cell, variant, limits).0
}

/// One attempt, and whether all that failed in it is the primary's own ([`CniError::is_tentative`]).
fn once(outer: &Outer, world: &str, cell: &Cell, variant: &Variant, limits: &[&Limit]) -> (Run, bool) {
    let begun = Instant::now();
    let mut axes = variant.values(&variant.probes);
    let (mut outcomes, mut failed, mut tentative) = (Vec::new(), 0, 0);
    let mut note = |check: &Check, looked: Result<String>, axes: &BTreeMap<String, String>| {
        let own = looked.as_ref().is_err_and(is_tentative);
        let outcome = judged(check, looked, axes, limits);
        failed += usize::from(!outcome.ok);
        tentative += usize::from(own);
        outcomes.push(outcome);
        failed
    };
    match Stage::stand(outer, world, cell, variant) {
        Ok(mut stage) => {
            axes = variant.values(&stage.probes);
            for check in checks::ALL.iter().filter(|check| check.applies(cell, variant)) {
                stage.patience = if limit_of(check, &axes, limits).is_some() { NO_ANSWER } else { PATIENCE };
                // What is broken so far breaks most of the rest too, and each waits for its patience to end.
                if note(check, (check.look)(&mut stage, outer), &axes) >= ENOUGH {
                    break;
                }
            }
        }
        Err(why) => drop(note(&checks::ALL[0], Err(why), &axes)),
    }
    let run = Run {
        name: variant.name.clone(),
        axes,
        ok: failed == 0,
        seconds: begun.elapsed().as_secs_f32(),
        checks: outcomes,
    };
    (run, failed > 0 && tentative == failed)
}

fn is_tentative(why: &anyhow::Error) -> bool {
    why.downcast_ref::<CniError>().is_some_and(CniError::is_tentative)
}

/// A check that holds where a limit says that it cannot is a failure too: the limit is not true any more.
fn judged(
    check: &Check,
    outcome: Result<String>,
    axes: &BTreeMap<String, String>,
    limits: &[&Limit],
) -> Outcome {
    let limit = limit_of(check, axes, limits);
    let (ok, limit, detail) = match (outcome, limit) {
        (Ok(detail), None) => (true, None, detail),
        (Ok(detail), Some(limit)) => (
            false,
            None,
            format!("it holds, though a limit says that it cannot ({}): {detail}", limit.because),
        ),
        (Err(why), None) => (false, None, format!("{why:#}")),
        (Err(why), Some(limit)) => (true, Some(limit.reason()), format!("{why:#}")),
    };
    Outcome { check: check.name.to_owned(), ok, limit, detail }
}

/// Why a check cannot hold, if it cannot.
fn limit_of<'a>(check: &Check, axes: &BTreeMap<String, String>, limits: &[&'a Limit]) -> Option<&'a Limit> {
    Limit::first(limits.iter().copied(), check.name, axes)
}

/// Plugins of the chain that are nowhere to be found.
///
/// # Errors
/// When the description's list is none.
fn missing(cell: &Cell) -> Result<Vec<String>> {
    let list = cell.list().map_err(|why| anyhow!(why))?;
    let mut path: Vec<PathBuf> = built_plugins();
    path.extend(chains::plugin_dir());
    let skip = usize::from(cell.plugins == Plugins::Emulated);
    let named = |key: &str, of: &Value| of.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut names = Vec::new();
    for plugin in list.plugins.iter().skip(skip) {
        let plugin = Value::Object(plugin.clone());
        names.extend(named("type", &plugin));
        names.extend(plugin.get("ipam").and_then(|ipam| named("type", ipam)));
    }
    names.retain(|name| !path.iter().any(|dir| dir.join(name).is_file()));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_must_be_true() {
        let limit = Limit {
            at: BTreeMap::from([("probes".to_owned(), "snat".to_owned())]),
            checks: vec!["probe".into()],
            because: "the datapath drops it".into(),
            instead: "probes: source".into(),
        };
        let check = checks::ALL.iter().find(|check| check.name == "probe").unwrap();
        let at = |probes: &str| BTreeMap::from([("probes".to_owned(), probes.to_owned())]);
        let judge = |holds: bool, probes: &str| {
            let outcome = if holds { Ok("seen".to_owned()) } else { Err(anyhow!("timed out")) };
            let outcome = judged(check, outcome, &at(probes), &[&limit]);
            (outcome.ok, outcome.limit.is_some())
        };
        assert_eq!(judge(true, "source"), (true, false));
        assert_eq!(judge(false, "source"), (false, false));
        assert_eq!(judge(true, "snat"), (false, false));
        assert_eq!(judge(false, "snat"), (true, true));
    }
}
