//! Counts and logs the results of drafts.

use std::sync::atomic::Ordering;

use super::dispatcher::Dispatcher;
use super::lock::lock;
use super::summary::DraftRunSummary;
use crate::id::DraftId;
use crate::outcome::Outcome;
use crate::state::DraftState;
use crate::store::exchange::Processed;
use crate::store::finish::Stored;

impl Dispatcher<'_> {
    /// Report a draft that was moved durably, or whose claim was lost.
    pub(super) fn report(&self, Processed { claim, result, unwanted }: Processed, stored: Stored) {
        let id = claim.draft().id();
        match (stored, &result) {
            (Stored::ClaimLost, _) => {
                tracing::warn!(
                    target: "mimir.librarian.lost_claim",
                    draft_id = %id,
                    "claim was lost; its late result changed nothing"
                );
                self.progress(|summary| summary.lost_claims += 1);
            }
            (Stored::Damaged, _) => self.report_error(id, "damaged"),
            (Stored::Moved, Ok(outcome)) => self.report_outcome(id, outcome),
            (Stored::Moved, Err(error)) if !error.is_charged() => {
                self.progress(|summary| summary.released += 1);
            }
            (Stored::Moved, Err(error)) => self.report_error(id, error.class()),
        }
        if let Err(error) = result
            && !unwanted
            && (self.runner.stop_at_error
                || (!error.is_charged() && !self.runner.cancellation.is_cancelled()))
        {
            self.stopped_by(error);
        }
    }

    fn report_outcome(&self, id: DraftId, outcome: &Outcome) {
        let decision = outcome.decision();
        self.progress(|summary| summary.add_decision(id, decision, self.runner.max_items));
        tracing::info!(
            target: "mimir.librarian.draft_processed",
            draft_id = %id,
            decision = decision.as_str(),
            final_state = decision.target_state().as_str(),
            "draft processed"
        );
    }

    fn report_error(&self, id: DraftId, class: &str) {
        tracing::warn!(
            target: "mimir.librarian.draft_error",
            draft_id = %id,
            class,
            "processor reached no decision"
        );
        self.progress(|summary| {
            summary.add_error(id, class, DraftState::Processing, self.runner.max_items);
        });
    }

    pub(super) fn report_damaged(&self, id: DraftId, state: DraftState) {
        tracing::warn!(
            target: "mimir.librarian.draft_error",
            draft_id = %id,
            class = "damaged",
            "draft is damaged and was not processed"
        );
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.progress(|summary| summary.add_error(id, "damaged", state, self.runner.max_items));
    }

    fn progress(&self, change: impl FnOnce(&mut DraftRunSummary)) {
        let mut report = lock(&self.report);
        change(&mut report.summary);
        report.summary.claimed = self.taken.load(Ordering::Relaxed);
        self.runner.observe(&report.summary);
    }
}
