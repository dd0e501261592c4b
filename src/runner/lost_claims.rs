//! Checks whether the runner still holds the drafts that its workers process, and stops the
//! processors of those that it has lost: an operator has released them, for example.

use std::collections::HashSet;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::dispatcher::{Dispatcher, State};
use super::lock::lock;

/// How often the claims are checked. A processor that is faster than this is never checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl State {
    /// When to check the claims of the drafts in hand; `None` if there is none to check.
    pub(super) fn claims_check_at(&self) -> Option<Instant> {
        let in_hand = self.in_hand.iter().flatten().filter(|in_hand| !in_hand.stopped);
        let oldest = in_hand.map(|in_hand| in_hand.since).min()?;
        Some(oldest.max(self.claims_checked) + CHECK_INTERVAL)
    }
}

impl Dispatcher<'_> {
    /// Check the claims with one query, and stop the processors of those that were lost. The state is
    /// unlocked meanwhile.
    pub(super) fn check_claims<'t>(
        &'t self,
        mut state: MutexGuard<'t, State>,
    ) -> MutexGuard<'t, State> {
        let started = Instant::now();
        state.claims_checked = started;
        let runners: HashSet<i64> =
            state.in_hand.iter().flatten().map(|in_hand| in_hand.claim.runner()).collect();
        drop(state);
        let mut held = HashSet::new();
        for runner in runners {
            match self.runner.store.held_claims(runner) {
                Ok(claims) => held.extend(claims),
                // The next check tries again.
                Err(_) => return lock(&self.state),
            }
        }
        let mut state = lock(&self.state);
        for (in_hand, stop) in state.in_hand.iter_mut().zip(&self.stops) {
            if let Some(in_hand) = in_hand
                && in_hand.since < started
                && !in_hand.stopped
                && !held.contains(&in_hand.claim)
            {
                in_hand.stopped = true;
                stop.stop();
            }
        }
        state
    }
}
