//! `docs/support-matrix.svg`: a row a cell, a column a check, a tile for what came of it over all runs.

use super::checks;
use super::record::{Matrix, Record};
use std::fmt::Write;

const TILE: usize = 26;
const NAMES: usize = 190;
const HEADS: usize = 92;
const MARGIN: usize = 16;

/// What a tile says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// It held in every run.
    Held,
    /// It held but for runs that have a reason.
    Limited,
    /// It failed somewhere.
    Failed,
    /// It was not looked at.
    Absent,
}

/// The picture's text.
#[must_use]
pub fn svg(matrix: &Matrix) -> String {
    let (columns, rows) = (checks::ALL.len(), matrix.cells.len());
    let width = MARGIN * 2 + NAMES + columns * TILE;
    let height = MARGIN * 2 + HEADS + rows * TILE + TILE * 2;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"ui-sans-serif, system-ui, sans-serif\" font-size=\"12\" role=\"img\" \
         aria-label=\"What held in which cell\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (column, check) in checks::ALL.iter().enumerate() {
        let (x, y) = (MARGIN + NAMES + column * TILE + TILE / 2, MARGIN + HEADS - 8);
        let _ = writeln!(
            picture,
            "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-55 {x} {y})\" fill=\"#334155\">{}</text>",
            check.name
        );
    }
    for (row, record) in matrix.cells.iter().enumerate() {
        let y = MARGIN + HEADS + row * TILE;
        let _ = writeln!(
            picture,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#0f172a\">{}</text>",
            MARGIN + NAMES - 10,
            y + TILE / 2 + 4,
            record.cell
        );
        for (column, check) in checks::ALL.iter().enumerate() {
            tile(&mut picture, MARGIN + NAMES + column * TILE, y, of(record, check.name));
        }
    }
    let y = MARGIN + HEADS + rows * TILE + TILE / 2;
    let legend = [
        (Tile::Held, "held in every run"),
        (Tile::Limited, "held, but for a known reason"),
        (Tile::Failed, "failed"),
        (Tile::Absent, "not looked at"),
    ];
    for (index, (kind, words)) in legend.into_iter().enumerate() {
        let x = MARGIN + index * 150;
        tile(&mut picture, x, y, kind);
        let _ = writeln!(
            picture,
            "<text x=\"{}\" y=\"{}\" fill=\"#334155\">{words}</text>",
            x + TILE,
            y + TILE / 2 + 4
        );
    }
    picture.push_str("</svg>\n");
    picture
}

fn tile(picture: &mut String, x: usize, y: usize, kind: Tile) {
    // Told apart by shape as well as by colour.
    let (fill, mark) = match kind {
        Tile::Held => ("#15803d", "✓"),
        Tile::Limited => ("#b45309", "◐"),
        Tile::Failed => ("#b91c1c", "✗"),
        Tile::Absent => ("#e2e8f0", ""),
    };
    let side = TILE - 4;
    let (middle, base) = (x + TILE / 2, y + TILE / 2 + 4);
    let _ = writeln!(
        picture,
        "<rect x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\" rx=\"3\" fill=\"{fill}\"/>\
         <text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\" fill=\"#ffffff\">{mark}</text>",
        x + 2,
        y + 2
    );
}

fn of(record: &Record, check: &str) -> Tile {
    let outcomes: Vec<_> =
        record.runs.iter().flat_map(|run| &run.checks).filter(|outcome| outcome.check == check).collect();
    if outcomes.is_empty() {
        Tile::Absent
    } else if outcomes.iter().any(|outcome| !outcome.ok) {
        Tile::Failed
    } else if outcomes.iter().any(|outcome| outcome.limit.is_some()) {
        Tile::Limited
    } else {
        Tile::Held
    }
}
