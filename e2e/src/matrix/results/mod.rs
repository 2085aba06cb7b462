//! What came of the cells, short enough to be kept with the sources: `docs/support-matrix.json`. Page and picture are
//! made of it and of the descriptions, so that neither says what was not run.

use super::axes::{Variant, variants};
use super::describe::{Cell, Limit};
use super::record::{Matrix, Reason, Record, Run};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Results and descriptions that do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// A cell, or a way of it, that was not run.
    #[error("{cell}, {way}: not run yet; `make matrix CELL={cell}` runs it")]
    NotRun {
        /// Which cell.
        cell: String,
        /// In which way.
        way: String,
    },
    /// A check failed as its description says no more.
    #[error(
        "{cell}, {way}: `{check}` failed for a reason that the description does not give any more; run it again"
    )]
    NoReason {
        /// Which cell.
        cell: String,
        /// In which way.
        way: String,
        /// Which check.
        check: String,
    },
}

/// All cells that were run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// On what it was run.
    pub setting: String,
    /// How long all ways took together, one after the other, when all of them were last run.
    pub seconds: u32,
    /// By name.
    pub cells: BTreeMap<String, CellResult>,
}

/// One cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CellResult {
    /// Why it was not run, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
    /// Each way in which it was run, by name.
    #[serde(default)]
    pub ways: BTreeMap<String, WayResult>,
}

/// One way of a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WayResult {
    /// The probe strategy that was at work.
    pub probes: String,
    /// How many checks held.
    pub held: usize,
    /// Checks that were made and failed, as the description says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Checks that should have held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// Descriptions with what came of them.
#[derive(Debug)]
pub struct Table<'a> {
    /// On what it was run.
    pub setting: &'a str,
    /// How long all ways took together, one after the other.
    pub seconds: u32,
    /// A row a cell.
    pub rows: Vec<Row<'a>>,
    /// Why something does not work, each once; people count them from 1.
    pub reasons: Vec<Reason>,
}

/// A cell with what came of it.
#[derive(Debug)]
pub struct Row<'a> {
    /// The description.
    pub cell: &'a Cell,
    /// Why it was not run, if it was not.
    pub not_run: Option<&'a str>,
    /// Each way in which it is run, in that order.
    pub ways: Vec<Met<'a>>,
}

/// A way with what came of it.
#[derive(Debug)]
pub struct Met<'a> {
    /// The way.
    pub variant: Variant,
    /// What came of it.
    pub result: &'a WayResult,
    /// Each limit that was met: the check, and where in [`Table::reasons`] the reason is.
    pub limits: Vec<(&'a str, usize)>,
}

impl Results {
    /// The short form of a whole report.
    #[must_use]
    pub fn of(matrix: &Matrix, setting: String) -> Self {
        let cells = matrix.cells.iter().map(|record| (record.cell.clone(), CellResult::of(record))).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "hours at most")]
        let seconds = matrix.seconds.round() as u32;
        Self { setting, seconds, cells }
    }

    /// Takes over what was kept of earlier runs, of cells and ways that these have not: a run of some of them changes nothing
    /// about the others, on whichever machine they were run.
    #[must_use]
    pub fn over(mut self, kept: Self) -> Self {
        for (name, cell) in kept.cells {
            let newer = self.cells.entry(name).or_insert(CellResult { not_run: None, ways: BTreeMap::new() });
            if newer.ways.is_empty() && newer.not_run.is_none() {
                newer.not_run = cell.not_run;
            }
            for (way, result) in cell.ways {
                newer.ways.entry(way).or_insert(result);
            }
        }
        self.seconds = self.seconds.max(kept.seconds);
        self
    }
}

impl CellResult {
    fn of(record: &Record) -> Self {
        let ways = record.runs.iter().map(|run| (run.name.clone(), WayResult::of(run))).collect();
        Self { not_run: record.not_run.clone(), ways }
    }
}

impl WayResult {
    fn of(run: &Run) -> Self {
        let names = |wanted: &dyn Fn(&&super::record::Outcome) -> bool| -> Vec<String> {
            run.checks.iter().filter(wanted).map(|outcome| outcome.check.clone()).collect()
        };
        Self {
            probes: run.axes.get("probes").cloned().unwrap_or_default(),
            held: names(&|outcome| outcome.ok && outcome.limit.is_none()).len(),
            limits: names(&|outcome| outcome.ok && outcome.limit.is_some()),
            failed: names(&|outcome| !outcome.ok),
        }
    }
}

impl<'a> Table<'a> {
    /// Joins both.
    ///
    /// # Errors
    /// Which way has no result, or which result no reason any more.
    pub fn of(cells: &'a [Cell], common: &[Limit], results: &'a Results) -> Result<Self, ResultsError> {
        let mut table = Self {
            setting: &results.setting,
            seconds: results.seconds,
            rows: Vec::new(),
            reasons: Vec::new(),
        };
        table.reasons = common.iter().map(Limit::reason).collect();
        for cell in cells {
            let not_run = |way: &str| ResultsError::NotRun { cell: cell.cell.clone(), way: way.to_owned() };
            let result = results.cells.get(&cell.cell).ok_or_else(|| not_run("every way"))?;
            let mut row = Row { cell, not_run: result.not_run.as_deref(), ways: Vec::new() };
            let variants = if row.not_run.is_some() { Vec::new() } else { variants(&cell.axes) };
            for variant in variants {
                let result = result.ways.get(&variant.name).ok_or_else(|| not_run(&variant.name))?;
                let limits = table.reasons_of(cell, common, &variant, result)?;
                row.ways.push(Met { variant, result, limits });
            }
            table.rows.push(row);
        }
        Ok(table)
    }

    fn reasons_of(
        &mut self,
        cell: &Cell,
        common: &[Limit],
        variant: &Variant,
        result: &'a WayResult,
    ) -> Result<Vec<(&'a str, usize)>, ResultsError> {
        let values = variant.values(&result.probes);
        let mut met = Vec::new();
        for check in &result.limits {
            let limit = Limit::first(cell.cannot.iter().chain(common), check, &values);
            let reason = limit.map(Limit::reason).ok_or_else(|| ResultsError::NoReason {
                cell: cell.cell.clone(),
                way: variant.name.clone(),
                check: check.clone(),
            })?;
            let place = self.reasons.iter().position(|known| *known == reason).unwrap_or(self.reasons.len());
            if place == self.reasons.len() {
                self.reasons.push(reason);
            }
            met.push((check.as_str(), place));
        }
        Ok(met)
    }

    /// How many cells were run, in how many ways, and how many checks held.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let ways = || self.rows.iter().flat_map(|row| &row.ways);
        let cells = self.rows.iter().filter(|row| row.not_run.is_none()).count();
        (cells, ways().count(), ways().map(|met| met.result.held).sum())
    }
}

impl Row<'_> {
    /// How many checks held, failed for a reason, and failed.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let sum = |of: &dyn Fn(&Met<'_>) -> usize| self.ways.iter().map(of).sum();
        (sum(&|met| met.result.held), sum(&|met| met.limits.len()), sum(&|met| met.result.failed.len()))
    }
}

#[cfg(test)]
mod tests;
