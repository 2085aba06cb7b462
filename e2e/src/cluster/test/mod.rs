//! What `sluice-cluster test` proves: Sluice as a DaemonSet on a real Kubernetes, with pods that talk all the time,
//! captures that see every SYN, and an API server that counts every request.
//!
//! [`stage`] is what the scenarios share, [`scenario`] has them all, in order. [`lives`] and [`leaks`] are the judge of
//! a capture, [`audit`] that of the requests, [`patches`] that of what they wrote, [`sandboxes`] that of those that
//! failed, [`restarts`] that of the agents' own; all are pure. [`families`] takes IPv6 from the primary CNIs for a while.

pub mod audit;
pub mod container_log;
pub mod demo;
pub mod evidence;
pub mod families;
pub mod leaks;
pub mod lives;
pub mod manifests;
pub mod patches;
pub mod processes;
pub mod restarts;
pub mod sandboxes;
pub mod scenario;
pub mod shapes;
pub mod stage;
pub mod wire;

use super::DIR;
use crate::cluster::node::daemon::Daemon;
use crate::lab::outer::Outer;
use crate::lab::report::{Report, keep_files};
use anyhow::{Result, bail};
use evidence::Evidence;
use scenario::{ALL, Scenario};
use stage::Stage;
use std::path::{Path, PathBuf};

/// Runs the scenarios, all or those that are named, and with `keep` lets the cluster stand afterwards; says whether
/// everything held. The report is `target/reports/cluster.json`, or `cluster-flanneld.json` and the like with the
/// daemon of a real primary CNI.
///
/// # Errors
/// When there is no such scenario, or the report cannot be written.
pub fn run(outer: &Outer, only: &[String], daemon: Option<Daemon>, keep: bool) -> Result<bool> {
    let chosen: Vec<&Scenario> = ALL
        .iter()
        .filter(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name))
        .collect();
    if let Some(unknown) = only.iter().find(|name| !ALL.iter().any(|scenario| scenario.name == **name)) {
        let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!("there is no scenario {unknown:?}; there are {}", names.join(", "));
    }
    let name = daemon.map_or_else(|| "cluster".to_owned(), |daemon| format!("cluster-{}", daemon.name()));
    let mut report = Report::new(&name);
    report.step("Kubernetes: a control plane and two nodes");
    match Stage::set(outer, daemon) {
        Ok(mut stage) => {
            play(&mut stage, &mut report, &chosen);
            if !report.passed() {
                keep_evidence(&mut report, || stage.evidence());
            }
            if keep {
                report.finish()?;
                stand();
            }
            report.check("the cluster goes, and leaves nothing behind", || stage.strike());
        }
        Err(why) => {
            report.check("the cluster comes up", || Err(why));
            keep_evidence(&mut report, || evidence::of_what_is_left(Path::new(DIR)));
        }
    }
    report.finish()?;
    Ok(report.passed())
}

/// Keeps what a failure is to be understood by. What cannot be kept is a failure of its own, and none of the report.
fn keep_evidence(report: &mut Report, gather: impl FnOnce() -> Result<Evidence>) {
    let kept = || -> Result<(PathBuf, Vec<String>)> {
        let Evidence { dir, missing } = gather()?;
        Ok((keep_files("cluster", &dir)?, missing))
    };
    let kept = kept();
    if let Ok((dir, _)) = &kept {
        println!("what was said is in {}", dir.display());
    }
    if !matches!(&kept, Ok((_, missing)) if missing.is_empty()) {
        report.check("logs, captures and the audit log are kept", || {
            let (dir, missing) = kept?;
            bail!("{} has not all: {}", dir.display(), missing.join("; "))
        });
    }
}

/// Waits until a signal ends the private world, and this program with it.
fn stand() {
    println!("\nthe cluster stands; Ctrl-C ends it");
    loop {
        std::thread::park();
    }
}

fn play(stage: &mut Stage, report: &mut Report, chosen: &[&Scenario]) {
    for scenario in chosen {
        if !scenario.before_install
            && let Err(why) = stage.install()
        {
            report.check("Sluice is installed", || Err(why));
            return;
        }
        (scenario.run)(stage, report);
    }
}
