//! What came of the cells, for programs: `target/reports/matrix.json`.

use super::axes::variants;
use super::describe::{Cell, Plugins};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All cells that were run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Matrix {
    /// Whether everything held, or has its reason.
    pub ok: bool,
    /// How long all runs took together.
    pub seconds: f32,
    /// In order of name.
    pub cells: Vec<Record>,
}

/// One cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its name.
    pub cell: String,
    /// What it is.
    pub about: String,
    /// Where it is found.
    pub found: Vec<String>,
    /// `real` or `emulated`.
    pub plugins: String,
    /// What stands for what.
    pub stands_for: String,
    /// The file that the primary leaves.
    pub config: String,
    /// What an operator sets or knows.
    pub advice: String,
    /// Whether every run of it is.
    pub ok: bool,
    /// Why it was not run, if it was not, and its description allows that.
    pub not_run: Option<String>,
    /// Each way in which it was run.
    pub runs: Vec<Run>,
}

/// One way in which a cell was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// `base`, or what makes the difference.
    pub name: String,
    /// The values of the axes.
    pub axes: BTreeMap<String, String>,
    /// Whether every check held or has its reason.
    pub ok: bool,
    /// How long it took.
    pub seconds: f32,
    /// What was looked at.
    pub checks: Vec<Outcome>,
}

/// What came of one check.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its name.
    pub check: String,
    /// Whether it held, or failed as a recorded limit says.
    pub ok: bool,
    /// Why it cannot hold, if it cannot: it was made, and did fail.
    pub limit: Option<Reason>,
    /// What was seen.
    pub detail: String,
}

/// Why something cannot work, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reason {
    /// Why.
    pub because: String,
    /// What the user should set.
    pub instead: String,
}

impl Matrix {
    /// Leaves out what the descriptions have no more: cells, and ways of them.
    pub fn keep_known(&mut self, cells: &[Cell]) {
        self.cells.retain_mut(|record| {
            let cell = cells.iter().find(|cell| cell.cell == record.cell);
            if let Some(cell) = cell {
                let ways = variants(&cell.axes);
                record.runs.retain(|run| ways.iter().any(|way| way.name == run.name));
            }
            cell.is_some()
        });
    }

    /// Puts a cell's newest record in the place of an older one, and keeps the order of names. Of ways that were not
    /// run again the older run stays, if `some_ways` of it were selected.
    pub fn put(&mut self, mut record: Record, some_ways: bool) {
        let older = self.cells.iter().position(|older| older.cell == record.cell);
        let older = older.map(|place| self.cells.remove(place));
        for run in older.into_iter().filter(|_| some_ways).flat_map(|older| older.runs) {
            if !record.runs.iter().any(|newer| newer.name == run.name) {
                record.ran(run);
            }
        }
        self.cells.push(record);
        self.cells.sort_by(|one, other| one.cell.cmp(&other.cell));
        self.ok = self.cells.iter().all(|record| record.ok);
        self.seconds = self.cells.iter().flat_map(|record| &record.runs).map(|run| run.seconds).sum();
    }
}

impl Record {
    /// Of a cell that has not been run yet.
    #[must_use]
    pub fn of(cell: &Cell) -> Self {
        Self {
            cell: cell.cell.clone(),
            about: cell.about.clone(),
            found: cell.found.clone(),
            plugins: if cell.plugins == Plugins::Real { "real" } else { "emulated" }.into(),
            stands_for: cell.stands_for.clone(),
            config: format!("{}/{}", cell.config.directory, cell.config.file),
            advice: cell.advice.clone(),
            ok: true,
            not_run: None,
            runs: Vec::new(),
        }
    }

    /// One more way was run.
    pub fn ran(&mut self, run: Run) {
        self.ok &= run.ok;
        self.runs.push(run);
    }
}
