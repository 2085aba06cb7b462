//! The report in words.

use crate::visible::printable;
use sluice_shared::doctor::{ALL, Evidence, Finding, Report, Severity, Unseen};
use std::fmt::Write;

/// For people: what was found, the worst first, what was not looked at, and how it adds up.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    for found in &report.findings {
        finding(&mut out, found);
    }
    if !report.not_looked_at.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "not looked at:");
        for unseen in &report.not_looked_at {
            not_looked_at(&mut out, unseen);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "{}", summary(report));
    out
}

fn finding(out: &mut String, Finding { id, severity, what, evidence, why, fix }: &Finding) {
    let sign = match severity {
        Severity::Problem => '✗',
        Severity::Warning => '!',
        Severity::Note => '·',
    };
    let _ = writeln!(out, "{sign} {} {id}: {}", severity.as_str(), printable(what));
    for Evidence { place, line, value } in evidence {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        let _ = writeln!(out, "    seen  {}{line}: {}", printable(place), printable(value));
    }
    let _ = writeln!(out, "    why   {why}");
    let _ = writeln!(out, "    fix   {}\n", printable(fix));
}

fn not_looked_at(out: &mut String, Unseen { what, why, how, checks, .. }: &Unseen) {
    let _ = writeln!(out, "  {} ({})", printable(what), checks.join(", "));
    let _ = writeln!(out, "    why   {}", printable(why));
    let _ = writeln!(out, "    how   {}", printable(how));
}

/// `1 problem, 2 warnings; 3 things not looked at; 30 of 36 checks passed`
fn summary(report: &Report) -> String {
    let counts = [(Severity::Problem, "problem"), (Severity::Warning, "warning"), (Severity::Note, "note")]
        .map(|(severity, word)| match report.count(severity) {
            0 => None,
            1 => Some(format!("1 {word}")),
            many => Some(format!("{many} {word}s")),
        });
    let found = match counts.into_iter().flatten().collect::<Vec<_>>() {
        none if none.is_empty() => "nothing was found".to_owned(),
        some => some.join(", "),
    };
    let unseen = match report.not_looked_at.len() {
        0 => String::new(),
        1 => "; 1 thing not looked at".to_owned(),
        many => format!("; {many} things not looked at"),
    };
    format!("{found}{unseen}; {} of {} checks passed", report.passed.len(), ALL.len())
}
