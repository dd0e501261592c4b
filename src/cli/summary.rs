//! What a run did, as JSON and for a person.

use std::time::Duration;

use draftq::DraftRunSummary;
use serde::Serialize;

use super::submit_files::SweepSummary;
use super::wording::{count, duration, hold_end, was_or_were};

/// The summary of a run as JSON.
#[derive(Serialize)]
pub struct RunDocument<'a> {
    pub processor: &'a str,
    pub summary: &'a DraftRunSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<&'a SweepSummary>,
}

/// The number of drafts for each result: "3 accepted, 1 deferred".
pub fn decisions(summary: &DraftRunSummary) -> String {
    let parts = [
        (summary.accepted, "accepted"),
        (summary.skipped, "skipped"),
        (summary.failed, "failed"),
        (summary.quarantined, "quarantined"),
        (summary.deferred, "deferred"),
        (summary.errors, "without a decision"),
        (summary.lost_claims, "taken from this run meanwhile"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
    parts.join(", ")
}

/// Why the exit code of a run is not 0: errors, deferrals, lost claims, or a hold.
pub fn why_not_zero(summary: &DraftRunSummary) -> Option<String> {
    let drafts = |number: usize, what: &str| match number {
        0 => None,
        number => Some(format!("{} {} {what}", count(number, "draft"), was_or_were(number))),
    };
    let mut reasons: Vec<String> = [
        (summary.errors > 0).then(|| count(summary.errors, "error")),
        drafts(summary.deferred, "deferred"),
        drafts(summary.lost_claims, "taken from this run meanwhile"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(hold) = &summary.hold {
        let left = count(left(summary), "draft");
        reasons.push(format!("{hold}; it lasts {}; {left} not begun", hold_end(hold)));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The drafts that the run has seen and not claimed.
fn left(summary: &DraftRunSummary) -> usize {
    summary.pending_seen.saturating_sub(summary.claimed + summary.claim_misses)
}

/// The summary of a run for a person.
pub fn to_text(summary: &DraftRunSummary, took: Duration, stale_after: Duration) -> String {
    let mut lines = Vec::new();
    if summary.recovered_processing > 0 {
        let drafts = count(summary.recovered_processing, "draft");
        lines.push(format!("Recovered {drafts} from dead or stale runs."));
    }
    if summary.exhausted > 0 {
        let drafts = count(summary.exhausted, "draft");
        lines.push(format!(
            "Moved {drafts} to failed after too many errors; see `draftq list --state failed`."
        ));
    }
    let left = left(summary);
    lines.push(match (summary.claimed, left) {
        (0, 0) => "Nothing to do: no draft is pending and due.".to_owned(),
        (0, _) => "No draft was processed.".to_owned(),
        (claimed, _) => format!(
            "Processed {} in {}: {}.",
            count(claimed, "draft"),
            duration(took),
            decisions(summary)
        ),
    });
    if left > 0 {
        lines.push(format!("{} still pending when the run ended.", count(left, "draft")));
    }
    if summary.claim_misses > 0 {
        let drafts = count(summary.claim_misses, "draft");
        lines.push(format!("Another runner claimed {drafts} first."));
    }
    if summary.errors > 0 {
        lines.push(format!(
            "Drafts without a decision stay in processing and are tried again after {}; see \
             `draftq list --state processing`.",
            duration(stale_after)
        ));
    }
    lines.join("\n")
}
