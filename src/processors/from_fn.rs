//! A processor made from a function.

use std::fmt;

use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::outcome::Outcome;
use crate::processor::DraftProcessor;
use crate::state::DraftProcessingDecision;

/// A processor that calls this function for each draft. The function returns an [`Outcome`], or a
/// [`DraftProcessingDecision`] alone.
///
/// ```
/// use draftq::{DraftProcessingDecision, Outcome, from_fn};
///
/// let by_decision = from_fn(|draft| match draft.raw_text().trim() {
///     "" => Ok(DraftProcessingDecision::Skipped),
///     _ => Ok(DraftProcessingDecision::Accepted),
/// });
/// let by_outcome = from_fn(|draft| {
///     let words = draft.raw_text().split_whitespace().count();
///     Outcome::new(DraftProcessingDecision::Accepted).with_output(&words)
/// });
/// # let _ = (by_decision, by_outcome);
/// ```
pub fn from_fn<F, R>(function: F) -> FromFn<F>
where
    F: FnMut(&Draft) -> Result<R, LibrarianError>,
    R: Into<Outcome>,
{
    FromFn(function)
}

/// The processor that [`from_fn`] returns.
#[derive(Clone)]
pub struct FromFn<F>(F);

impl<F, R> DraftProcessor for FromFn<F>
where
    F: FnMut(&Draft) -> Result<R, LibrarianError>,
    R: Into<Outcome>,
{
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        self.process_to_outcome(draft).map(|outcome| outcome.decision())
    }

    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        (self.0)(draft).map(Into::into)
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}
