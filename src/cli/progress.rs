//! Progress bars on standard error.

use std::sync::Mutex;

use draftq::DraftRunSummary;
use indicatif::{ProgressBar, ProgressStyle};

use super::summary::decisions;

/// A bar, or nothing at all.
#[derive(Debug, Clone)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar if it is wanted.
    pub fn new(wanted: bool, total: usize, what: &'static str) -> Self {
        if !wanted {
            return Self(None);
        }
        let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {per_sec:1} {msg}");
        // The template is a constant; without it the bar has its default look.
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Self(Some(bar))
    }

    /// Count one more as done.
    pub fn advance(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }

    /// Remove the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The bar of a run. It appears when the run knows how many drafts there are.
#[derive(Debug)]
pub struct RunProgress {
    wanted: bool,
    limit: usize,
    bar: Mutex<Option<Progress>>,
}

impl RunProgress {
    /// A bar if it is wanted, for a run that claims at most so many drafts.
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
        let Progress(bar) = bar.get_or_insert_with(|| Progress::new(true, total, "run"));
        if let Some(bar) = bar {
            bar.set_position(u64::try_from(summary.done()).unwrap_or(u64::MAX));
            bar.set_message(decisions(summary));
        }
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
