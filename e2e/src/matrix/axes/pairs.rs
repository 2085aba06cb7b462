//! Few ways in which every two values of two axes come together.

use super::Value;

/// Where a value stands: its axis, and its place there.
type At = (usize, usize);

/// Ways that have every pair of values of two different axes between them. An axis that a way does not name is as in
/// the base. Always the same for the same axes.
#[must_use]
pub fn cover(axes: &[Vec<Value>]) -> Vec<Vec<Value>> {
    let mut open = pairs(axes);
    let mut ways = Vec::new();
    while let Some(first) = open.first().copied() {
        let way = grown(axes, &open, first);
        open.retain(|(one, other)| !(way.contains(one) && way.contains(other)));
        ways.push(way.into_iter().map(|(axis, place)| axes[axis][place].clone()).collect());
    }
    ways
}

fn pairs(axes: &[Vec<Value>]) -> Vec<(At, At)> {
    let all: Vec<At> = axes
        .iter()
        .enumerate()
        .flat_map(|(axis, values)| (0..values.len()).map(move |place| (axis, place)))
        .collect();
    let with_later = |one: &At| {
        let one = *one;
        all.iter().filter(move |other| other.0 > one.0).map(move |other| (one, *other)).collect::<Vec<_>>()
    };
    all.iter().flat_map(with_later).collect()
}

/// A way with this pair, and of every other axis the value, if any, that brings most open pairs.
fn grown(axes: &[Vec<Value>], open: &[(At, At)], (one, other): (At, At)) -> Vec<At> {
    let mut way = vec![one, other];
    for (axis, values) in axes.iter().enumerate() {
        if way.iter().any(|at| at.0 == axis) {
            continue;
        }
        let brings = |at: &At| {
            let is_new = |pair: &&(At, At)| {
                (pair.0 == *at && way.contains(&pair.1)) || (pair.1 == *at && way.contains(&pair.0))
            };
            open.iter().filter(is_new).count()
        };
        let candidates = (0..values.len()).map(|place| (axis, place));
        // The first of those that bring as many.
        let best = candidates.rev().max_by_key(brings);
        way.extend(best.filter(|at| brings(at) > 0));
    }
    way.sort_unstable();
    way
}
