//! Text of others, made fit to be shown: in a log of lines, on a terminal.

/// The longest text shown, in characters.
const MAX_SHOWN: usize = 4096;

/// One line of visible characters: what could end a line, move the cursor or reverse the writing is escaped, so that text
/// of others cannot pass for lines of ours. What is too long is cut, and says so.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_SHOWN));
    for c in text.chars().take(MAX_SHOWN) {
        let hidden = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if hidden {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    if text.chars().nth(MAX_SHOWN).is_some() {
        line.push_str(&format!("… ({} bytes)", text.len()));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_others_cannot_pass_for_ours() {
        let line = printable("ok\n2026-01-01 ERROR forged\u{1b}[2J\r\u{202e}é\u{2028}");
        assert_eq!(line, "ok\\n2026-01-01 ERROR forged\\u{1b}[2J\\r\\u{202e}é\\u{2028}");
        let long = printable(&"é".repeat(MAX_SHOWN + 1));
        assert!(long.ends_with("é… (8194 bytes)"), "{}", &long[long.len() - 40..]);
    }
}
