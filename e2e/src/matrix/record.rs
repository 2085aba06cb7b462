//! What came of the cells, for programs: `target/reports/matrix.json`.

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
    /// Puts a cell's newest record in the place of an older one, and keeps the order of names.
    pub fn put(&mut self, record: Record) {
        self.cells.retain(|older| older.cell != record.cell);
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

    /// Every limit that was met, with the runs and the checks that met it.
    #[must_use]
    pub fn limits(&self) -> BTreeMap<Reason, Vec<(String, String)>> {
        let mut limits = BTreeMap::<_, Vec<_>>::new();
        for run in &self.runs {
            for outcome in &run.checks {
                if let Some(reason) = &outcome.limit {
                    limits.entry(reason.clone()).or_default().push((run.name.clone(), outcome.check.clone()));
                }
            }
        }
        limits
    }
}
