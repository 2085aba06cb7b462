//! `docs/support-matrix.md`, from the descriptions and from what came of them.

use super::checks;
use super::describe::{Absence, Plugins};
use super::record::Reason;
use super::results::{Row, Table};
use std::collections::BTreeMap;
use std::fmt::Write;

const BEGIN: &str = "\
# Support matrix

Written by `make matrix` from what it saw; edit the descriptions in `e2e/topologies`, not this page.

Each cell is a node as one primary CNI leaves it, with the real agent, the real plugin behind the primary's own chain, a
stand-in for ztunnel, and real packets. *real*: the primary's own plugins attached the pods. *emulated*: a program of the lab
stood in the chain in the first plugin's place, and left addresses, gateways, neighbours, routes, rules, sysctls and MTU as the
primary's sources do; every other plugin of the chain was real.

![Primary CNIs, cell by cell](support-matrix.svg)

A green tile: every check held, dark as the cell is by itself, light varied to this. A number: all held but what a note of that
number explains, below and in [what cannot work](#what-cannot-work-and-what-to-set). A dot: it makes no difference there, or
is not possible. *Two at once* is every way that changes two axes together. The picture's sources say the same as titles.

";

const CHOSEN: &str = "
## How the ways were chosen

A cell is run as it is, and once for every other value of each axis that can make a difference there:

- *pod's addresses*, wherever the primary can give them: both families, one of them, and IPv4 with `disable_ipv6` set in the pod, on
  `lo` too. Cells of real plugins have the families of their own configuration.
- *backend*, *rp_filter* (on the node and in the pod, in all their devices; sysctls that the primary sets itself win, as they do in the
  field) and *probes*: in every cell.
- *bridge-nf* (`net.bridge.bridge-nf-call-iptables` and `-ip6tables`): where pods are on a bridge.
- *in the way*: where it is met in the field, and all of it in `kindnet`, the plainest cell. What a fault touches is the
  kubelet's door, so each is run with every strategy that opens one: what a note says to set instead was run too.

What two axes do together depends on rules in the pod, not on whose CNI it is. So every two values of two axes come together in two
cells, which differ the most in what packets pass: `calico-iptables` (routed, a /32, no address of the host's on the link) and
`aks-bridge` (bridged, and the pod's gateway is not the node). Three at once are not tried on purpose.
";

/// The page's text.
#[must_use]
pub fn markdown(table: &Table<'_>, absent: &[Absence]) -> String {
    let mut page = String::from(BEGIN);
    let (cells, ways, checks) = table.counts();
    let _ = writeln!(
        page,
        "{} {cells} cells, {ways} ways, {checks} checks held. When all were last run together, that was {} minutes of one way after \
         the other.\n",
        table.setting,
        table.seconds.div_ceil(60)
    );
    page.push_str(
        "| cell | what it is | plugins | ways | checks | what to set |\n|---|---|---|---|---|---|\n",
    );
    for row in &table.rows {
        line(&mut page, row);
    }
    reasons(&mut page, table);
    not_run(&mut page, table, absent);
    page.push_str(CHOSEN);
    page.push_str("\n## The checks\n\nEach in every way of every cell in which it can be made.\n\n| check | what holds |\n|---|---|\n");
    for check in checks::ALL {
        let _ = writeln!(page, "| `{}` | {} |", check.name, check.sentence);
    }
    page.push_str("\n## The cells\n");
    for row in &table.rows {
        section(&mut page, row);
    }
    page
}

fn line(page: &mut String, row: &Row<'_>) {
    let (held, limits, failed) = row.counts();
    let checks = match (row.not_run, limits, failed) {
        (Some(_), ..) => "not run here".to_owned(),
        (None, 0, 0) => format!("all {held} hold"),
        (None, _, 0) => format!("{held} hold, {limits} cannot"),
        (None, ..) => format!("{held} hold, {limits} cannot, **{failed} fail**"),
    };
    let advice = if row.cell.advice.is_empty() { "nothing" } else { one_line(&row.cell.advice) };
    let _ = writeln!(
        page,
        "| [{0}](#{0}) | {1} | {2} | {3} | {checks} | {advice} |",
        row.cell.cell,
        row.cell.about,
        kind(row),
        row.ways.len()
    );
}

fn reasons(page: &mut String, table: &Table<'_>) {
    page.push_str(
        "\n## What cannot work, and what to set\n\nEach of these checks was made, and failed. One that holds fails the cell, so that no \
         reason outlives its cause.\n",
    );
    for (index, reason) in table.reasons.iter().enumerate() {
        let mut met = BTreeMap::<&str, Vec<&str>>::new();
        for (row, way) in table.rows.iter().flat_map(|row| row.ways.iter().map(move |way| (row, way))) {
            if way.limits.iter().any(|(_, place)| *place == index) {
                met.entry(&row.cell.cell).or_default().push(&way.variant.name);
            }
        }
        note(page, index + 1, reason, &met, table.rows.len());
    }
}

fn note(page: &mut String, number: usize, reason: &Reason, met: &BTreeMap<&str, Vec<&str>>, cells: usize) {
    let _ = write!(page, "\n{number}. **{}.**", sentence(&reason.because));
    if !reason.instead.is_empty() {
        let _ = write!(page, " Instead: {}.", one_line(&reason.instead).trim_end_matches('.'));
    }
    let all: usize = met.values().map(Vec::len).sum();
    if met.len() * 2 > cells {
        let _ = writeln!(page, " Met in {} of {cells} cells, in {all} ways.", met.len());
    } else {
        let told = met.iter().map(|(cell, ways)| match ways.as_slice() {
            [one] => format!("{cell} at `{one}`"),
            more => format!("{cell} in {} ways", more.len()),
        });
        let _ = writeln!(page, " Met in {}.", told.collect::<Vec<_>>().join(", "));
    }
}

fn not_run(page: &mut String, table: &Table<'_>, absent: &[Absence]) {
    page.push_str("\n## Not run here\n\n| what | why | what stands for it |\n|---|---|---|\n");
    for row in &table.rows {
        if let Some(why) = row.not_run {
            let _ = writeln!(page, "| the cell {} | {why} | nothing |", row.cell.cell);
        }
    }
    for Absence { what, why, instead } in absent {
        let _ = writeln!(page, "| {} | {} | {} |", one_line(what), one_line(why), one_line(instead));
    }
}

fn section(page: &mut String, row: &Row<'_>) {
    let cell = row.cell;
    let _ = writeln!(
        page,
        "\n### {}\n\n{}. `{}/{}`",
        cell.cell, cell.about, cell.config.directory, cell.config.file
    );
    if !cell.found.is_empty() {
        let _ = writeln!(page, "\nFound in: {}.", cell.found.join(", "));
    }
    for (what, text) in [("Stands for", &cell.stands_for), ("What to set", &cell.advice)] {
        if !text.is_empty() {
            let _ = writeln!(page, "\n{what}: {}.", one_line(text).trim_end_matches('.'));
        }
    }
    if let Some(why) = row.not_run {
        let _ = writeln!(page, "\nNot run: {why}");
        return;
    }
    let named = |names: Vec<String>| names.join(", ");
    let of = |limited: bool| {
        let ways =
            row.ways.iter().filter(|met| met.result.failed.is_empty() && met.limits.is_empty() != limited);
        ways.map(|met| match met.limits.as_slice() {
            [] => format!("`{}`", met.variant.name),
            limits => {
                let notes: Vec<_> =
                    limits.iter().map(|(check, place)| format!("{check}, note {}", place + 1)).collect();
                format!("`{}` ({})", met.variant.name, notes.join("; "))
            }
        })
        .collect::<Vec<_>>()
    };
    let _ = writeln!(page, "\nHolds in full: {}.", named(of(false)));
    let limited = of(true);
    if !limited.is_empty() {
        let _ = writeln!(page, "\nHolds but for: {}.", named(limited));
    }
    for met in row.ways.iter().filter(|met| !met.result.failed.is_empty()) {
        let _ = writeln!(page, "\n**Fails**: `{}`: {}.", met.variant.name, met.result.failed.join(", "));
    }
}

fn kind(row: &Row<'_>) -> &'static str {
    if row.cell.plugins == Plugins::Real { "real" } else { "emulated" }
}

/// As a cell of a table holds it.
fn one_line(text: &str) -> &str {
    text.trim()
}

pub(super) fn sentence(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    // Names like eBPF stay as they are.
    if text.chars().nth(1).is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
