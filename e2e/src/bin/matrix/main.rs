//! `sluice-matrix`: proves cell by cell, on this machine, with which primary CNIs Sluice works. See `sluice_e2e::matrix`.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use sluice_e2e::lab::outer;
use sluice_e2e::lab::report::{keep_files, reports_dir};
use sluice_e2e::matrix::describe::{Cell, Limit};
use sluice_e2e::matrix::record::Matrix;
use sluice_e2e::matrix::run::{self, Selection};
use sluice_e2e::matrix::{axes, emulate, page, picture};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A node and its pods as each primary CNI leaves them, the real agent and plugin, real packets.
#[derive(Parser)]
#[command(name = "sluice-matrix", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run cells; writes target/reports/matrix.json, and of all cells docs/support-matrix.md and .svg
    Run {
        /// Only this cell; may be given more than once
        #[arg(long, value_name = "NAME")]
        cell: Vec<String>,
        /// Only this way of running it, like `base` or `probes=source`; may be given more than once
        #[arg(long, value_name = "WAY")]
        way: Vec<String>,
        /// Where the descriptions are
        #[arg(long, default_value = "e2e/topologies")]
        topologies: PathBuf,
        /// Where the page and the picture go, when every cell was run in every way
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
    },
    /// List the cells, and the ways in which each is run
    List {
        /// Where the descriptions are
        #[arg(long, default_value = "e2e/topologies")]
        topologies: PathBuf,
    },
    /// Be a primary CNI's plugin (used by the cells themselves)
    #[command(hide = true)]
    Emulate {
        /// What to do
        file: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().what {
        What::Emulate { file } => Ok(emulate::main(&file)),
        What::List { topologies } => {
            for cell in Cell::read_all(&topologies.join("cells"))? {
                println!("{:<24} {}", cell.cell, cell.about);
                let ways: Vec<_> =
                    axes::variants(&cell.axes).into_iter().map(|variant| variant.name).collect();
                println!("{:<24} {}", "", ways.join(" "));
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Run { cell, way, topologies, docs } => all(&cell, way, &topologies, &docs),
    }
}

fn all(names: &[String], ways: Vec<String>, topologies: &Path, docs: &Path) -> Result<ExitCode> {
    let limits = Limit::read_all(&topologies.join("limits.yaml"))?;
    let mut cells = Cell::read_all(&topologies.join("cells"))?;
    for name in names {
        ensure!(
            cells.iter().any(|cell| cell.cell == *name),
            "no cell {name}: `sluice-matrix list` lists them"
        );
    }
    let known: Vec<String> = cells.iter().map(|cell| cell.cell.clone()).collect();
    cells.retain(|cell| names.is_empty() || names.contains(&cell.cell));
    let outer = outer::enter()?;
    let begun = Instant::now();
    // One way of a cell says nothing of the cell, so it has a report of its own.
    let path = reports_dir()?.join(if ways.is_empty() { "matrix.json" } else { "matrix-ways.json" });
    let mut matrix =
        if names.is_empty() || !ways.is_empty() { Matrix::default() } else { earlier(&path, &known) };
    let whole_cells = ways.is_empty();
    let selection = Selection { ways };
    let mut ok = true;
    for cell in &cells {
        println!("{}: {}", cell.cell, cell.about);
        let record = run::cell(&outer, cell, &limits, &selection);
        ok &= record.ok;
        matrix.put(record);
        std::fs::write(&path, serde_json::to_vec_pretty(&matrix)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    println!("{}", path.display());
    if whole_cells && matrix.cells.len() == known.len() {
        std::fs::write(docs.join("support-matrix.md"), page::markdown(&matrix, &setting()?))?;
        std::fs::write(docs.join("support-matrix.svg"), picture::svg(&matrix))?;
    }
    if !ok {
        println!("the lab's files are in {}", keep_files("matrix", outer.dir())?.display());
    }
    println!(
        "{} cells, {:.0} s: {}",
        cells.len(),
        begun.elapsed().as_secs_f32(),
        if ok { "ok" } else { "FAILED" }
    );
    outer.exit(i32::from(!ok))
}

/// What earlier runs said of the cells that there still are: one cell's run changes one cell of the page.
fn earlier(path: &Path, known: &[String]) -> Matrix {
    let read = || -> Result<Matrix> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let mut matrix = read().unwrap_or_default();
    matrix.cells.retain(|record| known.contains(&record.cell));
    matrix
}

/// On what it was run.
fn setting() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("Run on Linux {}, {}.", kernel.trim(), std::env::consts::ARCH))
}
