//! The end of a program's standard error.

use crate::escape;

/// The largest tail of a program's standard error that is kept: 4 KiB, before and after escaping.
pub const STDERR_TAIL_BYTES: usize = 4 * 1024;

/// The last bytes of a stream, whatever its length.
#[derive(Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if let Some(excess) = self.bytes.len().checked_sub(STDERR_TAIL_BYTES)
            && excess > 0
        {
            self.bytes.drain(..excess);
            self.cut = true;
        }
    }

    /// The end of the stream as text that is safe to show, at most [`STDERR_TAIL_BYTES`] long and
    /// without white space around it. A character or an escape that the limit would cut is left
    /// out.
    pub(super) fn to_text(&self) -> String {
        let mut bytes = self.bytes.as_slice();
        if self.cut {
            let continued = bytes.iter().take(3).take_while(|&&byte| byte & 0xc0 == 0x80).count();
            bytes = bytes.get(continued..).unwrap_or_default();
        }
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        let mut length = 0;
        let mut start = text.len();
        for (at, c) in text.char_indices().rev() {
            length += escape::text(c.encode_utf8(&mut [0; 4])).len();
            if length > STDERR_TAIL_BYTES {
                break;
            }
            start = at;
        }
        escape::text(text.get(start..).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(bytes: &[u8]) -> String {
        let mut tail = Tail::default();
        bytes.chunks(1000).for_each(|chunk| tail.push(chunk));
        tail.to_text()
    }

    #[test]
    fn a_short_stream_is_kept_whole() {
        assert_eq!(tail_of(b""), "");
        assert_eq!(tail_of(b" \n oops\n at x \n"), "oops\n at x");
        assert_eq!(tail_of(b"\x1b[31mred\xff"), "\\u{1b}[31mred\u{fffd}");
    }

    #[test]
    fn of_a_long_stream_the_end_is_kept() {
        let stream = format!("{}end", "x".repeat(1_000_000));
        let text = tail_of(stream.as_bytes());
        assert_eq!(text.len(), STDERR_TAIL_BYTES);
        assert!(text.ends_with("xend"));
        let mut tail = Tail::default();
        tail.push(stream.as_bytes());
        assert_eq!(tail.bytes.len(), STDERR_TAIL_BYTES);
    }

    #[test]
    fn no_character_and_no_escape_is_cut_in_two() {
        for end in ["", "x", "xx", "xxx"] {
            let text = tail_of(format!("{}{end}", "😀".repeat(5000)).as_bytes());
            assert!(text.len() <= STDERR_TAIL_BYTES && text.len() > STDERR_TAIL_BYTES - 4);
            assert!(text.strip_suffix(end).unwrap().chars().all(|c| c == '😀'), "{end}");
        }
        let text = tail_of(format!("{}!", "\u{1b}".repeat(5000)).as_bytes());
        assert!(text.len() <= STDERR_TAIL_BYTES && text.len() > STDERR_TAIL_BYTES - 7);
        assert!(text.starts_with("\\u{1b}") && text.ends_with("\\u{1b}!"));
        // Every byte becomes a replacement character of three.
        assert!(tail_of(&[0xff; 9000]).len() <= STDERR_TAIL_BYTES);
    }
}
