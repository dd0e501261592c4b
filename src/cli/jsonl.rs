//! Drafts from a JSONL text, one JSON envelope per line.

use std::io::{self, BufRead, Read as _};

use draftq::{Draft, DraftMetadata, LibrarianError};

use super::failure::Failure;
use super::input::{cannot_read, not_utf8};

/// The buffer of a longer line is freed after the line, in bytes.
const KEPT_BUFFER: usize = 64 * 1024;

/// A line of a JSONL text that is not blank.
pub enum Line {
    Draft(Draft),
    Bad { number: usize, reason: String },
}

/// The lines of a JSONL text, one at a time.
pub struct Lines<'a, R> {
    reader: R,
    name: &'a str,
    defaults: &'a DraftMetadata,
    max_text_bytes: usize,
    /// Longest line in bytes. JSON writes a byte as six at most (\u0000); the rest is for
    /// metadata.
    longest: usize,
    number: usize,
    line: Vec<u8>,
}

impl<'a, R: BufRead> Lines<'a, R> {
    /// The lines of `reader`, which messages call `name`. Values that are
    /// absent from an envelope come from `defaults`.
    pub fn new(
        reader: R,
        name: &'a str,
        defaults: &'a DraftMetadata,
        max_text_bytes: usize,
    ) -> Self {
        let longest = max_text_bytes.saturating_mul(6).saturating_add(1024 * 1024);
        Self { reader, name, defaults, max_text_bytes, longest, number: 0, line: Vec::new() }
    }

    /// The next line that is not blank, or `None` at the end.
    fn read(&mut self) -> Result<Option<Line>, io::Error> {
        loop {
            self.line.clear();
            self.number += 1;
            let number = self.number;
            let limit = u64::try_from(self.longest).unwrap_or(u64::MAX);
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            if self.line.len() >= self.longest && self.line.last() != Some(&b'\n') {
                let reason = format!("it is longer than {} bytes", self.longest);
                self.reader.skip_until(b'\n')?;
                return Ok(Some(Line::Bad { number, reason }));
            }
            // Without the line break, so that an error does not name a second line.
            let line = self.line.trim_ascii_end();
            if line.is_empty() {
                continue;
            }
            let draft = self.parse(line);
            if self.line.capacity() > KEPT_BUFFER {
                self.line = Vec::new();
            }
            return Ok(Some(match draft {
                Ok(draft) => Line::Draft(draft),
                Err(reason) => Line::Bad { number, reason },
            }));
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Draft, String> {
        let line = str::from_utf8(line).map_err(|error| not_utf8(error.valid_up_to()))?;
        let draft = Draft::from_envelope(line, self.defaults).map_err(|error| error.to_string())?;
        match draft.check(self.max_text_bytes) {
            Ok(()) => Ok(draft),
            Err(LibrarianError::DraftRejected { reason, .. }) => Err(reason.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl<R: BufRead> Iterator for Lines<'_, R> {
    type Item = Result<Line, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map_err(|error| cannot_read(self.name, error)).transpose()
    }
}
