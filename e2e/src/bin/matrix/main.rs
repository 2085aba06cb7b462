//! `sluice-matrix`: proves cell by cell, on this machine, with which primary CNIs Sluice works. See `sluice_e2e::matrix`.

mod whole;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use sluice_e2e::lab::outer;
use sluice_e2e::lab::report::keep_files;
use sluice_e2e::matrix::describe::{Cell, Limit};
use sluice_e2e::matrix::run::{self, Selection};
use sluice_e2e::matrix::workers::Said;
use sluice_e2e::matrix::{axes, emulate};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A way takes some seconds. One that takes this long hangs, and would hang for ever.
const LONG: Duration = Duration::from_secs(300);

/// A node and its pods as each primary CNI leaves them, the real agent and plugin, real packets.
#[derive(Parser)]
#[command(name = "sluice-matrix", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run cells; writes target/reports/matrix.json, and of all cells docs/support-matrix.{json,md,svg}
    Run(Run),
    /// Write page and picture anew from docs/support-matrix.json and the descriptions
    Page {
        #[command(flatten)]
        places: Places,
    },
    /// List the cells, and the ways in which each is run
    List {
        #[command(flatten)]
        places: Places,
    },
    /// Run one cell, and say what came of it as lines of JSON (used by `run`)
    #[command(hide = true)]
    Cell {
        /// Which
        name: String,
        #[arg(long)]
        way: Vec<String>,
        #[command(flatten)]
        places: Places,
    },
    /// Be a primary CNI's plugin (used by the cells themselves)
    #[command(hide = true)]
    Emulate {
        /// What to do
        file: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// Only this cell; may be given more than once
    #[arg(long, value_name = "NAME")]
    cell: Vec<String>,
    /// Only this way of running it, like `base` or `probes=source`; may be given more than once
    #[arg(long, value_name = "WAY")]
    way: Vec<String>,
    /// How many cells at once; as many as there are processors if not given
    #[arg(long)]
    jobs: Option<usize>,
    #[command(flatten)]
    places: Places,
}

#[derive(Args)]
struct Places {
    /// Where the descriptions are
    #[arg(long, default_value = "e2e/topologies")]
    topologies: PathBuf,
    /// Where results, page and picture are kept
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

impl Places {
    fn cells(&self) -> Result<Vec<Cell>> {
        Ok(Cell::read_all(&self.topologies.join("cells"))?)
    }

    fn limits(&self) -> Result<Vec<Limit>> {
        Ok(Limit::read_all(&self.topologies.join("limits.yaml"))?)
    }
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().what {
        What::Emulate { file } => Ok(emulate::main(&file)),
        What::Cell { name, way, places } => one(&name, way, &places),
        What::Run(run) => whole::run(&run),
        What::Page { places } => whole::page(&places).map(|()| ExitCode::SUCCESS),
        What::List { places } => {
            for cell in places.cells()? {
                println!("{:<24} {}", cell.cell, cell.about);
                for way in axes::variants(&cell.axes) {
                    println!("{:<24}   {}", "", way.name);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn one(name: &str, ways: Vec<String>, places: &Places) -> Result<ExitCode> {
    let (limits, cells) = (places.limits()?, places.cells()?);
    let cell = cells.iter().find(|cell| cell.cell == name);
    let cell = cell.with_context(|| format!("no cell {name}: `sluice-matrix list` lists them"))?;
    let outer = outer::enter()?;
    let done = Arc::new(AtomicU64::new(0));
    watch(Arc::clone(&done));
    let mut ok = true;
    run::cell(&outer, cell, &limits, &Selection { ways }, |said| {
        done.fetch_add(1, Ordering::Relaxed);
        ok &= !matches!(&said, Said::Ran(run) if !run.ok);
        say(&said);
    });
    if !ok {
        let kept = keep_files(&format!("matrix-{name}"), outer.dir())?;
        say(&Said::Kept(kept.display().to_string()));
    }
    outer.exit(0)
}

fn say(said: &Said) {
    match serde_json::to_string(said) {
        Ok(line) => println!("{line}"),
        Err(why) => eprintln!("what came of a way cannot be said: {why}"),
    }
}

/// Ends the program, and the private world with it, when nothing more gets done.
fn watch(done: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut before = u64::MAX;
        loop {
            let now = done.load(Ordering::Relaxed);
            if now == before {
                eprintln!("way {} takes longer than {} s: given up", now + 1, LONG.as_secs());
                std::process::exit(3);
            }
            before = now;
            std::thread::sleep(LONG);
        }
    });
}

/// Fails unless every name is among those that there are.
fn known(what: &str, names: &[String], all: &[String]) -> Result<()> {
    for name in names {
        ensure!(all.contains(name), "no {what} {name:?}: `sluice-matrix list` lists cells and ways");
    }
    Ok(())
}
