//! What a run did.

use serde::ser::{Serialize, SerializeStruct as _, Serializer};
use tracing::Span;

use crate::error::LibrarianError;
use crate::hold::Hold;
use crate::id::DraftId;
use crate::state::{DraftProcessingDecision, DraftState};

/// One draft that a run moved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DraftRunItem {
    /// The draft's id.
    pub id: String,
    /// The processor's decision.
    pub decision: DraftProcessingDecision,
    /// The state that the draft reached.
    pub final_state: String,
}

/// One draft without a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DraftRunError {
    /// The draft's id.
    pub id: String,
    /// The error's class ([`LibrarianError::class`]).
    pub error: String,
    /// The state that the draft is in: `processing` as a rule.
    pub final_state: String,
    /// How many of the summary's `items` were finished before it.
    pub items_before: usize,
}

impl Serialize for DraftRunError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("DraftRunError", 3)?;
        fields.serialize_field("id", &self.id)?;
        fields.serialize_field("error", &self.error)?;
        fields.serialize_field("final_state", &self.final_state)?;
        fields.end()
    }
}

/// What one run did.
///
/// As JSON, `items` holds one object for each draft, in the order in which the drafts were
/// finished. A draft without a decision has the key `error` in place of `decision`:
///
/// ```json
/// [{"id": "796d3ce84fb276e8", "decision": "accepted", "final_state": "accepted"},
///  {"id": "fc1231b7765044dd", "error": "timeout", "final_state": "processing"}]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DraftRunSummary {
    /// Abandoned claims that went back to pending before the run read what is pending.
    pub recovered_processing: usize,
    /// Drafts that were then pending and due. The run claims no others.
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
    /// Drafts that were pending, and that another runner claimed first.
    pub claim_misses: usize,
    /// Drafts without a decision.
    pub errors: usize,
    /// Drafts whose claim ended before the decision could be stored.
    pub lost_claims: usize,
    /// Abandoned claims whose errors had reached the budget, and that went to `failed`.
    pub exhausted: usize,
    /// Drafts that were released because the machine did not let the processor work. No error was
    /// counted.
    pub released: usize,
    /// The drafts with a decision, in the order in which they were finished.
    pub items: Vec<DraftRunItem>,
    /// The drafts without a decision, in the order in which they were finished.
    pub error_items: Vec<DraftRunError>,
    /// Drafts that are in neither list, because the runner limits their number.
    pub items_left_out: usize,
    /// The hold at which the run ended, with drafts left.
    pub hold: Option<Hold>,
}

impl Serialize for DraftRunSummary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.counts();
        let mut fields = serializer.serialize_struct("DraftRunSummary", counts.len() + 3)?;
        for (name, count) in counts {
            fields.serialize_field(name, &count)?;
        }
        fields.serialize_field("items", &MergedItems(self))?;
        fields.serialize_field("items_left_out", &self.items_left_out)?;
        fields.serialize_field("hold", &self.hold)?;
        fields.end()
    }
}

/// The items with and without a decision, in the order in which they were finished.
struct MergedItems<'a>(&'a DraftRunSummary);

impl Serialize for MergedItems<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        #[serde(untagged)]
        enum Merged<'a> {
            Decided(&'a DraftRunItem),
            Error(&'a DraftRunError),
        }
        let Self(DraftRunSummary { items, error_items, .. }) = self;
        let mut merged: Vec<(usize, Merged<'_>)> =
            error_items.iter().map(|error| (error.items_before, Merged::Error(error))).collect();
        merged.extend(items.iter().enumerate().map(|(i, item)| (i, Merged::Decided(item))));
        // The sort is stable: the errors before the item with the same number stay before it.
        merged.sort_by_key(|(place, _)| *place);
        serializer.collect_seq(merged.into_iter().map(|(_, item)| item))
    }
}

impl DraftRunSummary {
    /// Drafts that the run has finished, with or without a decision.
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

    /// Whether the run moved any draft.
    #[must_use]
    pub fn did_something(&self) -> bool {
        self.claimed + self.recovered_processing + self.exhausted > 0
    }

    /// Count a decision, and list it if fewer than `limit` drafts are listed.
    pub(super) fn add_decision(
        &mut self,
        id: DraftId,
        decision: DraftProcessingDecision,
        limit: usize,
    ) {
        match decision {
            DraftProcessingDecision::Accepted => self.accepted += 1,
            DraftProcessingDecision::Skipped => self.skipped += 1,
            DraftProcessingDecision::Failed => self.failed += 1,
            DraftProcessingDecision::Quarantined => self.quarantined += 1,
            DraftProcessingDecision::Deferred => self.deferred += 1,
        }
        if self.is_full(limit) {
            self.items_left_out += 1;
            return;
        }
        let final_state = decision.target_state().as_str().to_owned();
        self.items.push(DraftRunItem { id: id.to_hex(), decision, final_state });
    }

    /// Count an error, and list it if fewer than `limit` drafts are listed.
    pub(super) fn add_error(&mut self, id: DraftId, class: &str, state: DraftState, limit: usize) {
        self.errors += 1;
        if self.is_full(limit) {
            self.items_left_out += 1;
            return;
        }
        self.error_items.push(DraftRunError {
            id: id.to_hex(),
            error: class.to_owned(),
            final_state: state.as_str().to_owned(),
            items_before: self.items.len(),
        });
    }

    fn is_full(&self, limit: usize) -> bool {
        self.items.len() + self.error_items.len() >= limit
    }

    /// The counts with their names. The first nine are those of the file version.
    fn counts(&self) -> [(&'static str, usize); 13] {
        [
            ("recovered_processing", self.recovered_processing),
            ("pending_seen", self.pending_seen),
            ("claimed", self.claimed),
            ("accepted", self.accepted),
            ("skipped", self.skipped),
            ("failed", self.failed),
            ("quarantined", self.quarantined),
            ("deferred", self.deferred),
            ("claim_misses", self.claim_misses),
            ("errors", self.errors),
            ("lost_claims", self.lost_claims),
            ("exhausted", self.exhausted),
            ("released", self.released),
        ]
    }
}

/// A run's summary, and the error that ended the run early, if there is one.
#[derive(Debug)]
#[must_use = "the report may hold the error that ended the run early"]
#[non_exhaustive]
pub struct RunReport {
    /// What the run did up to its end.
    pub summary: DraftRunSummary,
    /// The error that ended the run early: the database's, or the processor's if the runner stops
    /// at an error.
    pub stopped_by: Option<LibrarianError>,
}

/// As JSON, the error that ended the run early is its message.
impl Serialize for RunReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RunReport", 2)?;
        fields.serialize_field("summary", &self.summary)?;
        let message = self.stopped_by.as_ref().map(ToString::to_string);
        fields.serialize_field("stopped_by", &message)?;
        fields.end()
    }
}

impl RunReport {
    /// The summary, or the error that ended the run early.
    ///
    /// # Errors
    ///
    /// The error in [`stopped_by`](Self::stopped_by).
    pub fn into_result(self) -> Result<DraftRunSummary, LibrarianError> {
        match self.stopped_by {
            Some(error) => Err(error),
            None => Ok(self.summary),
        }
    }
}

/// Record the file version's counts in the run's span, which has fields for these alone.
pub(super) fn record(span: &Span, summary: &DraftRunSummary) {
    for (name, count) in summary.counts().into_iter().take(9) {
        span.record(name, u64::try_from(count).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_decisions_share_the_limit_and_keep_their_order() {
        let mut summary = DraftRunSummary::default();
        let id = |n: u8| DraftId::from_bytes([n; 8]);
        summary.add_error(id(1), "exit", DraftState::Processing, 5);
        summary.add_decision(id(2), DraftProcessingDecision::Skipped, 5);
        summary.add_error(id(3), "damaged", DraftState::Pending, 5);
        summary.add_error(id(4), "exit", DraftState::Processing, 5);
        summary.add_decision(id(5), DraftProcessingDecision::Deferred, 5);
        summary.add_error(id(6), "exit", DraftState::Processing, 5);
        summary.add_decision(id(7), DraftProcessingDecision::Skipped, 5);
        assert_eq!((summary.errors, summary.skipped, summary.items_left_out), (4, 2, 2));
        let json = serde_json::to_value(&summary).unwrap();
        let ids: Vec<&str> = json["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [1, 2, 3, 4, 5].map(|n| id(n).to_hex()));
        assert_eq!(json["items"][2]["final_state"], "pending");
        assert_eq!(json["errors"], 4);
    }
}
