//! Making text that came from a draft safe to show.
//!
//! A draft may hold terminal escapes, and characters that reorder what a reader sees. All text for
//! a screen, a log or a JSON reader passes through here; only `show --raw` does not.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character is escaped: control characters but newline and tab, bidirectional controls
/// (Unicode's `Bidi_Control` property), characters that are invisible, and the line and paragraph
/// separators. U+200C and U+200D join or separate letters in Persian and in emoji; they stay.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // Bidirectional controls.
        '\u{061c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => true,
        // Line and paragraph separator: many readers of lines split there.
        '\u{2028}' | '\u{2029}' => true,
        // Soft hyphen, Hangul fillers, Mongolian vowel separator, zero-width space, word joiner and
        // invisible operators, deprecated format controls, byte order mark, annotation marks.
        '\u{00ad}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{180e}'
        | '\u{200b}'
        | '\u{2060}'..='\u{2064}'
        | '\u{206a}'..='\u{206f}'
        | '\u{3164}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff9}'..='\u{fffb}' => true,
        // Tag characters: invisible ASCII.
        '\u{e0000}'..='\u{e007f}' => true,
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

/// Text for one line: as [`text()`], and newlines and tabs as `\n` and `\t`.
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

/// A JSON document on one line: unsafe characters as `\u001b` (above U+FFFF as a surrogate pair),
/// line breaks and tabs between tokens as blanks.
///
/// JSON strings cannot hold C0 characters, so those in the document are between tokens, where a
/// blank means the same. All other unsafe characters can only be inside strings. So the document
/// keeps its meaning.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    replace(
        document,
        |c| is_unsafe(c) || c == '\n' || c == '\t',
        |out, c| match c {
            '\r' | '\n' | '\t' => out.push(' '),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
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

    /// Each range of the contract, with the characters on both sides of it.
    #[test]
    fn the_set_is_exact() {
        let ranges = [
            (0x00, 0x08),
            (0x0b, 0x1f),
            (0x7f, 0x9f),
            (0xad, 0xad),
            (0x61c, 0x61c),
            (0x115f, 0x1160),
            (0x180e, 0x180e),
            (0x200b, 0x200b),
            (0x200e, 0x200f),
            (0x2028, 0x202e),
            (0x2060, 0x2064),
            (0x2066, 0x206f),
            (0x3164, 0x3164),
            (0xfeff, 0xfeff),
            (0xffa0, 0xffa0),
            (0xfff9, 0xfffb),
            (0xe0000, 0xe007f),
        ];
        for c in '\0'..=char::MAX {
            let code = u32::from(c);
            let expected = ranges.iter().any(|(first, last)| (*first..=*last).contains(&code));
            assert_eq!(is_unsafe(c), expected, "U+{code:04X}");
        }
        let persian_and_emoji = "\u{645}\u{6cc}\u{200c}\u{62e} \u{1f469}\u{200d}\u{1f680}";
        assert_eq!(line(persian_and_emoji), persian_and_emoji);
    }

    #[test]
    fn json_escapes_are_utf_16() {
        let document = "[\"\u{2028}\u{e0001}\u{feff}\"]";
        assert_eq!(json(document), r#"["\u2028\udb40\udc01\ufeff"]"#);
        assert_eq!(line("\u{e0001}\u{2028}"), r"\u{e0001}\u{2028}");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_remains(raw in any::<String>()) {
            prop_assert!(!text(&raw).contains(is_unsafe));
            prop_assert!(!line(&raw).contains(|c: char| is_unsafe(c) || c == '\n'));
        }

        #[test]
        fn a_json_document_keeps_its_value(raw in "[\u{0}-\u{ff}\u{2000}-\u{2070}\u{3164}\u{feff}\u{dfff0}-\u{e008f}]*") {
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
