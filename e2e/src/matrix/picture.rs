//! `docs/support-matrix.svg`: a row a cell, a column a value of an axis, a tile for what came of it.

use super::describe::Plugins;
use super::page::sentence;
use super::results::{Met, Row, Table};
use std::fmt::Write;

const MARGIN: usize = 28;
/// For the last column's head, which leans to the right.
const RIGHT: usize = 44;
const TITLE: usize = 58;
const HEADS: usize = 128;
const NAMES: usize = 214;
const TILE: usize = 28;
const GAP: usize = 14;
const LINE: usize = 17;
/// Characters of a line of the notes.
const WIDE: usize = 126;

/// An axis's values, as columns: what is above them, the axis, and value and head of each.
type Group = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const GROUPS: [Group; 7] = [
    (
        "pod's addresses",
        "families",
        &[("dual", "dual stack"), ("v4", "IPv4"), ("v6", "IPv6"), ("v6-disabled", "IPv4, no IPv6")],
    ),
    ("backend", "backend", &[("nftables", "nftables"), ("iptables", "iptables")]),
    ("rp_filter", "rpFilter", &[("0", "0 (off)"), ("1", "1 (strict)"), ("2", "2 (loose)")]),
    (
        "probes",
        "probes",
        &[("auto", "auto"), ("snat", "snat"), ("cookie", "cookie"), ("source", "source"), ("none", "none")],
    ),
    ("bridge-nf", "bridgeNfCall", &[("1", "1"), ("0", "0")]),
    (
        "in the way",
        "fault",
        &[
            ("drops-link-local", "drops link-local"),
            ("bypasses-conntrack", "no conntrack"),
            ("admits-node-only", "admits node only"),
            ("refuses-rules", "refuses rules"),
        ],
    ),
    ("", "", &[("", "two at once")]),
];

/// What a tile says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tile {
    /// It held; as the cell is by itself, or varied to this.
    Held { base: bool },
    /// It held but for these reasons, counted from 1.
    Limited(Vec<usize>),
    /// It failed.
    Failed,
    /// It makes no difference here, or is not to be had.
    Absent,
}

/// The picture's text.
#[must_use]
pub fn svg(table: &Table<'_>) -> String {
    let notes: Vec<_> =
        table.reasons.iter().enumerate().map(|(index, reason)| note(index + 1, reason)).collect();
    let lines: usize = notes.iter().map(Vec::len).sum();
    let width = MARGIN * 2 + NAMES + columns().map(|(_, x, ..)| x + TILE).max().unwrap_or_default() + RIGHT;
    let top = MARGIN + TITLE + HEADS;
    let bottom = top + table.rows.len() * TILE;
    let height = bottom + MARGIN * 3 + lines * LINE + notes.len() * 4 + LINE;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"12\" \
         role=\"img\" aria-label=\"With which primary CNIs it works\">\n\
         <defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect width=\"6\" height=\"6\" fill=\"#f1f5f9\"/><rect width=\"2\" height=\"6\" fill=\"#cbd5e1\"/></pattern></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"10\" fill=\"#ffffff\"/>\n"
    );
    let (cells, ways, checks) = table.counts();
    text(
        &mut picture,
        (MARGIN, MARGIN + 14),
        "font-size=\"19\" font-weight=\"600\" fill=\"#0f172a\"",
        "Primary CNIs, cell by cell",
    );
    let counted = format!("{cells} cells, run in {ways} ways; {checks} checks held. {}", table.setting);
    text(&mut picture, (MARGIN, MARGIN + 36), "fill=\"#64748b\"", &counted);
    heads(&mut picture, top);
    for (index, row) in table.rows.iter().enumerate() {
        line(&mut picture, row, top + index * TILE, index % 2 == 0, width);
    }
    legend(&mut picture, bottom + MARGIN);
    let mut y = bottom + MARGIN * 2 + LINE + 8;
    for note in notes {
        for (index, words) in note.iter().enumerate() {
            let x = if index == 0 { MARGIN } else { MARGIN + 24 };
            text(&mut picture, (x, y), "fill=\"#334155\"", words);
            y += LINE;
        }
        y += 4;
    }
    picture.push_str("</svg>\n");
    picture
}

/// Axis, place from the left of the first tile, value, head.
fn columns() -> impl Iterator<Item = (&'static str, usize, &'static str, &'static str)> {
    GROUPS
        .iter()
        .scan(0, |x, (_, axis, values)| {
            let from = *x;
            *x += values.len() * TILE + GAP;
            let column = move |(index, (value, head)): (usize, &(&'static str, &'static str))| {
                (*axis, from + index * TILE, *value, *head)
            };
            Some(values.iter().enumerate().map(column))
        })
        .flatten()
}

fn heads(picture: &mut String, top: usize) {
    let left = MARGIN + NAMES;
    for (_, x, _, head) in columns() {
        let (x, y) = (left + x + TILE / 2 + 4, top - 34);
        let _ = writeln!(
            picture,
            "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-52 {x} {y})\" font-size=\"11.5\" fill=\"#334155\">{head}</text>"
        );
    }
    let mut x = left;
    for (name, _, values) in GROUPS {
        let wide = values.len() * TILE;
        let _ = writeln!(
            picture,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"3\" rx=\"1.5\" fill=\"#94a3b8\"/>",
            x + 2,
            top - 8,
            wide - 4
        );
        let style = "text-anchor=\"middle\" font-size=\"11\" font-weight=\"600\" fill=\"#64748b\"";
        text(picture, (x + wide / 2, top - 14), style, name);
        x += wide + GAP;
    }
}

fn line(picture: &mut String, row: &Row<'_>, y: usize, shaded: bool, width: usize) {
    if shaded {
        let _ = writeln!(
            picture,
            "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{TILE}\" rx=\"4\" fill=\"#f8fafc\"/>",
            MARGIN - 10,
            width - MARGIN * 2 + 20
        );
    }
    let base = y + TILE / 2 + 4;
    let _ = writeln!(
        picture,
        "<text x=\"{MARGIN}\" y=\"{base}\" font-weight=\"500\" fill=\"#0f172a\">{}<title>{}</title></text>",
        escaped(&row.cell.cell),
        escaped(&row.cell.about)
    );
    let kind = if row.cell.plugins == Plugins::Real { "real" } else { "emulated" };
    let style = "text-anchor=\"end\" font-size=\"10\" fill=\"#94a3b8\"";
    text(picture, (MARGIN + NAMES - 14, base), style, kind);
    let left = MARGIN + NAMES;
    if let Some(why) = row.not_run {
        let wide = width - MARGIN - left;
        let _ = writeln!(
            picture,
            "<rect x=\"{left}\" y=\"{}\" width=\"{wide}\" height=\"{}\" rx=\"4\" fill=\"url(#hatch)\"/>",
            y + 3,
            TILE - 6
        );
        text(picture, (left + 8, base), "font-size=\"11\" fill=\"#475569\"", &format!("not run here: {why}"));
        return;
    }
    for (axis, x, value, head) in columns() {
        let said = if axis.is_empty() { together(row) } else { of(row, axis, value) };
        let about = format!("{}, {head}", row.cell.cell);
        tile(picture, (left + x, y), &said, &about);
    }
}

/// What came of a value of an axis: of the way that is varied to it, or of the base that has it.
fn of(row: &Row<'_>, axis: &str, value: &str) -> Tile {
    let name = format!("{axis}={value}");
    let varied = row.ways.iter().find(|met| met.variant.name == name);
    let has =
        |met: &&Met<'_>| met.variant.values(&met.variant.probes).get(axis).is_some_and(|own| own == value);
    let base = row.ways.first().filter(has);
    varied
        .map(|met| came_of([met], false))
        .or_else(|| base.map(|met| came_of([met], true)))
        .unwrap_or(Tile::Absent)
}

/// What came of the ways that change two axes and more.
fn together(row: &Row<'_>) -> Tile {
    let several: Vec<_> = row.ways.iter().filter(|met| met.variant.name.contains(' ')).collect();
    if several.is_empty() { Tile::Absent } else { came_of(several, false) }
}

fn came_of<'a, 'b: 'a>(ways: impl IntoIterator<Item = &'a Met<'b>>, base: bool) -> Tile {
    let mut reasons = Vec::new();
    for met in ways {
        if !met.result.failed.is_empty() {
            return Tile::Failed;
        }
        reasons.extend(met.limits.iter().map(|(_, reason)| reason + 1));
    }
    reasons.sort_unstable();
    reasons.dedup();
    if reasons.is_empty() { Tile::Held { base } } else { Tile::Limited(reasons) }
}

/// Told apart by shape as well as by colour.
fn tile(picture: &mut String, (x, y): (usize, usize), tile: &Tile, about: &str) {
    let (fill, ink, mark, said) = match tile {
        Tile::Held { base: true } => {
            ("#15803d", "#ffffff", "✓".to_owned(), "holds, as it is by itself".to_owned())
        }
        Tile::Held { base: false } => ("#bbf7d0", "#166534", "✓".to_owned(), "holds".to_owned()),
        Tile::Limited(reasons) => {
            let numbers: Vec<_> = reasons.iter().map(usize::to_string).collect();
            let mark = if numbers.len() > 2 { "…".to_owned() } else { numbers.join(",") };
            ("#fde68a", "#78350f", mark, format!("cannot work in full: note {}", numbers.join(", ")))
        }
        Tile::Failed => ("#dc2626", "#ffffff", "✗".to_owned(), "fails".to_owned()),
        Tile::Absent => {
            let _ = writeln!(
                picture,
                "<circle cx=\"{}\" cy=\"{}\" r=\"1.5\" fill=\"#cbd5e1\"/>",
                x + TILE / 2,
                y + TILE / 2
            );
            return;
        }
    };
    let side = TILE - 6;
    let (middle, base) = (x + TILE / 2, y + TILE / 2 + 4);
    let _ = writeln!(
        picture,
        "<g><title>{}: {said}</title><rect x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\" rx=\"5\" fill=\"{fill}\"/>\
         <text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\" font-size=\"11\" font-weight=\"600\" fill=\"{ink}\">{mark}</text></g>",
        escaped(about),
        x + 3,
        y + 3
    );
}

fn legend(picture: &mut String, y: usize) {
    let kinds = [
        (Tile::Held { base: true }, "holds, as the cell is by itself", 224),
        (Tile::Held { base: false }, "holds, varied to this", 170),
        (Tile::Limited(vec![3]), "cannot work in full: the note", 216),
        (Tile::Failed, "fails", 76),
        (Tile::Absent, "no difference, or not possible", 220),
    ];
    let mut x = MARGIN;
    for (kind, words, wide) in kinds {
        tile(picture, (x, y), &kind, "what it means");
        text(picture, (x + TILE + 2, y + TILE / 2 + 4), "fill=\"#334155\"", words);
        x += wide;
    }
}

/// A reason and what to set, in lines.
fn note(number: usize, reason: &super::record::Reason) -> Vec<String> {
    let mut words = format!("{number}  {}", sentence(&reason.because));
    if !reason.instead.is_empty() {
        let _ = write!(words, ". Instead: {}", reason.instead.trim());
    }
    let words = words.replace('`', "");
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let last = lines.last_mut().filter(|line| line.chars().count() + word.chars().count() < WIDE);
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn text(picture: &mut String, (x, y): (usize, usize), style: &str, words: &str) {
    let _ = writeln!(picture, "<text x=\"{x}\" y=\"{y}\" {style}>{}</text>", escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
