//! Several cells at once, each in a process and a private world of its own.
//!
//! The process says each thing that came of its cell on its standard output, a line of JSON each ([`Said`]).

use super::axes::variants;
use super::describe::Cell;
use super::record::{Outcome, Record, Run};
use super::run::Selection;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};

/// What a cell's process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    /// A way of it was run.
    Ran(Run),
    /// It cannot be run here, for this reason.
    NotRun(String),
    /// Where its files are, after a failure.
    Kept(String),
}

/// Runs cells, `jobs` of them at once, those with most ways first; `told` hears what comes of each.
pub fn all(
    cells: &[Cell],
    selection: &Selection,
    topologies: &Path,
    jobs: usize,
    mut told: impl FnMut(&Cell, &Said),
) -> Vec<Record> {
    let mut order: Vec<&Cell> = cells.iter().collect();
    order.sort_by_key(|cell| std::cmp::Reverse(variants(&cell.axes).len()));
    let queue = Mutex::new(VecDeque::from(order));
    let mut records: Vec<Record> = cells.iter().map(Record::of).collect();
    let (tell, hear) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (queue, tell) = (&queue, tell.clone());
            scope.spawn(move || {
                while let Some(cell) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                    let tell = |said| drop(tell.send((cell, said)));
                    if let Err(why) = process(cell, selection, topologies, &tell) {
                        tell(Said::Ran(broken(&why)));
                    }
                }
            });
        }
        drop(tell);
        for (cell, said) in hear {
            told(cell, &said);
            if let Some(record) = records.iter_mut().find(|record| record.cell == cell.cell) {
                match said {
                    Said::Ran(run) => record.ran(run),
                    Said::NotRun(why) => record.not_run = Some(why),
                    Said::Kept(_) => {}
                }
            }
        }
    });
    records
}

/// Runs one cell to its end.
fn process(cell: &Cell, selection: &Selection, topologies: &Path, tell: &dyn Fn(Said)) -> Result<()> {
    let this = std::env::current_exe().context("which program is this?")?;
    let mut command = Command::new(this);
    command.arg("cell").arg(&cell.cell).arg("--topologies").arg(topologies);
    for way in &selection.ways {
        command.arg("--way").arg(way);
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the cell's process")?;
    let stdout = child.stdout.take().context("a process without a stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read what the cell's process says")?;
        tell(serde_json::from_str(&line).with_context(|| format!("the cell's process says {line:?}"))?);
    }
    let status = child.wait().context("wait for the cell's process")?;
    anyhow::ensure!(status.success(), "the cell's process ended before all was run: {status}");
    Ok(())
}

/// The way that a process did not come to say anything of.
fn broken(why: &anyhow::Error) -> Run {
    let check = super::checks::ALL[0].name.to_owned();
    let outcome = Outcome { check, ok: false, limit: None, detail: format!("{why:#}") };
    Run {
        name: "process".into(),
        axes: std::collections::BTreeMap::new(),
        ok: false,
        seconds: 0.0,
        checks: vec![outcome],
    }
}
