//! What a parser or SQLite reports, without their types.

use std::error::Error;
use std::fmt;

/// An error that SQLite reported. Its message names tables and constraints, never values.
pub struct DatabaseError(Box<dyn Error + Send + Sync>);

impl DatabaseError {
    /// An error of the database layer.
    pub(crate) fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseError").field(&format_args!("{}", self.0)).finish()
    }
}

impl Error for DatabaseError {}

/// Where a JSON text is wrong, and how. It does not hold the parser's own message, which quotes
/// the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonFault {
    what: &'static str,
    line: usize,
    column: usize,
}

impl JsonFault {
    pub(super) fn of(error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let what = match error.classify() {
            Category::Io => "it could not be read",
            Category::Syntax => "it is not well formed",
            Category::Data => "a key is missing, unknown, given twice or of the wrong type",
            Category::Eof => "it ends too early",
        };
        Self { what, line: error.line(), column: error.column() }
    }
}

impl fmt::Display for JsonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match (self.line, self.column) {
            (0, _) => Ok(()),
            (1, column) => write!(f, " (column {column})"),
            (line, column) => write!(f, " (line {line}, column {column})"),
        }
    }
}
