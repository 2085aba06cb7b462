//! All cells, or those that are named: progress, the report, and what is kept of it for people.

use super::{Places, Run, known};
use anyhow::{Context, Result};
use sluice_e2e::lab::report::reports_dir;
use sluice_e2e::lab::write_whole;
use sluice_e2e::matrix::axes;
use sluice_e2e::matrix::describe::{Absence, Cell};
use sluice_e2e::matrix::record::{self, Matrix};
use sluice_e2e::matrix::results::{Results, Table};
use sluice_e2e::matrix::run::Selection;
use sluice_e2e::matrix::workers::{self, Said};
use sluice_e2e::matrix::{page as text, picture};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// What goes by on the screen.
struct Progress {
    begun: Instant,
    done: usize,
    all: usize,
}

pub fn run(run: &Run) -> Result<ExitCode> {
    let every = run.places.cells()?;
    let ways = every.iter().flat_map(|cell| axes::variants(&cell.axes)).map(|way| way.name);
    known("cell", &run.cell, &every.iter().map(|cell| cell.cell.clone()).collect::<Vec<_>>())?;
    known("way", &run.way, &ways.collect::<Vec<_>>())?;
    let selection = Selection { ways: run.way.clone() };
    let mut cells = every.clone();
    cells.retain(|cell| run.cell.is_empty() || run.cell.contains(&cell.cell));
    let path = reports_dir()?.join("matrix.json");
    // A run of everything has nothing older in it.
    let whole = run.cell.is_empty() && run.way.is_empty();
    let mut matrix = if whole { Matrix::default() } else { earlier(&path) };
    matrix.keep_known(&every);
    let jobs = run.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut progress = Progress::of(&cells, &selection);
    let records = workers::all(&cells, &selection, &run.places.topologies, jobs, |cell, said| {
        progress.tell(cell, said);
    });
    let ok = records.iter().all(|record| record.ok);
    for record in records {
        matrix.put(record, !run.way.is_empty());
    }
    write_whole(&path, &serde_json::to_string_pretty(&matrix)?)?;
    println!("{}", path.display());
    let mut results = Results::of(&matrix, setting()?);
    if !whole && let Ok(kept) = kept(&run.places) {
        results = results.over(kept);
    }
    keep(&results, &every, &run.places)?;
    println!(
        "{} cells, {} ways, {:.0} s: {}",
        cells.len(),
        progress.done,
        progress.begun.elapsed().as_secs_f32(),
        if ok { "ok" } else { "FAILED" }
    );
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes page and picture anew from the results that are kept.
pub fn page(places: &Places) -> Result<()> {
    write(&kept(places)?, &places.cells()?, places)
}

/// The results that are kept.
fn kept(places: &Places) -> Result<Results> {
    let path = places.docs.join("support-matrix.json");
    let said = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&said).with_context(|| format!("{}", path.display()))
}

/// Keeps what came of it, when all of it was run.
fn keep(results: &Results, cells: &[Cell], places: &Places) -> Result<()> {
    if let Err(why) = Table::of(cells, &places.limits()?, results) {
        println!("{} stays as it is: {why}", places.docs.join("support-matrix.md").display());
        return Ok(());
    }
    write_whole(
        &places.docs.join("support-matrix.json"),
        &format!("{}\n", serde_json::to_string_pretty(results)?),
    )?;
    write(results, cells, places)
}

fn write(results: &Results, cells: &[Cell], places: &Places) -> Result<()> {
    let limits = places.limits()?;
    let table = Table::of(cells, &limits, results)?;
    let absent = Absence::read_all(&places.topologies.join("not-run.yaml"))?;
    write_whole(&places.docs.join("support-matrix.md"), &text::markdown(&table, &absent))?;
    write_whole(&places.docs.join("support-matrix.svg"), &picture::svg(&table))
}

/// What earlier runs said: one cell's run changes one cell of the page.
fn earlier(path: &Path) -> Matrix {
    let read = || -> Result<Matrix> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    read().unwrap_or_default()
}

/// On what it was run, and when.
fn setting() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    let (day, machine) = (jiff::Timestamp::now().strftime("%F"), std::env::consts::ARCH);
    Ok(format!("Run on {day}, Linux {kernel}, {machine}."))
}

impl Progress {
    fn of(cells: &[Cell], selection: &Selection) -> Self {
        let ways = cells.iter().flat_map(|cell| axes::variants(&cell.axes));
        let all = ways.filter(|way| selection.has(&way.name)).count();
        Self { begun: Instant::now(), done: 0, all }
    }

    fn tell(&mut self, cell: &Cell, said: &Said) {
        match said {
            Said::Ran(run) => self.ran(cell, run),
            Said::NotRun(why) => {
                let ways = axes::variants(&cell.axes).len();
                self.all = self.all.saturating_sub(ways);
                println!("{:>9}  not run {}: {why}", "", cell.cell);
            }
            Said::Kept(files) => println!("{:>9}  the files of {} are in {files}", "", cell.cell),
        }
    }

    fn ran(&mut self, cell: &Cell, run: &record::Run) {
        self.done += 1;
        let met = run.checks.iter().filter(|outcome| outcome.limit.is_some()).count();
        let seconds = self.begun.elapsed().as_secs();
        println!(
            "{:>4}/{} {:>2}:{:02}  {} {:<22} {:<44} {:>2} checks, {met} limits, {:.1} s",
            self.done,
            self.all,
            seconds / 60,
            seconds % 60,
            if run.ok { "ok  " } else { "FAIL" },
            cell.cell,
            run.name,
            run.checks.len(),
            run.seconds
        );
        for outcome in run.checks.iter().filter(|outcome| !outcome.ok) {
            println!("       {}: {}", outcome.check, outcome.detail.replace('\n', "\n         "));
        }
    }
}
