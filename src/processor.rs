//! The contract between a run and the judgement that is injected into it.

use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::outcome::Outcome;
use crate::state::DraftProcessingDecision;

/// Looks at one draft and decides where it goes.
///
/// A processor sees each draft **at least once**: if the runner or the machine dies between the
/// processor's work and the move, the draft is processed again. So what a processor does outside
/// the database should be harmless when done twice; the draft's id is a good key for that. What
/// it *returns* is stored exactly once, in the same transaction as the move.
pub trait DraftProcessor {
    /// Decide about one draft, which this run has claimed.
    ///
    /// # Errors
    ///
    /// An error means that no decision was reached. The draft stays in `processing` with the
    /// error on record and is tried again after recovery; the error's message is stored with the
    /// draft and must not hold its text.
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError>;

    /// Decide, and say more than the decision: a note, an output, a delay. The runner calls this
    /// one; the provided method asks [`process`](Self::process).
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
