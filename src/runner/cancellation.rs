//! Ending a run or a watch early.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::lock::lock;

/// Ends a run or a watch early: drafts that workers are processing are finished, and nothing more
/// is claimed. Clones share the request.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<(Mutex<bool>, Condvar)>);

impl Cancellation {
    /// Request the end.
    pub fn cancel(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether the end was requested.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Wait until the deadline, or until the end is requested. Returns whether it was requested.
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
