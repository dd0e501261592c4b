//! A processor's decision, with its note, output, usage and delays.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::LibrarianError;
use crate::state::DraftProcessingDecision;

/// The longest delay of a deferral, and the longest hold that a processor can ask for: 30 days. Longer ones are
/// shortened to this. A later due time can only come from a wrong clock.
pub const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A processor's decision, with its note, output, usage and delays. `Debug` shows lengths, not
/// contents.
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
    /// A decision alone.
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
        // serde_json does not check a raw value, and the stored output must be JSON to every
        // reader.
        serde_json::from_str::<serde_json::Value>(&json)?;
        Ok(Self { output: Some(json), ..self })
    }

    /// With the cost of the work: the text of a JSON object of numbers, checked by the caller.
    #[must_use]
    pub(crate) fn with_usage(self, usage: &str) -> Self {
        Self { usage: Some(usage.to_owned()), ..self }
    }

    /// For a deferral: the draft is not claimed again before this delay has passed (at most
    /// [`MAX_DELAY`]).
    #[must_use]
    pub fn with_retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// The runners of this processor claim nothing for this time, whatever the decision, for example
    /// because of a rate limit: the outcome sets a [`Hold`](crate::Hold).
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

    /// The cost of the work as the text of a JSON object of numbers, if it is known.
    #[must_use]
    pub fn usage(&self) -> Option<&str> {
        self.usage.as_deref()
    }

    /// The delay before a deferred draft is claimed again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How long the runners of this processor claim nothing.
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
