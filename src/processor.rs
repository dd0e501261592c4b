//! The interface between a run and a processor.

use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::outcome::Outcome;
use crate::state::DraftProcessingDecision;
use crate::stop::StopSignal;

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

    /// As [`process_to_outcome`](Self::process_to_outcome), with a signal that the result is no
    /// longer wanted, because an operator took the draft from this runner. A processor that can stop
    /// its work overrides this; the provided method ignores the signal. What is returned after it is
    /// not stored as a decision.
    ///
    /// # Errors
    ///
    /// As for [`process`](Self::process).
    fn process_until(
        &mut self,
        draft: &Draft,
        stop: &StopSignal,
    ) -> Result<Outcome, LibrarianError> {
        let _ = stop;
        self.process_to_outcome(draft)
    }
}

impl<P: DraftProcessor + ?Sized> DraftProcessor for Box<P> {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        (**self).process(draft)
    }

    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        (**self).process_to_outcome(draft)
    }

    fn process_until(
        &mut self,
        draft: &Draft,
        stop: &StopSignal,
    ) -> Result<Outcome, LibrarianError> {
        (**self).process_until(draft, stop)
    }
}
