//! A processor that defers every draft, for a dry run.

use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::processor::DraftProcessor;
use crate::state::DraftProcessingDecision;

/// Defers every draft, so that a run changes nothing for good.
#[derive(Debug, Default)]
pub struct DeferredDraftProcessor;

impl DraftProcessor for DeferredDraftProcessor {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        Ok(DraftProcessingDecision::Deferred)
    }
}
