//! What a processor decides, with everything that belongs to the decision.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::LibrarianError;
use crate::state::DraftProcessingDecision;

/// The longest that a draft can be deferred or a runner be held for: 30 days. What asks for more
/// gets this. A due time further ahead can only come from a clock that was wrong, and is not
/// waited for.
pub const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A decision with what belongs to it. `Debug` shows lengths, not contents.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    decision: DraftProcessingDecision,
    note: Option<String>,
    output: Option<String>,
    usage: Option<String>,
    retry_after: Option<Duration>,
    hold: Option<Duration>,
}

impl Outcome {
    /// No more than a decision.
    #[must_use]
    pub fn new(decision: DraftProcessingDecision) -> Self {
        Self { decision, note: None, output: None, usage: None, retry_after: None, hold: None }
    }

    /// With a note for people, stored with the draft.
    #[must_use]
    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// With an output for programs, stored with the draft as JSON.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftJson`] if the value cannot be written as JSON, or is nested deeper
    /// than 128 levels.
    pub fn with_output(self, output: &impl Serialize) -> Result<Self, LibrarianError> {
        let json = serde_json::to_string(output)?;
        // A raw value is written unseen, and what is stored must be JSON to every reader.
        serde_json::from_str::<serde_json::Value>(&json)?;
        Ok(Self { output: Some(json), ..self })
    }

    /// With what the work cost: the text of a JSON object of numbers, checked by the caller.
    #[must_use]
    pub(crate) fn with_usage(self, usage: &str) -> Self {
        Self { usage: Some(usage.to_owned()), ..self }
    }

    /// For a deferral: not to be claimed again before this long has passed (at most [`MAX_DELAY`]).
    #[must_use]
    pub fn with_retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// The runner claims nothing for this long, whatever the decision: a rate limit, say.
    #[must_use]
    pub fn with_hold(self, hold: Duration) -> Self {
        Self { hold: Some(hold), ..self }
    }

    /// The decision.
    #[must_use]
    pub fn decision(&self) -> DraftProcessingDecision {
        self.decision
    }

    /// The note, if there is one.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The output as JSON text, if there is one.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }

    /// What the work cost, as the text of a JSON object of numbers, if it is known.
    #[must_use]
    pub fn usage(&self) -> Option<&str> {
        self.usage.as_deref()
    }

    /// How long a deferred draft is to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How long the runner is to hold.
    #[must_use]
    pub fn hold(&self) -> Option<Duration> {
        self.hold
    }
}

impl From<DraftProcessingDecision> for Outcome {
    fn from(decision: DraftProcessingDecision) -> Self {
        Self::new(decision)
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("decision", &self.decision)
            .field("note_bytes", &self.note.as_ref().map(String::len))
            .field("output_bytes", &self.output.as_ref().map(String::len))
            .field("usage_bytes", &self.usage.as_ref().map(String::len))
            .field("retry_after", &self.retry_after)
            .field("hold", &self.hold)
            .finish()
    }
}
