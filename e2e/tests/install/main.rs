//! The real `sluice-install` against whatever else writes to a node's configuration directory, and its leaving at any
//! moment. Evidence in `target/reports/install.json`. Needs root for a private mount namespace; touches no network.

mod antagonists;
mod leaving;
mod libcni;
mod node;
mod obstacles;
mod platforms;
mod surviving;
mod ways;

use anyhow::Result;
use sluice_e2e::lab::outer;
use sluice_e2e::lab::report::{Report, keep_files};
use std::path::Path;

/// A check: what should hold, and the look at it, in a directory of its own.
type Check = (&'static str, fn(&Path, &str) -> Result<String>);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if std::env::args().any(|word| word == "--list") {
        return Ok(());
    }
    let outer = outer::enter()?;
    let mut report = Report::new("install");
    let rooms: [(&str, &[Check]); 5] = [
        ("ways into the chain", &ways::CHECKS),
        ("others that write", &surviving::CHECKS),
        ("platforms and their ways", &platforms::CHECKS),
        ("a node that refuses", &obstacles::CHECKS),
        ("leaving", &leaving::CHECKS),
    ];
    for (room, checks) in rooms {
        report.step(room);
        for (number, (name, check)) in checks.iter().enumerate() {
            if words.iter().all(|word| name.contains(word.as_str())) {
                let dir = format!("{}{number}", &room[..room.find(' ').unwrap_or(room.len())]);
                report.check(name, || check(outer.dir(), &dir));
            }
        }
    }
    report.finish()?;
    let code = if report.passed() { 0 } else { 1 };
    if code != 0 {
        println!("the installer's logs are in {}", keep_files("install", outer.dir())?.display());
    }
    outer.exit(code)
}
