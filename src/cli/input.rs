//! Texts from files and from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use draftq::LibrarianError;

use super::failure::Failure;

pub fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| cannot_read(path, error))
}

/// The failure to read the input that messages call `name`.
pub fn cannot_read(name: impl Into<PathBuf>, source: io::Error) -> Failure {
    LibrarianError::Io { doing: "read", path: name.into(), source }.into()
}

/// Read a text, byte for byte, of at most `limit` bytes.
pub fn read_text(reader: impl Read, name: &str, limit: usize) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    // One byte more than the limit shows that there is more.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(&mut bytes).map_err(|error| cannot_read(name, error))?;
    if bytes.len() > limit {
        return Err(Failure::bad_input(format!(
            "{name} was not accepted: it has more than {limit} bytes; raise the limit with \
             --max-text-bytes"
        )));
    }
    utf8(bytes, name)
}

pub fn utf8(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let reason = not_utf8(error.utf8_error().valid_up_to());
        Failure::bad_input(format!("{name} was not accepted: {reason}"))
    })
}

/// Why bytes are not a text.
pub fn not_utf8(valid_up_to: usize) -> String {
    format!("it is not UTF-8 (the first bad byte is at offset {valid_up_to})")
}
