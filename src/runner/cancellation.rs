//! Asking a run to end.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::lock::lock;

/// Asks a run to end: the drafts in hand are finished, nothing more is claimed. Clones ask the
/// same runs.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<(Mutex<bool>, Condvar)>);

impl Cancellation {
    /// Ask.
    pub fn cancel(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Wait until then, or until it is asked. Returns whether it was asked.
    #[must_use]
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut cancelled = lock(&self.0.0);
        while !*cancelled {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (guard, _) =
                self.0.1.wait_timeout(cancelled, left).unwrap_or_else(PoisonError::into_inner);
            cancelled = guard;
        }
        *cancelled
    }
}
