//! The interface between a run and a processor.

use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::outcome::Outcome;
use crate::state::DraftProcessingDecision;

/// Decides about one draft at a time.
///
/// A processor is called for each draft **at least once**: if the runner or the machine dies
/// between the processor's work and the move, the draft is processed again. So the processor's
/// effects outside the database should be idempotent; the draft's id is a good key for that. What
/// it *returns* is stored exactly once, in the transaction that moves the draft.
pub trait DraftProcessor {
    /// Decide about one draft that this run has claimed.
    ///
    /// # Errors
    ///
    /// An error means that no decision was reached. The draft stays in `processing` with the error
    /// stored, and is tried again after recovery. The error's message is stored with the draft and
    /// must not hold its text.
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError>;

    /// Decide, and return more than the decision: a note, an output, a delay. The runner calls this
    /// method; the provided one calls [`process`](Self::process).
    ///
    /// # Errors
    ///
    /// As for [`process`](Self::process).
    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        self.process(draft).map(Outcome::from)
    }
}

impl<P: DraftProcessor + ?Sized> DraftProcessor for Box<P> {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        (**self).process(draft)
    }

    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        (**self).process_to_outcome(draft)
    }
}
