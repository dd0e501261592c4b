//! Columns of a row, read one by one, so that a value that cannot be read hides no other.
//!
//! The schema refuses most wrong values, but it can be switched off, and a file can be damaged.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};

use crate::clock::from_unix_ms;
use crate::draft::Draft;
use crate::error::DraftDamage;
use crate::id::DraftId;
use crate::json::JsonText;
use crate::metadata::{DraftMetadata, DraftSourceSurface};
use crate::state::{DraftProcessingDecision, DraftState};

/// The columns of a [`Draft`]; `drafts` is the table's name or alias in the statement.
macro_rules! draft_columns {
    () => {
        "drafts.seq AS seq, drafts.id AS id, drafts.submitted_at AS submitted_at, \
         drafts.source_surface AS source_surface, drafts.source_agent AS source_agent, \
         drafts.source_project AS source_project, drafts.operator AS operator, \
         drafts.provenance_uri AS provenance_uri, drafts.context_tags AS context_tags"
    };
}
pub(super) use draft_columns;

/// A type that a column's value converts to. For the crate's public types this takes the place of
/// rusqlite's `FromSql`, which would become a part of their public interface.
pub(super) trait Column: Sized {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self>;
}

impl<T: FromSql> Column for T {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self> {
        T::column_result(value)
    }
}

impl Column for DraftId {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

impl Column for DraftState {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

impl Column for DraftProcessingDecision {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl Column for DraftSourceSurface {
    fn from_value(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

/// One column of a row.
pub(super) fn get<T: Column>(row: &Row<'_>, column: &str) -> Result<T, rusqlite::Error> {
    let index = row.as_ref().column_index(column)?;
    let value = row.get_ref(index)?;
    T::from_value(value).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, value.data_type(), Box::new(error))
    })
}

/// A row, and the names of those of its columns that could not be read.
pub(super) struct Columns<'a, 'r> {
    row: &'a Row<'r>,
    unreadable: Vec<&'static str>,
}

impl<'a, 'r> Columns<'a, 'r> {
    pub(super) fn of(row: &'a Row<'r>) -> Self {
        Self { row, unreadable: Vec::new() }
    }

    /// The columns that could not be read, in the order in which they were asked for.
    pub(super) fn into_unreadable(self) -> Vec<&'static str> {
        self.unreadable
    }

    /// A value; `None` for NULL, and if it cannot be read.
    pub(super) fn optional<T: Column>(&mut self, column: &'static str) -> Option<T> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Null) => None,
            _ => self.value(column),
        }
    }

    /// A value of a column that is never NULL; `None` if it cannot be read.
    pub(super) fn value<T: Column>(&mut self, column: &'static str) -> Option<T> {
        let value = get(self.row, column).ok();
        if value.is_none() {
            self.unreadable.push(column);
        }
        value
    }

    /// A number, or 0 if it cannot be read.
    pub(super) fn number<T: Column + Default>(&mut self, column: &'static str) -> T {
        self.value(column).unwrap_or_default()
    }

    /// Text; bytes that are not UTF-8 are replaced by U+FFFD.
    pub(super) fn text(&mut self, column: &'static str) -> Option<String> {
        self.text_start(column, usize::MAX)
    }

    /// The first `most` bytes of a text, with an ellipsis if there are more.
    pub(super) fn text_start(&mut self, column: &'static str, most: usize) -> Option<String> {
        let (bytes, is_text) = match self.row.get_ref(column) {
            Ok(ValueRef::Null) => return None,
            Ok(ValueRef::Text(bytes)) => (bytes, true),
            Ok(ValueRef::Blob(bytes)) => (bytes, false),
            _ => {
                self.unreadable.push(column);
                return None;
            }
        };
        let mut start = &bytes[..bytes.len().min(most)];
        if start.len() < bytes.len()
            && let Err(error) = str::from_utf8(start)
            && error.error_len().is_none()
        {
            // The cut went through a character.
            start = &start[..error.valid_up_to()];
        }
        if !is_text || str::from_utf8(start).is_err() {
            self.unreadable.push(column);
        }
        let mut text = String::from_utf8_lossy(start).into_owned();
        if start.len() < bytes.len() {
            text.push('…');
        }
        Some(text)
    }

    /// JSON, kept as it was written; `None` also if the text is not JSON.
    pub(super) fn json(&mut self, column: &'static str) -> Option<JsonText> {
        let json = JsonText::new(self.optional(column)?);
        if json.is_none() {
            self.unreadable.push(column);
        }
        json
    }

    /// Tags: a JSON array of strings.
    pub(super) fn tags(&mut self, column: &'static str) -> Vec<String> {
        let json: Option<String> = self.value(column);
        match json.as_deref() {
            None | Some("[]") => Vec::new(),
            Some(json) => serde_json::from_str(json).unwrap_or_else(|_| {
                self.unreadable.push(column);
                Vec::new()
            }),
        }
    }
}

/// The draft of a row that has [`draft_columns`] and `raw_text`.
///
/// # Errors
///
/// The damage, if the draft is not as it was submitted.
pub(super) fn draft_of(row: &Row<'_>) -> Result<Draft, DraftDamage> {
    let (draft, unreadable) = verified_draft_of(row)?;
    match unreadable.first() {
        Some(column) => Err(DraftDamage::Unreadable { column }),
        None => Ok(draft),
    }
}

/// As [`draft_of`], but tags and time, which are not part of the id, may be unreadable: then they
/// are empty and 0, and their columns are returned.
pub(super) fn verified_draft_of(row: &Row<'_>) -> Result<(Draft, Vec<&'static str>), DraftDamage> {
    let mut columns = Columns::of(row);
    let unreadable = |column| DraftDamage::Unreadable { column };
    let id: DraftId = columns.value("id").ok_or(unreadable("id"))?;
    let raw_text = match row.get_ref("raw_text") {
        // A missing row of the texts is NULL in a join.
        Ok(ValueRef::Null) => return Err(DraftDamage::NoText),
        _ => columns.value("raw_text").ok_or(unreadable("raw_text"))?,
    };
    let metadata = DraftMetadata {
        source_surface: columns.value("source_surface").ok_or(unreadable("source_surface"))?,
        source_agent: columns.optional("source_agent"),
        source_project: columns.optional("source_project"),
        operator: columns.optional("operator"),
        provenance_uri: columns.optional("provenance_uri"),
        context_tags: Vec::new(),
        submitted_at: from_unix_ms(0),
    };
    if let Some(column) = columns.unreadable.first() {
        return Err(DraftDamage::Unreadable { column });
    }
    let metadata = DraftMetadata {
        context_tags: columns.tags("context_tags"),
        submitted_at: from_unix_ms(columns.number("submitted_at")),
        ..metadata
    };
    Ok((Draft::stored(id, raw_text, metadata)?, columns.into_unreadable()))
}

/// A text that may be damaged. Bytes that are not UTF-8 are replaced.
pub(super) fn lossy_text(row: &Row<'_>, column: &str) -> Result<String, rusqlite::Error> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        _ => String::new(),
    })
}
