//! Lines for people: on stderr, which runtimes keep when a plugin fails, and best effort in the agent's log.

use crate::agent;
use sluice_shared::cni::LogLevel;
use sluice_shared::wire::Verb;
use std::fmt::Display;
use std::fmt::Write as _;
use std::io::Write as _;

/// The longest line, in characters.
const MAX_LINE: usize = 4096;

/// Where lines go.
pub struct Log {
    /// The least important level that is written.
    pub level: LogLevel,
    /// The agent's socket, once it is known and as long as somebody answers there.
    pub agent: Option<String>,
    lines: Vec<(LogLevel, String)>,
}

impl Log {
    /// Until the netconf says otherwise: `info`, to stderr only.
    pub fn new() -> Self {
        Self { level: LogLevel::Info, agent: None, lines: Vec::new() }
    }

    /// What an operator should look at.
    pub fn warn(&mut self, line: impl Display) {
        self.line(LogLevel::Warn, line);
    }

    /// What was done, and why.
    pub fn debug(&mut self, line: impl Display) {
        self.line(LogLevel::Debug, line);
    }

    /// Hands the lines to the agent, which does not answer. Never waits; lines that cannot be sent are lost there,
    /// and are on stderr all the same.
    pub fn forward(self) {
        let Some(socket) = self.agent else { return };
        for (level, message) in self.lines {
            let level = level.as_str().to_owned();
            if agent::tell(&socket, &Verb::Log { level, message }).is_err() {
                return;
            }
        }
    }

    fn line(&mut self, level: LogLevel, line: impl Display) {
        if level <= self.level {
            let line = (level, one_line(&line.to_string()));
            // What is looked at again and again is said once.
            if self.lines.last() != Some(&line) {
                to_stderr(level, &line.1);
                self.lines.push(line);
            }
        }
    }
}

/// Writes a line that is one already. Unlike `eprintln!` it does not panic when nobody reads stderr.
pub fn to_stderr(level: LogLevel, line: &str) {
    let line = format!("sluice-cni: {}: {line}\n", level.as_str());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// One line, whatever was in it: foreign strings must not forge lines or drive a terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars().take(MAX_LINE) {
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            let _ = write!(line, "{}", c.escape_unicode());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(one_line("plain – ünïcode"), "plain – ünïcode");
        assert_eq!(one_line("a\nb\r\u{1b}[2J\u{0}"), "a\\u{a}b\\u{d}\\u{1b}[2J\\u{0}");
        assert_eq!(one_line("\u{202e}\u{2028}\u{85}"), "\\u{202e}\\u{2028}\\u{85}");
        assert_eq!(one_line(&"x".repeat(MAX_LINE + 1)).len(), MAX_LINE);
    }
}
