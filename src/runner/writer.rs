//! The writer thread of a run. It alone exchanges with the store.

use std::sync::MutexGuard;
use std::thread;
use std::time::{Duration, Instant};

use super::batch_size::MAX_BATCH;
use super::dispatcher::{Dispatcher, IDLE_CLAIM_LIMIT, State, wait};
use super::hold_wait::HoldWait;
use super::lock::lock;
use crate::error::{ErrorKind, LibrarianError};
use crate::store::claimed::{Claim, Claimed};
use crate::store::exchange::Exchanged;

/// How often a claim is tried while the database is busy. Each try waits for the store's busy
/// time-out.
const CLAIM_TRIES: u32 = 12;

/// How long a cancelled run tries to store its results.
const CANCELLED_TRIES_LIMIT: Duration = Duration::from_secs(60);

/// The pause after the first failed try, and the longest pause.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How long a result waits for others to share its commit. 5 ms are promised, and the writer thread
/// may wake late.
const COMMIT_DELAY: Duration = Duration::from_millis(4);

impl Dispatcher<'_> {
    /// The writer thread: exchange with the store until all workers have ended.
    pub(super) fn write(&self) {
        let _ending = WriterEnding(self);
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let over = state.workers == 0;
            let ending = over || state.stopped || self.runner.cancellation.is_cancelled();
            let holding = state.is_on_hold();
            let awaited = state.idle > 0 && state.claimed_ahead.is_empty();
            let may_claim = !ending && !holding && !state.is_done();
            let claims =
                awaited && may_claim && (state.processing == 0 || !state.waits_until_idle());
            let commit_at = state.processed_since.map(|since| since + COMMIT_DELAY);
            let stores = !state.processed.is_empty()
                && (awaited
                    || ending
                    || holding
                    || state.processed.len() >= MAX_BATCH
                    || commit_at.is_some_and(|at| now >= at));
            let release_at = state.release_at(now);
            let releases = !state.claimed_ahead.is_empty()
                && (ending || holding || release_at.is_some_and(|at| now >= at));
            if awaited && !may_claim {
                // No claim will arrive; the workers check why.
                self.claims_arrived.notify_all();
            }
            let hold_check_at = state.hold.as_ref().map(HoldWait::next_check);
            let claims_check_at = state.claims_check_at();
            if claims || stores || releases {
                state = self.exchange(state, claims, releases);
            } else if over {
                return;
            } else if !ending && hold_check_at.is_some_and(|at| now >= at) {
                state = self.check_hold(state);
            } else if claims_check_at.is_some_and(|at| now >= at) {
                state = self.check_claims(state);
            } else {
                let times = [commit_at, release_at, hold_check_at, claims_check_at];
                let until = times.into_iter().flatten().min();
                state = wait(&self.writer_needed, state, until);
            }
        }
    }

    /// One exchange with the store. The state is unlocked meanwhile.
    fn exchange<'t>(
        &'t self,
        mut state: MutexGuard<'t, State>,
        claims: bool,
        releases: bool,
    ) -> MutexGuard<'t, State> {
        let processed = std::mem::take(&mut state.processed);
        state.processed_since = None;
        // These results are stored with the holds that they ask for.
        state.hold_requested = false;
        let mut released: Vec<Box<Claim>> = Vec::new();
        if releases {
            released.extend(state.claimed_ahead.drain(..));
            // Before the exchange, so that a worker that asks meanwhile does not find the run done.
            state.left = state.left.saturating_add(released.len());
            state.snapshot.rewind(&released);
            state.batch_size.reset(IDLE_CLAIM_LIMIT);
        }
        let want = if claims {
            (state.batch_size.next() * state.idle).min(MAX_BATCH).min(state.left)
        } else {
            0
        };
        let holds_nothing = state.processing == 0;
        if holds_nothing {
            state.holds_suspect = false;
        }
        let snapshot = state.snapshot.clone();
        drop(state);

        let exchanged = self.try_until_stored(!processed.is_empty(), || {
            let registration = self.runner.registration()?;
            self.runner.store.exchange(
                &registration,
                &processed,
                &released,
                &snapshot,
                want,
                holds_nothing,
            )
        });
        let Exchanged { stored, claims, hold } = match exchanged {
            Ok(exchanged) => exchanged,
            Err(error) => return self.fail(error),
        };
        for (processed, stored) in processed.into_iter().zip(stored) {
            self.report(processed, stored);
        }

        let mut state = lock(&self.state);
        if want > 0 && hold.is_none() {
            state.snapshot.advance(&claims);
            state.left -= claims.found.len().min(state.left);
            state.next = claims.next;
            state.holds_suspect = claims.found_suspect;
            state.claimed_ahead_changed = Instant::now();
            for (_, claimed) in claims.found {
                match claimed {
                    Claimed::Draft(claim) => state.claimed_ahead.push_back(claim),
                    Claimed::Unreadable { id, state } => self.report_damaged(id, state),
                }
            }
        }
        if let Some(hold) = hold {
            self.begin_hold(&mut state, hold);
        }
        self.claims_arrived.notify_all();
        state
    }

    /// Try until the store has accepted it. Results are kept for as long as this runner lives,
    /// because an hour of a model's work may be behind one. An exchange that only claims is given
    /// up sooner.
    fn try_until_stored<T>(
        &self,
        holds_results: bool,
        mut attempt: impl FnMut() -> Result<T, LibrarianError>,
    ) -> Result<T, LibrarianError> {
        let (mut pause, longest) = RETRY_PAUSES;
        let mut cancelled_at = None;
        let mut tries = 0;
        loop {
            let error = match attempt() {
                Err(LibrarianError::RunnerEnded { .. }) => {
                    self.runner.drop_registration();
                    continue;
                }
                Err(error) => error,
                done => return done,
            };
            tries += 1;
            let busy = error.kind() == ErrorKind::Busy;
            let passing = busy
                || matches!(error, LibrarianError::Database { .. } | LibrarianError::Io { .. });
            if !passing || (!holds_results && (!busy || tries >= CLAIM_TRIES)) {
                return Err(error);
            }
            if self.runner.cancellation.is_cancelled() {
                let since = *cancelled_at.get_or_insert_with(Instant::now);
                if since.elapsed() >= CANCELLED_TRIES_LIMIT {
                    return Err(error);
                }
            }
            if holds_results && (!busy || tries >= CLAIM_TRIES) {
                tracing::warn!(
                    target: "mimir.librarian.not_stored",
                    "results could not be stored yet; they are kept and tried again: {error}"
                );
            }
            // This does not depend on the cancellation, because the results must be stored.
            thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// End the run because the store failed. Its claims are left to be recovered.
    fn fail(&self, error: LibrarianError) -> MutexGuard<'_, State> {
        self.stopped_by(error);
        let mut state = lock(&self.state);
        state.stopped = true;
        state.abandoned = true;
        state.claimed_ahead.clear();
        self.claims_arrived.notify_all();
        state
    }
}

/// The end of the writer thread. If it panicked (in an observer or a log subscriber), the workers
/// must not wait for it.
struct WriterEnding<'d, 'r>(&'d Dispatcher<'r>);

impl Drop for WriterEnding<'_, '_> {
    fn drop(&mut self) {
        let Self(dispatcher) = self;
        lock(&dispatcher.state).stopped |= thread::panicking();
        dispatcher.claims_arrived.notify_all();
    }
}
