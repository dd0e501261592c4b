//! The dispatcher between a run's workers and the store.
//!
//! Workers take claims from the dispatcher and hand their results to it. A writer thread exchanges
//! both with the store: in one transaction it stores results and claims the next drafts. With a
//! slow processor that is one draft at a time. With a fast one a commit would cost a hundred times
//! what the processor does, so drafts are claimed ahead and results share a commit; a result
//! waits for others a few milliseconds at most, and is reported only when it is durable.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Dispatch, Span, dispatcher};

use super::batch_size::BatchSize;
use super::lock::lock;
use super::options::Runner;
use super::summary::{DraftRunSummary, RunReport};
use crate::error::LibrarianError;
use crate::store::claimed::{Claim, Next};
use crate::store::exchange::Processed;
use crate::store::snapshot::PendingSnapshot;

/// When no worker has come for what was claimed ahead for so long, it is given back, so that
/// another runner can claim it.
pub(super) const IDLE_CLAIM_LIMIT: Duration = Duration::from_millis(20);

/// How often a worker that waits checks whether the run has ended meanwhile.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// One run of a runner, shared by its workers and the writer thread.
pub(super) struct Dispatcher<'r> {
    pub(super) runner: &'r Runner,
    span: &'r Span,
    /// The log of the thread that began the run; the other threads use it too.
    dispatch: Dispatch,
    pub(super) state: Mutex<State>,
    /// Workers wait here for claims.
    pub(super) claims_arrived: Condvar,
    /// The writer thread waits here for something to do.
    pub(super) writer_needed: Condvar,
    /// How many drafts workers have begun.
    pub(super) begun: AtomicUsize,
    pub(super) report: Mutex<RunReport>,
}

pub(super) struct State {
    pub(super) snapshot: PendingSnapshot,
    /// How many more drafts the limit allows.
    pub(super) left: usize,
    /// An error ended the run: what is in hand is finished, nothing else is begun.
    pub(super) stopped: bool,
    /// Claimed and not begun, in order.
    pub(super) ahead: VecDeque<Box<Claim>>,
    /// When a claim last arrived there or was taken from there.
    pub(super) ahead_moved: Instant,
    /// How many drafts workers are processing.
    pub(super) in_hand: usize,
    /// A suspect is in hand: nothing else is claimed until it is processed.
    pub(super) holds_suspect: bool,
    /// What the last claim left as the next draft.
    pub(super) next: Next,
    pub(super) processed: Vec<Processed>,
    /// Since when the first of them waits.
    pub(super) processed_since: Option<Instant>,
    /// Workers that have not ended.
    pub(super) workers: usize,
    /// Workers that wait for a claim.
    pub(super) idle: usize,
    pub(super) batch_size: BatchSize,
    /// Claims were left behind that the store could not be told of.
    pub(super) abandoned: bool,
    /// When a processor last came to a result, or the run began.
    pub(super) last_result: Instant,
    /// A fault of the machine was logged already.
    pub(super) machine_fault_logged: bool,
}

impl<'r> Dispatcher<'r> {
    pub(super) fn new(
        runner: &'r Runner,
        span: &'r Span,
        snapshot: PendingSnapshot,
        summary: DraftRunSummary,
        workers: usize,
    ) -> Self {
        Self {
            runner,
            span,
            dispatch: dispatcher::get_default(Clone::clone),
            state: Mutex::new(State {
                snapshot,
                left: runner.limit.unwrap_or(usize::MAX),
                stopped: false,
                ahead: VecDeque::new(),
                ahead_moved: Instant::now(),
                in_hand: 0,
                holds_suspect: false,
                next: Next::Drafts,
                processed: Vec::new(),
                processed_since: None,
                workers,
                idle: 0,
                batch_size: BatchSize::default(),
                abandoned: false,
                last_result: Instant::now(),
                machine_fault_logged: false,
            }),
            claims_arrived: Condvar::new(),
            writer_needed: Condvar::new(),
            begun: AtomicUsize::new(0),
            report: Mutex::new(RunReport { summary, stopped_by: None }),
        }
    }

    /// Do this with the log and within the span of the run, on whatever thread.
    pub(super) fn within_span<T>(&self, work: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.dispatch, || self.span.in_scope(work))
    }

    /// A thread of the run could not be started: the run ends.
    pub(super) fn cannot_start(&self, source: io::Error) {
        let path = self.runner.store.path().to_owned();
        self.stopped_by(LibrarianError::Io { doing: "start a worker for", path, source });
        lock(&self.state).stopped = true;
    }

    /// The next claim for a worker; `None` when the run is over.
    pub(super) fn take_claim(&self) -> Option<Box<Claim>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped || self.runner.cancellation.is_cancelled() {
                return None;
            }
            if state.ahead.is_empty() && state.is_done() {
                return None;
            }
            if let Some(until) = self.runner.held_until() {
                self.writer_needed.notify_one();
                drop(state);
                // Not to its end at once: an error may end the run before.
                let check = until.min(Instant::now() + END_CHECK_INTERVAL);
                let _ = self.runner.cancellation.wait_until(check);
                state = lock(&self.state);
                continue;
            }
            if let Some(claim) = state.ahead.pop_front() {
                state.ahead_moved = Instant::now();
                state.in_hand += 1;
                self.begun.fetch_add(1, Ordering::Relaxed);
                return Some(claim);
            }
            state.idle += 1;
            self.writer_needed.notify_one();
            state = wait(&self.claims_arrived, state, None);
            state.idle -= 1;
        }
    }

    pub(super) fn submit_result(&self, processed: Processed, took: Duration) {
        let mut state = lock(&self.state);
        state.in_hand -= 1;
        state.batch_size.record(took);
        match &processed.result {
            Ok(outcome) => {
                if let Some(hold) = outcome.hold() {
                    self.runner.hold_for(hold);
                }
            }
            Err(error) => state.stopped |= self.runner.stop_at_error || !error.is_charged(),
        }
        state.processed.push(processed);
        let waits_for_all = state.waits_for_empty_hands() && state.in_hand == 0;
        if state.processed_since.is_none() || waits_for_all {
            state.processed_since.get_or_insert_with(Instant::now);
            self.writer_needed.notify_one();
        }
    }

    pub(super) fn stopped_by(&self, error: LibrarianError) {
        let mut report = lock(&self.report);
        if report.stopped_by.is_none() {
            report.stopped_by = Some(error);
        }
    }

    /// The end: what the run did.
    pub(super) fn close(self) -> RunReport {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        let summary = &mut report.summary;
        summary.claimed = self.begun.into_inner();
        if state.abandoned {
            self.runner.forget_registration();
        } else if state.snapshot.is_used_up() {
            summary.claim_misses = summary.pending_seen.saturating_sub(summary.claimed);
        }
        report
    }
}

impl State {
    /// Whether no more can be claimed.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 || self.snapshot.is_used_up()
    }

    /// Whether nothing may be claimed while a draft is in hand.
    pub(super) fn waits_for_empty_hands(&self) -> bool {
        self.holds_suspect || self.next == Next::Suspect
    }

    /// When what was claimed ahead, if anything, is to be given back.
    pub(super) fn release_at(&self, now: Instant) -> Option<Instant> {
        // A worker that waits has been told, and is about to come.
        let since = if self.idle > 0 { now } else { self.ahead_moved };
        (!self.ahead.is_empty()).then(|| since + IDLE_CLAIM_LIMIT)
    }
}

pub(super) fn wait<'t>(
    condvar: &Condvar,
    state: MutexGuard<'t, State>,
    until: Option<Instant>,
) -> MutexGuard<'t, State> {
    let Some(until) = until else {
        return condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
    };
    let left = until.saturating_duration_since(Instant::now());
    condvar.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
}
