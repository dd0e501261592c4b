//! The crate's one error type.
//!
//! A message says what failed, on which path or id, and why. It never carries a draft's text:
//! neither `Display` nor `Debug` shows what a program wrote to its standard error, what a model
//! answered, or what a JSON parser quotes of its input.

mod draft_fault;
mod processor_error;
mod sources;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::hold::Hold;
use crate::id::DraftId;
use crate::state::DraftState;

pub use self::draft_fault::{DraftDamage, DraftRejection};
pub use self::processor_error::ProcessorError;
pub use self::sources::{DatabaseError, JsonFault};

/// Every error of this crate, and every error that a processor may return.
///
/// A processor makes its own errors with [`ProcessorError`]:
///
/// ```
/// use draftq::{Draft, DraftProcessingDecision, DraftProcessor, LibrarianError, ProcessorError};
///
/// struct AskModel;
///
/// fn ask(prompt: &str) -> Result<String, std::io::Error> {
/// #   let _ = prompt;
///     Err(std::io::ErrorKind::ConnectionRefused.into())
/// }
///
/// impl DraftProcessor for AskModel {
///     fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
///         let answer = ask(draft.raw_text()).map_err(|error| {
///             // Not the draft's fault: the draft is released, and no error is counted.
///             ProcessorError::new("model_unreachable", error.to_string()).uncharged()
///         })?;
///         match answer.as_str() {
///             "keep" => Ok(DraftProcessingDecision::Accepted),
///             "drop" => Ok(DraftProcessingDecision::Skipped),
///             // The draft may be to blame: the error counts towards its budget. The answer may
///             // quote the draft, so it is the detail, which is stored and not shown.
///             _ => Err(ProcessorError::new("model_answer", "the answer is neither keep nor drop")
///                 .with_detail(answer)
///                 .into()),
///         }
///     }
/// }
/// ```
///
/// An [`io::Error`] and a `serde_json::Error` become one with `?`.
#[derive(thiserror::Error)]
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
        /// The state that the draft was expected in.
        state: DraftState,
        /// The id.
        id: DraftId,
    },

    /// A draft with this id is in this state already. This crate does not return it: a second
    /// submit of a draft is no error. It exists for processors written for mimir-librarian.
    #[error("draft {id} is already in state {state}")]
    DraftAlreadyExists {
        /// The state it is in.
        state: DraftState,
        /// Its id.
        id: DraftId,
    },

    /// No draft has this id.
    #[error("no draft has the id {id}")]
    UnknownDraft {
        /// The id.
        id: DraftId,
    },

    /// A live runner holds the draft, so that an operator cannot move it.
    #[error(
        "draft {id} is held by runner {runner} (processor {processor}, process {pid}); wait until it has finished the draft, or end the runner"
    )]
    DraftHeld {
        /// The draft.
        id: DraftId,
        /// The runner: `runners.id`.
        runner: i64,
        /// The process id of the runner.
        pid: i64,
        /// The name of its processor.
        processor: String,
    },

    /// No live runner holds the draft, so that there is nothing to release.
    #[error("draft {id} is {state}, and no live runner holds it; a requeue moves such a draft")]
    DraftNotHeld {
        /// The draft.
        id: DraftId,
        /// The state that it is in.
        state: DraftState,
    },

    /// A hold is in force for the runner's processor, so that nothing was claimed.
    #[error("nothing was claimed: {hold}")]
    OnHold {
        /// The hold.
        hold: Box<Hold>,
    },

    /// A hold that cannot be set.
    #[error("the hold was not set: {what} {problem}")]
    InvalidHold {
        /// Which part of it is wrong.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// Something has happened to the draft since the operator saw it. Nothing was changed.
    #[error("draft {id} was changed in the meantime: it is {state} now; nothing was overwritten")]
    DraftChanged {
        /// The draft.
        id: DraftId,
        /// The state it is in now.
        state: DraftState,
    },

    /// An operator's decision that cannot be stored.
    #[error("{problem}")]
    InvalidDecision {
        /// What is wrong with it.
        problem: &'static str,
    },

    /// The store rejects this draft.
    #[error("draft {id} was rejected: {reason}")]
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

    /// The claim ended before its holder moved the draft: the draft was recovered, or moved by
    /// hand. The late move changed nothing.
    #[error(
        "the claim on draft {id} was lost: the draft was recovered or moved in the meantime, and the late move changed nothing"
    )]
    LostClaim {
        /// The draft that is no longer held.
        id: DraftId,
    },

    /// The runner's registration has ended: its lock file is gone, and another process recorded
    /// its end while it held no claim. Nothing was claimed; register again.
    #[error("runner {runner} counts as dead because its lock file is gone; register again")]
    RunnerEnded {
        /// The runner: `runners.id`.
        runner: i64,
    },

    /// A processor reached no decision. The draft stays in `processing`, with the error stored
    /// and no owner, and is tried again once the claim is stale.
    #[error(transparent)]
    Processor(#[from] ProcessorError),

    /// A part that the processor needs does not exist yet.
    #[error("not yet implemented: {component}")]
    NotYetImplemented {
        /// The missing part.
        component: &'static str,
    },

    /// A model could not be called. For processors; this crate calls none.
    #[error("the model could not be called: {message}")]
    LlmInvocationFailed {
        /// Why. It is stored with the draft and must not hold its text.
        message: String,
    },

    /// A model's answer is not the JSON that was asked for. For processors; this crate calls no
    /// model. Neither field is shown, because both may quote the draft.
    #[error("the model's answer is not valid JSON")]
    LlmNonJsonResponse {
        /// The beginning or the end of the answer.
        raw: String,
        /// What the JSON parser reported.
        parse_err: String,
    },

    /// A processor's validator has no clock. For processors written for mimir-librarian.
    #[error("the validator has no clock: {message}")]
    ValidationClock {
        /// Why.
        message: String,
    },

    /// A processor has used up its own retries.
    #[error("the retries are used up after {attempts} attempts")]
    RetryBudgetExhausted {
        /// The number of attempts.
        attempts: u32,
    },

    /// An input or output error without a path, for processors.
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

    /// The database, its directory or a file beside it could not be created.
    #[error("cannot create {}: {source}", .path.display())]
    CannotCreate {
        /// What was to be created.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// There is no database at this path, and the operation creates none.
    #[error("there is no database {}; name another with --db PATH, or submit a draft to create this one", .path.display())]
    NoDatabase {
        /// The path.
        path: PathBuf,
    },

    /// The store was opened read-only.
    #[error("cannot {doing}: the database {} was opened read-only", .path.display())]
    ReadOnlyStore {
        /// The database.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
    },

    /// The file at the path is no longer the one that the store has open. The file that is there
    /// now, if any, was not changed. Open the store again.
    #[error(
        "the database {} is no longer the file that was opened: it was removed or replaced; open it again", .path.display()
    )]
    FileReplaced {
        /// The database.
        path: PathBuf,
    },

    /// Another process has a file open that was at this path before. The file that is there now
    /// is not opened, because SQLite would apply the other file's -wal to it.
    #[error(
        "another process still has the previous file at {} open; waited {waited:?} for it; end it, and try again", .path.display()
    )]
    ReplacedFileInUse {
        /// The database.
        path: PathBuf,
        /// The longest time that the store waits.
        waited: Duration,
    },

    /// Other writers held the database for longer than the store waits.
    #[error("the database {} was busy for {waited:?}; try again", .path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// How long the call waited.
        waited: Duration,
    },

    /// The file is not a draftq database, or has the schema of another draftq. It was not
    /// changed.
    #[error("{} is not a database this draftq can use: {reason}", .path.display())]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },

    /// The database, its directory or a file beside it has a second name, another owner, or a mode
    /// that lets others write. It was not used.
    #[error("refusing {}: {problem}; {remedy}", .path.display())]
    Untrusted {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do, usually a command.
        remedy: String,
    },

    /// The file is a draftq database, and is damaged.
    #[error("the database {} is damaged: {reason}; keep the file and restore a backup", .path.display())]
    DamagedDatabase {
        /// The file.
        path: PathBuf,
        /// What SQLite or the row mapper reports.
        reason: String,
    },

    /// SQLite failed in another way.
    #[error("could not {doing} (database {}): {source}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
        /// What SQLite reports.
        source: DatabaseError,
    },

    /// The SQLite in this program is too old to share a database between writers.
    #[error(
        "this program was built with SQLite {found}; before {required} two writers can corrupt a database in WAL mode"
    )]
    SqliteTooOld {
        /// The version in this program.
        found: &'static str,
        /// The oldest version that is safe.
        required: &'static str,
    },
}

/// The kind of an error: who can do what about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input is not acceptable: correct it.
    BadInput,
    /// The draft or file that was named does not exist.
    NotFound,
    /// The processor failed; the draft is kept and tried again.
    Processor,
    /// The claim is no longer the caller's; continue with the next draft.
    LostClaim,
    /// The processor is on hold: wait for the end of the hold, or end it.
    OnHold,
    /// A file or directory cannot be created: check the path and its modes.
    CannotCreate,
    /// Storage failed: disk full, file damaged, input or output error.
    Storage,
    /// Other processes use the database: try again.
    Busy,
    /// The file belongs to another program or another version of draftq, or must not be trusted.
    ForeignDatabase,
}

impl LibrarianError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidDraftTransition { .. }
            | Self::DraftAlreadyExists { .. }
            | Self::DraftHeld { .. }
            | Self::DraftNotHeld { .. }
            | Self::InvalidHold { .. }
            | Self::DraftChanged { .. }
            | Self::InvalidDecision { .. }
            | Self::DraftRejected { .. }
            | Self::DraftJson(_)
            | Self::UnsupportedDraftSchema { .. }
            | Self::DraftIdMismatch { .. } => ErrorKind::BadInput,
            Self::DraftNotFound { .. } | Self::UnknownDraft { .. } | Self::NoDatabase { .. } => {
                ErrorKind::NotFound
            }
            Self::LostClaim { .. } | Self::RunnerEnded { .. } => ErrorKind::LostClaim,
            Self::OnHold { .. } => ErrorKind::OnHold,
            Self::Processor(_)
            | Self::NotYetImplemented { .. }
            | Self::LlmInvocationFailed { .. }
            | Self::LlmNonJsonResponse { .. }
            | Self::ValidationClock { .. }
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
    /// Only a [`ProcessorError`] can be [uncharged](ProcessorError::uncharged); the draft is then
    /// released and no error is counted. For all other errors this is `true`.
    #[must_use]
    pub fn is_charged(&self) -> bool {
        match self {
            Self::Processor(error) => error.is_charged(),
            _ => true,
        }
    }

    /// A short stable word for the error, as the database stores it in `last_error_class`.
    #[must_use]
    pub fn class(&self) -> &str {
        match self {
            Self::Processor(error) => error.class(),
            Self::NotYetImplemented { .. } => "not_implemented",
            Self::LlmInvocationFailed { .. } => "model",
            Self::LlmNonJsonResponse { .. } => "model_answer",
            Self::ValidationClock { .. } => "clock",
            Self::RetryBudgetExhausted { .. } => "retries_exhausted",
            Self::DraftIo(_) | Self::Io { .. } => "io",
            Self::DraftJson(_) => "json",
            Self::DamagedDraft { .. } => "damaged",
            _ => "processor",
        }
    }
}

/// Shows the message alone: the fields of some variants may quote a draft.
impl fmt::Debug for LibrarianError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibrarianError")
            .field("kind", &self.kind())
            .field("class", &self.class())
            .field("message", &format_args!("{self}"))
            .finish()
    }
}

/// For `?` in a processor, as in mimir-librarian.
impl From<serde_json::Error> for LibrarianError {
    fn from(error: serde_json::Error) -> Self {
        Self::DraftJson(JsonFault::of(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_neither_printed_nor_debugged() {
        let error = ProcessorError::new("exit", "exit status 3").with_detail("canary");
        let error = LibrarianError::from(error);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(error.class(), "exit");
        assert_eq!(error.kind(), ErrorKind::Processor);
    }

    #[test]
    fn a_models_answer_is_not_shown() {
        let (raw, parse_err) = ("canary".to_owned(), "canary".to_owned());
        let error = LibrarianError::LlmNonJsonResponse { raw, parse_err };
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(error.kind(), ErrorKind::Processor);
    }

    #[test]
    fn an_error_is_charged_unless_it_says_otherwise() {
        let error = ProcessorError::new("exit", "exit status 3");
        assert!(error.is_charged());
        assert!(LibrarianError::from(error.clone()).is_charged());
        assert!(LibrarianError::NotYetImplemented { component: "x" }.is_charged());
        let error = error.uncharged().with_detail("why");
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
