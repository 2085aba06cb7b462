//! `docs/support-matrix.md`, from what came of the cells.

use super::checks;
use super::record::{Matrix, Record};
use std::fmt::Write;

/// The page's text. `setting` says on what it was run.
#[must_use]
pub fn markdown(matrix: &Matrix, setting: &str) -> String {
    let mut page = String::from(
        "# Support matrix\n\n\
         Written by `make matrix` from its results; edit the descriptions in `e2e/topologies`, not this page.\n\n\
         Each cell is a node as one primary CNI leaves it, with the real agent, the real plugin in the primary's own chain,\n\
         a stand-in for ztunnel, and real packets. *real*: the primary's own plugins attached the pods; *emulated*: the lab\n\
         did, leaving addresses, gateways, neighbours, routes, rules, sysctls and MTU as the primary's sources do, and every\n\
         other plugin of the chain was real. A limit is a check that was made and failed, for a reason that is known.\n\n\
         ![the matrix](support-matrix.svg)\n\n",
    );
    let _ = writeln!(page, "{setting}\n");
    page.push_str("| cell | what it is | plugins | runs | checks | limits |\n|---|---|---|---|---|---|\n");
    for record in &matrix.cells {
        row(&mut page, record);
    }
    page.push_str("\n## The checks\n\n| check | what holds |\n|---|---|\n");
    for check in checks::ALL {
        let _ = writeln!(page, "| `{}` | {} |", check.name, check.sentence);
    }
    page.push_str("\n## The cells\n");
    for record in &matrix.cells {
        section(&mut page, record);
    }
    page
}

fn row(page: &mut String, record: &Record) {
    let checks: usize = record.runs.iter().map(|run| run.checks.len()).sum();
    let limits: usize = record.limits().values().map(Vec::len).sum();
    let (runs, checks) = match &record.not_run {
        Some(_) => ("not run".to_owned(), "–".to_owned()),
        None => {
            let held = record.runs.iter().flat_map(|run| &run.checks);
            let held = held.filter(|outcome| outcome.ok && outcome.limit.is_none()).count();
            (record.runs.len().to_string(), format!("{held} of {checks}"))
        }
    };
    let _ = writeln!(
        page,
        "| [{0}](#{0}) | {1} | {2} | {runs} | {checks} | {limits} |",
        record.cell, record.about, record.plugins
    );
}

fn section(page: &mut String, record: &Record) {
    let _ = writeln!(page, "\n### {}\n\n{}. `{}`", record.cell, record.about, record.config);
    if !record.found.is_empty() {
        let _ = writeln!(page, "\nFound in: {}.", record.found.join(", "));
    }
    for (what, text) in [("Stands for", &record.stands_for), ("What to set", &record.advice)] {
        if !text.is_empty() {
            let _ = writeln!(page, "\n{what}: {}", text.trim());
        }
    }
    if let Some(why) = &record.not_run {
        let _ = writeln!(page, "\nNot run: {why}");
        return;
    }
    let ways: Vec<_> = record.runs.iter().map(|run| format!("`{}`", run.name)).collect();
    let _ = writeln!(page, "\nRun as: {}.", ways.join(", "));
    let limits = record.limits();
    if limits.is_empty() {
        page.push_str("\nNo limits.\n");
    }
    for (reason, met) in limits {
        let met: Vec<_> = met.iter().map(|(run, check)| format!("`{check}` at `{run}`")).collect();
        let _ = write!(page, "\n- {}: {}", met.join(", "), reason.because.trim());
        if !reason.instead.is_empty() {
            let _ = write!(page, " **Instead**: {}", reason.instead.trim());
        }
        page.push('\n');
    }
    for run in record.runs.iter().filter(|run| !run.ok) {
        for outcome in run.checks.iter().filter(|outcome| !outcome.ok) {
            let first = outcome.detail.lines().next().unwrap_or_default();
            let _ = writeln!(page, "\n- **Fails**: `{}` at `{}`: {first}", outcome.check, run.name);
        }
    }
}
