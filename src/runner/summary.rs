//! What a run did.

use serde::{Serialize, Serializer};
use tracing::Span;

use crate::error::LibrarianError;
use crate::state::DraftProcessingDecision;

/// One draft that a run moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DraftRunItem {
    /// The draft's id.
    pub id: String,
    /// What the processor decided.
    pub decision: DraftProcessingDecision,
    /// The state it reached.
    pub final_state: String,
}

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DraftRunSummary {
    /// Abandoned claims that went back to pending before the run looked for work.
    pub recovered_processing: usize,
    /// Drafts that were then pending and due: the run takes no others.
    pub pending_seen: usize,
    /// Drafts that the run claimed.
    pub claimed: usize,
    /// Drafts that the processor accepted.
    pub accepted: usize,
    /// Drafts that the processor skipped.
    pub skipped: usize,
    /// Drafts that the processor failed.
    pub failed: usize,
    /// Drafts that the processor quarantined.
    pub quarantined: usize,
    /// Drafts that the processor deferred.
    pub deferred: usize,
    /// Drafts that the run saw pending and another runner took.
    pub claim_misses: usize,
    /// Drafts about which the processor came to no decision.
    pub errors: usize,
    /// Drafts whose claim was taken back before the processor's decision could be stored.
    pub lost_claims: usize,
    /// Abandoned claims whose errors had reached the budget, and that went to `failed`.
    pub exhausted: usize,
    /// Drafts that were given back because the machine did not let the processor work; nothing
    /// was charged to them.
    pub released: usize,
    /// What became of each draft, in the order in which they were finished.
    pub items: Vec<DraftRunItem>,
    /// Decided drafts that are not among the items, because the runner was to list only so many.
    pub items_left_out: usize,
}

impl DraftRunSummary {
    /// Drafts that are dealt with, one way or the other.
    #[must_use]
    pub fn done(&self) -> usize {
        self.accepted
            + self.skipped
            + self.failed
            + self.quarantined
            + self.deferred
            + self.errors
            + self.lost_claims
            + self.released
    }

    /// Whether the run found anything to do.
    #[must_use]
    pub fn did_something(&self) -> bool {
        self.claimed + self.recovered_processing + self.exhausted > 0
    }

    pub(super) fn count(&mut self, decision: DraftProcessingDecision) {
        match decision {
            DraftProcessingDecision::Accepted => self.accepted += 1,
            DraftProcessingDecision::Skipped => self.skipped += 1,
            DraftProcessingDecision::Failed => self.failed += 1,
            DraftProcessingDecision::Quarantined => self.quarantined += 1,
            DraftProcessingDecision::Deferred => self.deferred += 1,
        }
    }
}

/// A run's summary, and what cut it short, if something did.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// What was done up to then.
    pub summary: DraftRunSummary,
    /// The error that ended the run early: the database's, or the processor's where the runner
    /// was told to stop at one. As JSON, its message.
    #[serde(serialize_with = "message")]
    pub stopped_by: Option<LibrarianError>,
}

fn message<S: Serializer>(
    error: &Option<LibrarianError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

impl RunReport {
    /// The summary, or the error that cut the run short.
    ///
    /// # Errors
    ///
    /// What [`stopped_by`](Self::stopped_by) holds.
    pub fn into_result(self) -> Result<DraftRunSummary, LibrarianError> {
        match self.stopped_by {
            Some(error) => Err(error),
            None => Ok(self.summary),
        }
    }
}

/// Record the counts in the run's span.
pub(super) fn record(span: &Span, summary: &DraftRunSummary) {
    for (name, count) in [
        ("recovered_processing", summary.recovered_processing),
        ("pending_seen", summary.pending_seen),
        ("claimed", summary.claimed),
        ("accepted", summary.accepted),
        ("skipped", summary.skipped),
        ("failed", summary.failed),
        ("quarantined", summary.quarantined),
        ("deferred", summary.deferred),
        ("claim_misses", summary.claim_misses),
    ] {
        span.record(name, u64::try_from(count).unwrap_or(u64::MAX));
    }
}
