//! Making text that came from a draft safe to show.
//!
//! A draft may hold terminal escapes, and characters that reorder what a reader sees. Everything
//! that leaves this program for a screen, a log or a JSON reader goes through here; only
//! `show --raw` does not.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character is to be escaped: C0 but newline and tab, DEL, C1, and the bidirectional
/// controls (Unicode's `Bidi_Control` property).
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{061c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    }
}

/// Text for a person: unsafe characters as `\u{1b}`; newlines and tabs stay.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    replace(text, is_unsafe, |out, c| {
        let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
    })
}

/// Text for one line of a person's table: as [`text()`], and newlines and tabs as well.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    replace(
        text,
        |c| is_unsafe(c) || c == '\n' || c == '\t',
        |out, c| {
            let _ = match c {
                '\n' => write!(out, "\\n"),
                '\t' => write!(out, "\\t"),
                c => write!(out, "\\u{{{:x}}}", u32::from(c)),
            };
        },
    )
}

/// A JSON document on one line: unsafe characters as `\u001b`, line breaks and tabs as blanks.
///
/// In JSON all of C0 is escaped inside strings already. What is left of it stands between tokens,
/// in values that another program wrote, and a blank is as good there. DEL, C1 and the
/// bidirectional controls can stand only inside strings. So the document means the same.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    replace(
        document,
        |c| is_unsafe(c) || c == '\n' || c == '\t',
        |out, c| match c {
            '\r' | '\n' | '\t' => out.push(' '),
            // All of the unsafe characters lie in the basic plane: four digits are enough.
            c => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        },
    )
}

fn replace(
    text: &str,
    escaped: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if escaped(c) { write(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(text("a\tb\nc"), "a\tb\nc");
        assert_eq!(text("\u{1b}[31mred"), "\\u{1b}[31mred");
        assert_eq!(text("x\r\u{7f}\u{9b}\u{202e}y"), "x\\u{d}\\u{7f}\\u{9b}\\u{202e}y");
        assert_eq!(line("a\nb\tc\0"), "a\\nb\\tc\\u{0}");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_remains(raw in any::<String>()) {
            prop_assert!(!text(&raw).contains(is_unsafe));
            prop_assert!(!line(&raw).contains(|c: char| is_unsafe(c) || c == '\n'));
        }

        #[test]
        fn a_json_document_keeps_its_value(raw in "[\u{0}-\u{ff}\u{2000}-\u{2070}]*") {
            let document = serde_json::to_string(&raw).unwrap();
            let escaped = json(&document);
            prop_assert!(!escaped.contains(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), raw);
        }

        #[test]
        fn a_json_document_may_have_any_white_space(space in "[ \t\r\n]{1,4}") {
            let document = format!("{{{space}\"a\"{space}:{space}[1,{space}\"\u{9b}\"]{space}}}");
            let escaped = json(&document);
            prop_assert!(!escaped.contains(|c: char| c.is_control()));
            let value: serde_json::Value = serde_json::from_str(&escaped).unwrap();
            prop_assert_eq!(value, serde_json::json!({"a": [1, "\u{9b}"]}));
        }
    }
}
