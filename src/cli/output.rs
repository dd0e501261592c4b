//! The only writer to standard output.

use std::io::{self, Write as _};

use serde::Serialize;

use super::failure::Failure;

/// Results on standard output, as text or as JSON.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are printed as JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Print one JSON document on one line.
    pub fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        self.json_lines(std::slice::from_ref(value))
    }

    /// Print JSON Lines with one write.
    pub fn json_lines<T: Serialize>(self, values: &[T]) -> Result<(), Failure> {
        let mut lines = String::new();
        for value in values {
            lines.push_str(&draftq::escape_json(&serde_json::to_string(value)?));
            lines.push('\n');
        }
        self.bytes(lines.as_bytes())
    }

    /// Print lines for a person, escaped.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        let mut text = draftq::escape_text(text).into_owned();
        text.push('\n');
        self.bytes(text.as_bytes())
    }

    /// Print exactly these bytes.
    pub fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }
}
