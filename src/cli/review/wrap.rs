//! Breaks lines to the width of the screen.

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

/// A cell of the screen shows at most this many bytes. More marks on one letter are counted only.
const MAX_GRAPHEME_BYTES: usize = 64;

const TAB_WIDTH: usize = 4;

/// Break an escaped text into lines of at most `width` columns: at its line breaks, at the last
/// blank that fits, or in a word that is longer than a line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    for line in text.split('\n') {
        wrap_line(line, width, &mut lines);
    }
    lines
}

fn wrap_line(line: &str, width: usize, lines: &mut Vec<String>) {
    let (mut current, mut columns) = (String::new(), 0);
    // The last place where the current line can be broken: bytes and columns before it.
    let mut blank: Option<(usize, usize)> = None;
    for grapheme in line.graphemes(true) {
        let shown = shown(grapheme, columns);
        let wide = shown.width();
        if columns + wide > width && columns > 0 {
            let rest = match blank {
                Some((bytes, before)) if bytes < current.len() => {
                    columns -= before;
                    current.split_off(bytes)
                }
                _ => {
                    columns = 0;
                    String::new()
                }
            };
            lines.push(current.trim_end().to_owned());
            (current, blank) = (rest, None);
        }
        current.push_str(&shown);
        columns += wide;
        if grapheme == " " || grapheme == "\t" {
            blank = Some((current.len(), columns));
        }
    }
    lines.push(current.trim_end().to_owned());
}

fn shown(grapheme: &str, columns: usize) -> String {
    if grapheme == "\t" {
        return " ".repeat(TAB_WIDTH - columns % TAB_WIDTH);
    }
    if grapheme.len() > MAX_GRAPHEME_BYTES {
        let mut characters = grapheme.chars();
        let first = characters.next().map(String::from).unwrap_or_default();
        return format!("{first}[+{} marks]", characters.count());
    }
    grapheme.to_owned()
}

/// The beginning of an escaped line that fits into `width` columns, with an ellipsis if it is cut.
pub fn cut(line: &str, width: usize) -> String {
    let mut fitting = String::new();
    let mut columns = 0;
    for grapheme in line.graphemes(true) {
        let shown = shown(grapheme, columns);
        let wide = shown.width();
        if columns + wide > width {
            while columns + 1 > width {
                let Some(last) = fitting.graphemes(true).next_back() else { return fitting };
                columns -= last.width();
                fitting.truncate(fitting.len() - last.len());
            }
            fitting.push('…');
            return fitting;
        }
        fitting.push_str(&shown);
        columns += wide;
    }
    fitting
}

/// The end of a line that fits into `width` columns.
pub fn tail(line: &str, width: usize) -> String {
    let mut columns = 0;
    let mut start = line.len();
    for (index, grapheme) in line.grapheme_indices(true).rev() {
        columns += grapheme.width();
        if columns > width {
            break;
        }
        start = index;
    }
    line[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_blanks_and_in_long_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("a\n\nb", 10), ["a", "", "b"]);
        assert_eq!(wrap("世界世界", 5), ["世界", "世界"]);
        assert_eq!(wrap("a\tb", 10), ["a   b"]);
        assert_eq!(wrap("", 10), [""]);
        assert_eq!(wrap("ab", 0), ["a", "b"]);
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        let text = "Grüße 世界 🌍 👩‍👩‍👧 word \u{301}\u{301} longer-than-a-line ".repeat(20);
        for width in 4..40 {
            for line in wrap(&text, width) {
                assert!(line.width() <= width, "{width}: {line}");
            }
            assert!(cut(&text, width).width() <= width);
            assert!(tail(&text, width).width() <= width);
        }
    }

    #[test]
    fn many_marks_on_a_letter_are_counted() {
        let text = format!("a{}b", "\u{301}".repeat(1000));
        assert_eq!(wrap(&text, 80), ["a[+1000 marks]b"]);
    }
}
