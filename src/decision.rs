//! An operator's decision: a person decides about a draft, and signs.

use std::fmt;

use crate::error::LibrarianError;
use crate::metadata::MAX_METADATA_BYTES;
use crate::state::{DraftProcessingDecision, DraftState};

/// The longest note, in bytes of UTF-8; as long as that of a processor.
const MAX_NOTE_BYTES: usize = 64 * 1024;

/// A person's decision about a draft, signed with a name. `Debug` does not show the note.
///
/// The name is a claim, as a name in a mail is, and not a proof.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorDecision {
    state: DraftState,
    by: String,
    note: Option<String>,
}

impl OperatorDecision {
    /// A decision, and the name of the person who decides.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::InvalidDecision`] for `Deferred`, which only a processor can decide, and
    /// for a name that is blank, holds a NUL, or is longer than
    /// [`MAX_METADATA_BYTES`](crate::MAX_METADATA_BYTES).
    pub fn new(
        decision: DraftProcessingDecision,
        by: impl Into<String>,
    ) -> Result<Self, LibrarianError> {
        if decision == DraftProcessingDecision::Deferred {
            return Err(invalid("only a processor can defer a draft; requeue it instead"));
        }
        let by = by.into();
        check_signature(&by)?;
        Ok(Self { state: decision.target_state(), by, note: None })
    }

    /// With a note for people, stored with the draft and in its history.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::InvalidDecision`] for a note that holds a NUL or is longer than 64 KiB.
    pub fn with_note(self, note: impl Into<String>) -> Result<Self, LibrarianError> {
        let note = note.into();
        check_note(&note)?;
        Ok(Self { note: Some(note), ..self })
    }

    /// The state that the draft moves to.
    #[must_use]
    pub fn state(&self) -> DraftState {
        self.state
    }

    /// The name of the person who decided.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.by
    }

    /// The note.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

impl fmt::Debug for OperatorDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorDecision")
            .field("state", &self.state)
            .field("by", &self.by)
            .field("note_bytes", &self.note.as_ref().map(String::len))
            .finish()
    }
}

/// Whether a name can sign a decision.
pub(crate) fn check_signature(by: &str) -> Result<(), LibrarianError> {
    if by.trim().is_empty() {
        return Err(invalid("a decision needs the name of the person who decides"));
    }
    if by.len() > MAX_METADATA_BYTES {
        return Err(invalid("the name of the person who decides is longer than 4096 bytes"));
    }
    if by.contains('\0') {
        return Err(invalid("the name of the person who decides holds a NUL"));
    }
    Ok(())
}

/// Whether a note can be stored.
pub(crate) fn check_note(note: &str) -> Result<(), LibrarianError> {
    if note.len() > MAX_NOTE_BYTES {
        return Err(invalid("the note is longer than 65536 bytes"));
    }
    if note.contains('\0') {
        return Err(invalid("the note holds a NUL"));
    }
    Ok(())
}

fn invalid(problem: &'static str) -> LibrarianError {
    LibrarianError::InvalidDecision { problem }
}
