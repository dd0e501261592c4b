//! Messages on standard error.

use std::io::{self, Write as _};

/// Print one line, escaped: a path or a name in it may contain anything, also line breaks.
pub fn message(text: &str) {
    let mut line = draftq::escape_line(text).into_owned();
    line.push('\n');
    write_to_stderr(&line);
}

/// Write a text as it is.
pub fn write_to_stderr(text: &str) {
    // An error of standard error cannot be reported anywhere.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
