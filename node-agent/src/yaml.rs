//! YAML that a person wrote: read into types, with every mistake at its line, column and field.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_path_to_error::Segment;
use std::fmt;

/// Something wrong in a YAML text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// From 1, when it is known.
    pub at: Option<Position>,
    /// The field: `pods[2].uid`; empty for the text as a whole.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

/// One step on the way from a text's root to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a sequence, from 0.
    Index(usize),
}

/// Reads a text.
///
/// # Errors
/// The first mistake.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(serde_norway::Deserializer::from_str(text))
        .map_err(|error| Mistake::from_serde(text, &[], &error))
}

/// Reads a value that was taken out of `text`, where it is found by `within`.
///
/// # Errors
/// The first mistake.
pub fn parse_value<T: DeserializeOwned>(
    text: &str,
    within: &[Step],
    value: serde_norway::Value,
) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(value).map_err(|error| Mistake::from_serde(text, within, &error))
}

/// Where the value at `path` begins; `None` when there is none, or the text cannot be read so far.
///
/// serde does not tell positions of what it could read, only of what it could not. So the text is read once more, by a
/// visitor that refuses exactly this value.
#[must_use]
pub fn locate(text: &str, path: &[Step]) -> Option<Position> {
    let error = Refuse { path }.deserialize(serde_norway::Deserializer::from_str(text)).err()?;
    error.to_string().contains(FOUND).then(|| error.location()).flatten().map(Position::from)
}

/// What [`Refuse`] says at the value that it was sent to.
const FOUND: &str = "the value that was looked for";

/// Walks to a value, and refuses it.
struct Refuse<'a> {
    path: &'a [Step],
}

impl Mistake {
    /// A mistake at a value that could be read.
    #[must_use]
    pub fn at_path(text: &str, path: &[Step], message: impl Into<String>) -> Self {
        Self { at: locate(text, path), field: render(path), message: message.into() }
    }

    fn from_serde(
        text: &str,
        within: &[Step],
        error: &serde_path_to_error::Error<serde_norway::Error>,
    ) -> Self {
        let path: Vec<Step> = within.iter().cloned().chain(steps(error.path())).collect();
        let located = if path.is_empty() { None } else { locate(text, &path) };
        let at = error.inner().location().map(Position::from);
        // Where serde has no position of the value itself, its position is that of what surrounds the value.
        let at = match (located, at) {
            (Some(located), Some(at)) if at > located => Some(at),
            (located, at) => located.or(at),
        };
        let field = render(&path);
        Self { at, message: bare_message(error.inner(), &field), field }
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((self.line, self.column).cmp(&(other.line, other.column)))
    }
}

impl From<serde_norway::Location> for Position {
    fn from(location: serde_norway::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "{at}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

fn steps(path: &serde_path_to_error::Path) -> impl Iterator<Item = Step> {
    path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

fn render(path: &[Step]) -> String {
    path.iter().fold(String::new(), |mut out, step| {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => out.extend([".", key]),
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
        out
    })
}

/// serde_norway puts the path before, and the position after, what it has to say; both are told apart here.
fn bare_message(error: &serde_norway::Error, field: &str) -> String {
    let mut message = error.to_string();
    if let Some(location) = error.location() {
        let suffix = format!(" at line {} column {}", location.line(), location.column());
        if let Some(bare) = message.strip_suffix(&suffix) {
            message.truncate(bare.len());
        }
    }
    match message.split_once(": ") {
        // A path from a sequence at the root begins with a dot there.
        Some((path, bare)) if field.starts_with(path.trim_start_matches('.')) => bare.to_owned(),
        _ => message,
    }
}

impl<'de> DeserializeSeed<'de> for Refuse<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Refuse<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.path.is_empty() { FOUND } else { "a mapping or a sequence" })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else { return Err(A::Error::custom(FOUND)) };
        while let Some(key) = map.next_key::<serde_norway::Value>()? {
            match step {
                Step::Key(wanted) if key.as_str() == Some(wanted) => {
                    map.next_value_seed(Refuse { path: rest })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else { return Err(A::Error::custom(FOUND)) };
        let mut index = 0;
        loop {
            let more = if *step == Step::Index(index) {
                seq.next_element_seed(Refuse { path: rest })?.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_shared::ids::PodUid;
    use std::collections::BTreeMap;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its mistakes matter")]
    struct Doc {
        pods: Vec<Pod>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its mistakes matter")]
    struct Pod {
        uid: PodUid,
        #[serde(default)]
        ports: Vec<u16>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    fn mistake(text: &str) -> String {
        parse::<Doc>(text).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_has_its_line_column_and_field() {
        for (text, expected) in [
            (
                "pods:\n- uid: a\n- uid: b\n  ports: [1, x]\n",
                "line 4, column 14: pods[1].ports[1]: invalid type: string \"x\", expected u16",
            ),
            ("pods:\n- uid: a\n  lables: {}\n", "line 3, column 11: pods[0].lables: unknown field"),
            (
                "pods:\n- ports: []\n  uid: ../x\n",
                "line 3, column 8: pods[0].uid: pod uid \"../x\" is not valid",
            ),
            ("pods:\n- uid: a\n  labels: {on: [5]}\n", "line 3, column 16: pods[0].labels.on: invalid type"),
            ("pods:\n- ports: []\n", "line 2, column 3: pods[0]: missing field `uid`"),
            ("pods:\n- uid: a\n  uid: b\n", "line 2, column 3: pods[0]: duplicate field `uid`"),
            ("pods: {\n", "line 1, column 7: pods: invalid type: map, expected a sequence"),
            ("pods: [{uid: a}\n", "line 2, column 1: "),
            ("pods: [}\n", "line 1, column 8: "),
            ("", "line 1, column 1: missing field `pods`"),
        ] {
            let said = mistake(text);
            assert!(said.starts_with(expected), "{text:?}:\n  {said}\ndoes not start with\n  {expected}");
        }
    }

    #[test]
    fn values_that_could_be_read_are_located_too() {
        let text = "a: 1\nb:\n  - x\n  - {c: [1, 2]}\n";
        let at = |path: &[Step]| locate(text, path).map(|at| (at.line, at.column));
        let key = |key: &str| Step::Key(key.to_owned());
        assert_eq!(at(&[key("a")]), Some((1, 4)));
        assert_eq!(at(&[key("b"), Step::Index(1), key("c"), Step::Index(1)]), Some((4, 13)));
        assert_eq!(at(&[key("nope")]), None);
        assert_eq!(at(&[key("a"), key("deeper")]), None);
        assert_eq!(at(&[key("b"), Step::Index(2)]), None);
    }
}
