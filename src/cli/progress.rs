//! A progress bar on standard error.

use indicatif::{ProgressBar, ProgressStyle};

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

    /// Show this many as done, with a message.
    pub fn set(&self, done: usize, message: String) {
        if let Some(bar) = &self.0 {
            bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
            bar.set_message(message);
        }
    }

    /// Remove the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
