//! Results and descriptions together; and the page that is kept, which must be what they make.

use super::*;
use crate::matrix::describe::Absence;
use crate::matrix::record::{Outcome, Run};
use crate::matrix::{page, picture};
use std::path::{Path, PathBuf};

fn topologies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies")
}

fn described() -> (Vec<Cell>, Vec<Limit>) {
    let cells = Cell::read_all(&topologies().join("cells")).unwrap();
    (cells, Limit::read_all(&topologies().join("limits.yaml")).unwrap())
}

/// A report of one cell in which everything held, but for `failing` with this outcome.
fn reported(cell: &Cell, failing: &[(&str, &str, bool)]) -> Matrix {
    let mut record = Record::of(cell);
    for variant in variants(&cell.axes) {
        let reason = || Reason { because: "it is so".into(), instead: String::new() };
        let outcome =
            |check: &str, ok, limit| Outcome { check: check.into(), ok, limit, detail: String::new() };
        let mut checks = vec![outcome("stands", true, None), outcome("inbound", true, None)];
        for (_, check, known) in failing.iter().filter(|(way, ..)| *way == variant.name) {
            checks.push(outcome(check, *known, known.then(reason)));
        }
        let ok = checks.iter().all(|outcome| outcome.ok);
        let axes = variant.values(&variant.probes);
        record.ran(Run { name: variant.name, axes, ok, seconds: 1.0, checks });
    }
    let mut matrix = Matrix::default();
    matrix.put(record, false);
    matrix
}

fn kindnet() -> (Cell, Vec<Limit>) {
    let (cells, common) = described();
    (cells.into_iter().find(|cell| cell.cell == "kindnet").unwrap(), common)
}

#[test]
fn reasons_come_from_the_descriptions_and_are_counted_once() {
    let (cell, common) = kindnet();
    let failing = [
        ("probes=none", "probe", true),
        ("fault=drops-link-local", "probe", true),
        ("backend=iptables", "inbound", false),
    ];
    let matrix = reported(&cell, &failing);
    let results = Results::of(&matrix, "Here.".into());
    let cells = [cell];
    let table = Table::of(&cells, &common, &results).unwrap();
    assert_eq!(table.reasons.len(), common.len() + 1);
    let met = |name: &str| table.rows[0].ways.iter().find(|met| met.variant.name == name).unwrap();
    let reason = |name: &str| &table.reasons[met(name).limits[0].1];
    assert!(reason("probes=none").because.contains("the operator asked for no door"));
    assert!(reason("fault=drops-link-local").because.contains("never reach the host's own stack"));
    assert_eq!(met("backend=iptables").result.failed, ["inbound"]);
    let (held, limits, failed) = table.rows[0].counts();
    assert_eq!((limits, failed), (2, 1));
    assert_eq!(held, 2 * table.rows[0].ways.len());

    let page = page::markdown(&table, &[]);
    assert!(
        page.contains("**1 fail**") && page.contains("**Fails**: `backend=iptables`: inbound."),
        "{page}"
    );
    assert!(page.contains("`fault=drops-link-local` (probe, note 3)"), "{page}");
    let picture = picture::svg(&table);
    assert!(
        picture.contains("kindnet, iptables: fails")
            && picture.contains("kindnet, nftables: holds, as it is")
    );
    assert!(picture.contains("kindnet, drops link-local: cannot work in full: note 3"));
}

#[test]
fn what_was_not_run_is_not_shown() {
    let (mut cell, common) = kindnet();
    let mut matrix = reported(&cell, &[("fault=drops-link-local", "probe", true)]);
    let results = Results::of(&matrix, String::new());
    let said = |cell: &Cell, results: &Results| {
        Table::of(std::slice::from_ref(cell), &common, results).map(drop).map_err(|why| why.to_string())
    };
    assert_eq!(said(&cell, &results), Ok(()));
    let limits = std::mem::take(&mut cell.cannot);
    assert!(
        said(&cell, &results).unwrap_err().contains("a reason that the description does not give any more")
    );
    cell.cannot = limits;
    cell.axes.bridge_nf_call = vec![1, 0];
    assert_eq!(
        said(&cell, &results).unwrap_err(),
        "kindnet, bridgeNfCall=0: not run yet; `make matrix CELL=kindnet` runs it"
    );
    cell.axes.bridge_nf_call.clear();
    cell.axes.rp_filter.clear();
    matrix.keep_known(std::slice::from_ref(&cell));
    assert!(matrix.cells[0].runs.iter().all(|run| !run.name.contains("rpFilter")));
}

#[test]
fn a_way_that_was_run_again_takes_the_older_ones_place() {
    let (cell, _) = kindnet();
    let mut matrix = reported(&cell, &[("backend=iptables", "inbound", false)]);
    assert!(!matrix.ok);
    let all = matrix.cells[0].runs.len();
    let mut again = reported(&cell, &[]).cells.remove(0);
    again.runs.retain(|run| run.name == "backend=iptables");
    matrix.put(again, true);
    assert!(matrix.ok && matrix.cells[0].ok);
    assert_eq!(matrix.cells[0].runs.len(), all);
}

#[test]
fn a_run_of_some_ways_leaves_what_was_kept_of_the_others() {
    let (cell, _) = kindnet();
    let kept = Results::of(&reported(&cell, &[("backend=iptables", "inbound", false)]), "then".into());
    let mut some = reported(&cell, &[]);
    some.cells[0].runs.retain(|run| run.name == "backend=iptables");
    let now = Results::of(&some, "now".into()).over(kept.clone());
    assert_eq!(now.setting, "now");
    let (before, after) = (&kept.cells["kindnet"].ways, &now.cells["kindnet"].ways);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert_eq!(before["backend=iptables"].failed, ["inbound"]);
    assert!(after["backend=iptables"].failed.is_empty(), "the newer one counts");
    let none = Results::of(&Matrix::default(), "now".into()).over(kept);
    assert_eq!(none.cells["kindnet"].ways["backend=iptables"].failed, ["inbound"]);
}

/// `SLUICE_BLESS=1` writes them.
#[test]
fn page_and_picture_are_what_results_and_descriptions_make() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |name: &str| {
        std::fs::read_to_string(docs.join(name)).unwrap_or_else(|why| panic!("docs/{name}: {why}"))
    };
    let results: Results = serde_json::from_str(&read("support-matrix.json")).unwrap();
    let (cells, common) = described();
    let table = Table::of(&cells, &common, &results).unwrap_or_else(|why| panic!("{why}"));
    let absent = Absence::read_all(&topologies().join("not-run.yaml")).unwrap();
    for (name, made) in
        [("support-matrix.md", page::markdown(&table, &absent)), ("support-matrix.svg", picture::svg(&table))]
    {
        if std::env::var_os("SLUICE_BLESS").is_some() {
            std::fs::write(docs.join(name), &made).unwrap();
        }
        assert!(
            read(name) == made,
            "docs/{name} is not what is made: `target/debug/sluice-matrix page` makes it"
        );
    }
    assert!(results.cells.values().flat_map(|cell| cell.ways.values()).all(|way| way.failed.is_empty()));
}
