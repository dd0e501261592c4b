//! The progress bar of a run.

use std::sync::Mutex;

use draftq::DraftRunSummary;

use super::progress::Progress;
use super::summary::decisions;

/// The bar of a run. It appears when the run knows how many drafts there are.
#[derive(Debug)]
pub struct RunProgress {
    wanted: bool,
    limit: usize,
    bar: Mutex<Option<Progress>>,
}

impl RunProgress {
    /// A bar if it is wanted, for a run that claims at most this many drafts.
    pub fn new(wanted: bool, limit: usize) -> Self {
        Self { wanted, limit, bar: Mutex::new(None) }
    }

    /// Show how many drafts are done.
    pub fn show(&self, summary: &DraftRunSummary) {
        if !self.wanted || summary.pending_seen == 0 {
            return;
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        let total = summary.pending_seen.min(self.limit);
        bar.get_or_insert_with(|| Progress::new(true, total, "run"))
            .set(summary.done(), decisions(summary));
    }

    /// Remove the bar.
    pub fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.clear();
        }
    }
}
