//! A run at a hold: it waits for the end of the hold, for a while.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::dispatcher::{Dispatcher, State};
use super::lock::lock;
use crate::hold::Hold;

/// How often a run at a hold checks whether the hold was ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The wait for the end of a hold.
#[derive(Debug)]
pub(super) struct HoldWait {
    hold: Hold,
    /// When the run began to wait.
    since: Instant,
    next_check: Instant,
}

impl HoldWait {
    /// When to check whether the hold is still in force.
    pub(super) fn next_check(&self) -> Instant {
        self.next_check
    }
}

impl Dispatcher<'_> {
    /// Begin or continue to wait for the end of a hold that was found in force. If the run has waited
    /// for as long as it may, it ends.
    pub(super) fn begin_hold(&self, state: &mut State, hold: Hold) {
        if state.is_done() {
            return;
        }
        let now = Instant::now();
        let since = state.hold.take().map_or(now, |wait| wait.since);
        let wait_end = since.checked_add(self.runner.hold_wait);
        if wait_end.is_some_and(|end| now >= end) {
            state.ended_at = Some(hold);
            return;
        }
        let mut next_check = now + CHECK_INTERVAL;
        if let Some(until) = hold.until_unix_ms {
            let left = until.saturating_sub(self.runner.store.clock().now_ms()).max(0);
            let end = now.checked_add(Duration::from_millis(left.unsigned_abs()));
            next_check = end.map_or(next_check, |end| end.min(next_check));
        }
        next_check = wait_end.map_or(next_check, |end| end.min(next_check));
        state.hold = Some(HoldWait { hold, since, next_check });
    }

    /// Check whether the hold is still in force. The state is unlocked meanwhile.
    pub(super) fn check_hold<'t>(&'t self, state: MutexGuard<'t, State>) -> MutexGuard<'t, State> {
        drop(state);
        let found = self.runner.store.hold_in_force(&self.runner.processor);
        let mut state = lock(&self.state);
        match (found, &state.hold) {
            (Ok(Some(hold)), _) => self.begin_hold(&mut state, hold),
            // It could not be read, because others use the database, for example.
            (Err(_), Some(wait)) => {
                let hold = wait.hold.clone();
                self.begin_hold(&mut state, hold);
            }
            (Ok(None), _) | (Err(_), None) => state.hold = None,
        }
        self.claims_arrived.notify_all();
        state
    }
}
