//! What containers said, as the runtime keeps it on the node's disk.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::SystemTime;

/// A line of a container's log.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was said.
    pub at: SystemTime,
    /// What.
    pub text: String,
}

/// Every line of a container's logs in a directory, in all of its lives.
///
/// # Errors
/// When the files cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Line>> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    // 0.log, 1.log, …, one for each restart.
    files.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        lines.extend(text.lines().filter_map(Line::parse));
    }
    Ok(lines)
}

impl Line {
    /// `TIME STREAM TAG TEXT`, as in `2026-01-01T00:00:00.5Z stdout F …` (CRI's log format).
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(4, ' ');
        let at: jiff::Timestamp = parts.next()?.parse().ok()?;
        Some(Self { at: at.into(), text: parts.nth(2)?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_s_log_line_is_read() {
        let line = Line::parse(r#"2026-01-01T00:00:00.5Z stdout F {"event": "add"}"#).unwrap();
        assert_eq!(line.text, r#"{"event": "add"}"#);
        let since = line.at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(since.subsec_millis(), 500);
        assert!(Line::parse("nonsense").is_none());
    }
}
