//! The one error type, and what may be asked of it.
//!
//! A message says what failed, on which path or id, and why. It never carries a draft's text:
//! what a processor wrote to its standard error, and what a JSON parser quotes of its input, are
//! kept out of `Display` and `Debug` both.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::id::DraftId;
use crate::state::DraftState;

/// Everything that can go wrong in this crate, and what a processor may answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibrarianError {
    /// The lifecycle has no such move for a runner.
    #[error("a draft cannot go from {from} to {to}")]
    InvalidDraftTransition {
        /// The state it was to leave.
        from: DraftState,
        /// The state it was to reach.
        to: DraftState,
    },

    /// No draft of this id is in this state.
    #[error("draft {id} is not in state {state}")]
    DraftNotFound {
        /// The state looked in.
        state: DraftState,
        /// The id looked for.
        id: DraftId,
    },

    /// No draft has this id, in whatever state.
    #[error("no draft has the id {id}")]
    UnknownDraft {
        /// The id looked for.
        id: DraftId,
    },

    /// The draft is being processed, and an operator's move would take it out of its runner's
    /// hands.
    #[error("draft {id} is in processing; wait until its run is through, or until it is recovered")]
    DraftInProcessing {
        /// The draft.
        id: DraftId,
    },

    /// The store does not take this draft.
    #[error("draft {id} was not taken: {reason}")]
    DraftRejected {
        /// The id that the draft would have had.
        id: DraftId,
        /// Why.
        reason: DraftRejection,
    },

    /// The stored draft cannot be read back as it was submitted. Other drafts are not affected.
    #[error("draft {id} is damaged: {damage}")]
    DamagedDraft {
        /// The draft.
        id: DraftId,
        /// What is wrong with it.
        damage: DraftDamage,
    },

    /// The claim was taken back while its holder worked: the owner seemed dead, somebody moved
    /// the draft by hand, or it went stale. Nothing was changed by the late move.
    #[error(
        "the claim on draft {id} was lost: the draft was taken back in the meantime, and the late move changed nothing"
    )]
    LostClaim {
        /// The draft that is no longer held.
        id: DraftId,
    },

    /// The runner's registration is over: its lock file was gone, and another took it for dead
    /// while it held no claim. Nothing was claimed; register again.
    #[error("runner {runner} was taken for dead because its lock file is gone; register again")]
    RunnerEnded {
        /// The runner: `runners.id`.
        runner: i64,
    },

    /// A processor could not come to a decision. The draft stays in `processing`, with the error
    /// on record and no owner, and is tried again once the claim is stale.
    #[error("{0}")]
    Processor(ProcessorError),

    /// A part that the processor needs is not there yet.
    #[error("not yet implemented: {component}")]
    NotYetImplemented {
        /// The missing part.
        component: &'static str,
    },

    /// A model could not be called. For processors; this crate calls none.
    #[error("the model could not be called: {message}")]
    LlmInvocationFailed {
        /// What the processor says of it. It is stored with the draft and must not hold its text.
        message: String,
    },

    /// A processor has used up its own retries.
    #[error("the retries are used up after {attempts} attempts")]
    RetryBudgetExhausted {
        /// How many attempts were made.
        attempts: u32,
    },

    /// An input or output error without a path, as processors meet them.
    #[error("input or output failed: {0}")]
    DraftIo(#[from] io::Error),

    /// Something is not the JSON it should be.
    #[error("bad JSON: {0}")]
    DraftJson(JsonFault),

    /// An envelope of another schema version.
    #[error("the envelope has schema version {version}; only version 2 is known")]
    UnsupportedDraftSchema {
        /// The version it declared.
        version: u32,
    },

    /// An envelope declares an id that its content does not have.
    #[error("the envelope declares the id {declared}, but its content has the id {computed}")]
    DraftIdMismatch {
        /// The declared id.
        declared: String,
        /// The id that follows from the content.
        computed: String,
    },

    /// A file or directory could not be read or written.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The database or its directory could not be made.
    #[error("cannot create {}: {source}", .path.display())]
    CannotCreate {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// There is no database at this path, and what was asked for makes none.
    #[error("there is no database {}; name another with --db PATH, or submit a draft to make this one", .path.display())]
    NoDatabase {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// The store was opened to read.
    #[error("cannot {doing}: the database {} was opened to read only", .path.display())]
    ReadOnlyStore {
        /// The database.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
    },

    /// The file at the path is no longer the one that the store has open. The file that is there
    /// now, if any, was not changed. Open the store again.
    #[error(
        "the database {} is not the file any more that was opened: it was removed, or another was put in its place; open it again", .path.display()
    )]
    FileReplaced {
        /// The database.
        path: PathBuf,
    },

    /// Another process has a file open that was at this path before. The file that is there now is
    /// not opened as long as the other's -wal would take effect on it.
    #[error(
        "a process still has the file open that was at {} before; waited {waited:?} for it; end it, and try again", .path.display()
    )]
    ReplacedFileInUse {
        /// The database.
        path: PathBuf,
        /// How long the store waits at the most.
        waited: Duration,
    },

    /// Other writers held the database for longer than the store waits.
    #[error("the database {} was busy for {waited:?}; try again", .path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// How long the call has waited.
        waited: Duration,
    },

    /// The file is not a draftq database, or one of a newer draftq. It was left as it is.
    #[error("{} is not a database this draftq can use: {reason}", .path.display())]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
        /// What it seems to be, and what to do.
        reason: String,
    },

    /// The database, its directory or something beside it has a second name, another owner, or
    /// lets others write, and was not used.
    #[error("refusing {}: {problem}; {remedy}", .path.display())]
    Untrusted {
        /// What is refused.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What puts it right, a command as a rule.
        remedy: String,
    },
    /// The file is a draftq database, and damaged.
    #[error("the database {} is damaged: {reason}; keep the file and restore a backup", .path.display())]
    DamagedDatabase {
        /// The file.
        path: PathBuf,
        /// What SQLite or the row mapper says.
        reason: String,
    },

    /// SQLite failed in another way.
    #[error("could not {doing} (database {}): {source}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
        /// What SQLite says. Its messages name tables and constraints, never values.
        source: rusqlite::Error,
    },

    /// The SQLite in this program is too old to share a database between writers.
    #[error(
        "this program was built with SQLite {found}; before {required} two writers can corrupt a database in WAL mode"
    )]
    SqliteTooOld {
        /// The version linked in.
        found: &'static str,
        /// The oldest version that will do.
        required: &'static str,
    },
}

/// What kind of trouble an error is: who can do what about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was handed in is not acceptable: mend the input.
    BadInput,
    /// What was named is not there.
    NotFound,
    /// The processor erred; the draft is kept and tried again.
    Processor,
    /// The claim is no longer the caller's; go on with the next draft.
    LostClaim,
    /// A file or directory cannot be made: check the path and its modes.
    CannotCreate,
    /// Storage failed: disk full, file damaged, input or output error.
    Storage,
    /// Others hold the database: try again.
    Busy,
    /// The file belongs to another program or a newer draftq.
    ForeignDatabase,
}

impl LibrarianError {
    /// What kind of trouble this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidDraftTransition { .. }
            | Self::DraftInProcessing { .. }
            | Self::DraftRejected { .. }
            | Self::DraftJson(_)
            | Self::UnsupportedDraftSchema { .. }
            | Self::DraftIdMismatch { .. } => ErrorKind::BadInput,
            Self::DraftNotFound { .. } | Self::UnknownDraft { .. } | Self::NoDatabase { .. } => {
                ErrorKind::NotFound
            }
            Self::LostClaim { .. } | Self::RunnerEnded { .. } => ErrorKind::LostClaim,
            Self::Processor(_)
            | Self::NotYetImplemented { .. }
            | Self::LlmInvocationFailed { .. }
            | Self::RetryBudgetExhausted { .. } => ErrorKind::Processor,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::CannotCreate { .. } => ErrorKind::CannotCreate,
            Self::Busy { .. } | Self::ReplacedFileInUse { .. } => ErrorKind::Busy,
            Self::ForeignDatabase { .. } | Self::Untrusted { .. } => ErrorKind::ForeignDatabase,
            Self::DraftIo(_)
            | Self::Io { .. }
            | Self::DamagedDraft { .. }
            | Self::DamagedDatabase { .. }
            | Self::Database { .. }
            | Self::ReadOnlyStore { .. }
            | Self::FileReplaced { .. }
            | Self::SqliteTooOld { .. } => ErrorKind::Storage,
        }
    }

    /// Whether the error is charged to the draft, that is, counted towards its error budget.
    ///
    /// Only a processor's error can be the fault of something else than the draft
    /// ([`ProcessorError::uncharged`]); the draft is then given back without an error being
    /// counted. For all other errors this is `true`.
    #[must_use]
    pub fn is_charged(&self) -> bool {
        match self {
            Self::Processor(error) => error.is_charged(),
            _ => true,
        }
    }

    /// A short stable word for the error, as the database keeps it in `last_error_class`.
    #[must_use]
    pub fn class(&self) -> &str {
        match self {
            Self::Processor(error) => error.class(),
            Self::NotYetImplemented { .. } => "not_implemented",
            Self::LlmInvocationFailed { .. } => "model",
            Self::RetryBudgetExhausted { .. } => "retries_exhausted",
            Self::DraftIo(_) | Self::Io { .. } => "io",
            Self::DraftJson(_) => "json",
            Self::DamagedDraft { .. } => "damaged",
            _ => "processor",
        }
    }
}

impl From<serde_json::Error> for LibrarianError {
    fn from(error: serde_json::Error) -> Self {
        Self::DraftJson(JsonFault::from(error))
    }
}

/// Where and how a JSON text is wrong. The parser's own message is left behind on purpose: it
/// quotes the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonFault {
    what: &'static str,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for JsonFault {
    fn from(error: serde_json::Error) -> Self {
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

/// Why a store does not take a draft.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftRejection {
    /// Nothing but white space.
    #[error("its text is empty or blank")]
    EmptyText,
    /// More text than the store takes.
    #[error("its text has {bytes} bytes, more than the limit of {limit}")]
    TextTooLong {
        /// Length of the text in bytes of UTF-8.
        bytes: usize,
        /// The store's limit in bytes.
        limit: usize,
    },
    /// A metadata field is too long.
    #[error("its {field} has {bytes} bytes, more than the limit of {limit}")]
    FieldTooLong {
        /// The field's name.
        field: &'static str,
        /// Its length in bytes of UTF-8.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A metadata field has a NUL character in it.
    #[error("its {field} contains a NUL character")]
    NulInField {
        /// The field's name.
        field: &'static str,
    },
    /// Too many tags.
    #[error("it has {tags} tags, more than the limit of {limit}")]
    TooManyTags {
        /// How many it has.
        tags: usize,
        /// The limit.
        limit: usize,
    },
}

/// What is wrong with a stored draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftDamage {
    /// The text, the surface, the agent, the project, the operator or the provenance is not what
    /// was submitted.
    #[error("its text or its provenance was altered after it was submitted (they give another id)")]
    Altered,
    /// The text is missing.
    #[error("its text is missing")]
    NoText,
    /// A column cannot be read.
    #[error("its column {column} cannot be read")]
    Unreadable {
        /// The column's name.
        column: &'static str,
    },
    /// The row breaks a rule of the schema, so that it cannot be changed.
    #[error("its row breaks a rule of the schema")]
    Row,
}

/// Why a processor came to no decision.
///
/// The class and the message are for everyone; the detail (such as the tail of a program's
/// standard error) may hold anything, is stored with the draft, and is shown by neither
/// `Display` nor `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProcessorError {
    class: &'static str,
    message: String,
    detail: Option<String>,
    charged: bool,
}

impl ProcessorError {
    /// An error of this class (a short stable word such as `exit`, `timeout` or `protocol`) with
    /// a message that does not hold the draft's text. It is charged to the draft.
    #[must_use]
    pub fn new(class: &'static str, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), detail: None, charged: true }
    }

    /// The same, but not the draft's fault: the machine lacks something (a process, a descriptor,
    /// memory, space), or what the processor needs is unavailable. The draft is given back without
    /// an error being counted.
    #[must_use]
    pub fn uncharged(self) -> Self {
        Self { charged: false, ..self }
    }

    /// The same with a detail that is stored but not shown; an empty one is none.
    #[must_use]
    pub fn with_detail(self, detail: String) -> Self {
        Self { detail: Some(detail).filter(|detail| !detail.is_empty()), ..self }
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// Whether the error is the draft's and counts towards its error budget; see
    /// [`uncharged`](Self::uncharged).
    #[must_use]
    pub fn is_charged(&self) -> bool {
        self.charged
    }

    /// The detail, if there is one.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl fmt::Display for ProcessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for ProcessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessorError")
            .field("class", &self.class)
            .field("message", &self.message)
            .field("detail_bytes", &self.detail.as_ref().map(String::len))
            .field("charged", &self.charged)
            .finish()
    }
}

impl From<ProcessorError> for LibrarianError {
    fn from(error: ProcessorError) -> Self {
        Self::Processor(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_neither_printed_nor_debugged() {
        let error = ProcessorError::new("exit", "exit status 3").with_detail("canary".into());
        let error = LibrarianError::from(error);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(error.class(), "exit");
        assert_eq!(error.kind(), ErrorKind::Processor);
    }

    #[test]
    fn an_error_is_charged_unless_it_says_otherwise() {
        let error = ProcessorError::new("exit", "exit status 3");
        assert!(error.is_charged());
        assert!(LibrarianError::from(error.clone()).is_charged());
        assert!(LibrarianError::NotYetImplemented { component: "x" }.is_charged());
        let error = error.uncharged().with_detail("why".into());
        assert!(!error.is_charged());
        assert!(!LibrarianError::from(error).is_charged());
    }

    #[test]
    fn a_json_fault_does_not_quote_its_input() {
        let error = serde_json::from_str::<u32>("\n \"canary\"").unwrap_err();
        assert!(error.to_string().contains("canary"), "the parser quotes: {error}");
        let error = LibrarianError::from(error);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("line 2"), "{shown}");
    }
}
