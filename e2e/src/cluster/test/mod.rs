//! What `sluice-cluster test` proves: Sluice as a DaemonSet on a real Kubernetes, with pods that talk all the time,
//! captures that see every SYN, and an API server that counts every request.
//!
//! [`stage`] is what the scenarios share, [`scenario`] has them all, in order. [`lives`] and [`leaks`] are the judge of
//! a capture, [`audit`] that of the requests, [`sandboxes`] that of those that failed; all are pure.

pub mod audit;
pub mod container_log;
pub mod demo;
pub mod leaks;
pub mod lives;
pub mod manifests;
pub mod processes;
pub mod sandboxes;
pub mod scenario;
pub mod shapes;
pub mod stage;
pub mod wire;

use crate::cluster::node::flanneld::Backend;
use crate::lab::outer::Outer;
use crate::lab::report::{Report, keep_files};
use anyhow::{Result, bail};
use scenario::{ALL, Scenario};
use stage::Stage;

/// Runs the scenarios, all or those that are named, and with `keep` lets the cluster stand afterwards; says whether
/// everything held. The report is `target/reports/cluster.json`, or `cluster-flanneld.json` with the real flanneld as
/// primary CNI.
///
/// # Errors
/// When there is no such scenario, or the report cannot be written.
pub fn run(outer: &Outer, only: &[String], flanneld: Option<Backend>, keep: bool) -> Result<bool> {
    let chosen: Vec<&Scenario> = ALL
        .iter()
        .filter(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name))
        .collect();
    if let Some(unknown) = only.iter().find(|name| !ALL.iter().any(|scenario| scenario.name == **name)) {
        let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!("there is no scenario {unknown:?}; there are {}", names.join(", "));
    }
    let mut report = Report::new(if flanneld.is_some() { "cluster-flanneld" } else { "cluster" });
    report.step("Kubernetes: a control plane and two nodes");
    match Stage::set(outer, flanneld) {
        Ok(mut stage) => {
            play(&mut stage, &mut report, &chosen);
            if !report.passed() {
                println!("what was said is in {}", keep_files("cluster", &stage.evidence()?)?.display());
            }
            if keep {
                report.finish()?;
                stand();
            }
            report.check("the cluster goes, and leaves nothing behind", || stage.strike());
        }
        Err(why) => {
            report.check("the cluster comes up", || Err(why));
        }
    }
    report.finish()?;
    Ok(report.passed())
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
