//! A small part of the support matrix, with real plugins and emulated ones; and that a cell can fail.
//! `make matrix` runs all of it.

use anyhow::{Context, Result, ensure};
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::matrix::axes::variants;
use sluice_e2e::matrix::describe::{Cell, Limit};
use sluice_e2e::matrix::record::Run;
use sluice_e2e::matrix::run;
use std::path::{Path, PathBuf};

fn main() {
    suite::run(
        "matrix",
        vec![
            test("everything_holds_behind_real_plugins", |outer: &Outer| holds(outer, "kindnet", "base")),
            test("everything_holds_in_an_emulated_cell", |outer: &Outer| {
                holds(outer, "calico-iptables", "base")
            }),
            test("a_limit_is_met_where_it_is_said_to_be", limited),
            test("a_check_that_does_not_hold_fails_the_cell", fails),
            test("a_limit_that_is_not_true_fails_the_cell", untrue),
        ],
    );
}

const FAULT: &str = "fault=drops-link-local";

fn topologies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies")
}

fn described(cell: &str) -> Result<Cell> {
    Ok(Cell::read(&topologies().join("cells").join(format!("{cell}.yaml")))?)
}

/// Runs one way of a cell. Cells are told apart by `world`.
fn way(outer: &Outer, world: &str, cell: &Cell, name: &str) -> Result<Run> {
    let common = Limit::read_all(&topologies().join("limits.yaml"))?;
    let limits: Vec<_> = cell.cannot.iter().chain(&common).collect();
    let variant = variants(&cell.axes).into_iter().find(|variant| variant.name == name);
    let variant = variant.with_context(|| format!("{} has no way {name}", cell.cell))?;
    Ok(run::way(outer, world, cell, &variant, &limits))
}

/// Checks that did not hold, with what was seen.
fn failed(run: &Run) -> Vec<(&str, &str)> {
    let failed = run.checks.iter().filter(|outcome| !outcome.ok);
    failed.map(|outcome| (outcome.check.as_str(), outcome.detail.as_str())).collect()
}

fn limits(run: &Run) -> Vec<&str> {
    run.checks
        .iter()
        .filter(|outcome| outcome.limit.is_some())
        .map(|outcome| outcome.check.as_str())
        .collect()
}

fn holds(outer: &Outer, cell: &str, name: &str) -> Result<()> {
    let run = way(outer, cell, &described(cell)?, name)?;
    ensure!(run.ok, "{:?}", failed(&run));
    ensure!(limits(&run).is_empty(), "limits were met: {:?}", limits(&run));
    ensure!(run.checks.len() >= 16, "only {} checks were made", run.checks.len());
    Ok(())
}

fn limited(outer: &Outer) -> Result<()> {
    let run = way(outer, "limited", &described("kindnet")?, FAULT)?;
    ensure!(run.ok, "{:?}", failed(&run));
    ensure!(limits(&run) == ["probe"], "limits: {:?}", limits(&run));
    Ok(())
}

/// The same without the limit: what is lost must be noticed, and nothing else.
fn fails(outer: &Outer) -> Result<()> {
    let mut cell = described("kindnet")?;
    cell.cannot.clear();
    let run = way(outer, "fails", &cell, FAULT)?;
    let names: Vec<_> = failed(&run).into_iter().map(|(check, _)| check).collect();
    ensure!(!run.ok && names == ["probe"], "failed: {:?}", failed(&run));
    Ok(())
}

fn untrue(outer: &Outer) -> Result<()> {
    let mut cell = described("kindnet")?;
    for limit in &mut cell.cannot {
        limit.at.clear();
        limit.checks = vec!["outbound".into()];
    }
    let run = way(outer, "untrue", &cell, "base")?;
    ensure!(!run.ok, "nothing failed");
    let said = failed(&run);
    ensure!(
        matches!(said.as_slice(), [("outbound", why)] if why.contains("a limit says that it cannot")),
        "failed: {said:?}"
    );
    Ok(())
}
