//! The state that a run's workers and its writer thread share.
//!
//! Workers take claims from the dispatcher and submit their results to it. The writer thread
//! exchanges both with the store: in one transaction it stores results and claims the next drafts.
//! With a slow processor that is one draft at a time. With a fast one, a commit for each draft
//! would cost a hundred times the processing, so drafts are claimed ahead and results share a
//! commit. A result waits a few milliseconds at most, and is reported only when it is durable.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Dispatch, Span, dispatcher};

use super::batch_size::BatchSize;
use super::hold_wait::HoldWait;
use super::lock::lock;
use super::options::Runner;
use super::summary::{DraftRunSummary, RunReport};
use crate::error::LibrarianError;
use crate::hold::Hold;
use crate::stop::StopSignal;
use crate::store::claimed::{Claim, Next};
use crate::store::exchange::Processed;
use crate::store::held_claims::ClaimId;
use crate::store::snapshot::PendingSnapshot;

/// Drafts that were claimed ahead and that no worker has taken for this long are released, so that
/// another runner can claim them.
pub(super) const IDLE_CLAIM_LIMIT: Duration = Duration::from_millis(20);

/// How often a worker that waits for the end of a hold checks whether the run has ended.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// One run, shared by its workers and its writer thread.
pub(super) struct Dispatcher<'r> {
    pub(super) runner: &'r Runner,
    span: &'r Span,
    /// The log subscriber of the thread that began the run, for the other threads.
    dispatch: Dispatch,
    pub(super) state: Mutex<State>,
    /// Workers wait here for claims.
    pub(super) claims_arrived: Condvar,
    /// The writer thread waits here for something to do.
    pub(super) writer_needed: Condvar,
    /// How many drafts workers have taken.
    pub(super) taken: AtomicUsize,
    /// By which a worker's processor learns that its result is no longer wanted, for each worker.
    pub(super) stops: Vec<StopSignal>,
    /// The number of the next worker.
    pub(super) next_worker: AtomicUsize,
    pub(super) report: Mutex<RunReport>,
}

pub(super) struct State {
    pub(super) snapshot: PendingSnapshot,
    /// How many more drafts the runner's limit allows.
    pub(super) left: usize,
    /// An error ended the run: drafts in process are finished, and no other is taken.
    pub(super) stopped: bool,
    /// Claimed drafts that no worker has taken, in order.
    pub(super) claimed_ahead: VecDeque<Box<Claim>>,
    /// When a claim was last added there or taken from there.
    pub(super) claimed_ahead_changed: Instant,
    /// How many drafts workers are processing.
    pub(super) processing: usize,
    /// The draft that each worker is processing.
    pub(super) in_hand: Vec<Option<InHand>>,
    /// When the runner last checked whether it still holds them.
    pub(super) claims_checked: Instant,
    /// The hold that is in force, while the run waits for its end.
    pub(super) hold: Option<HoldWait>,
    /// A processor asked for a hold that is not stored yet.
    pub(super) hold_requested: bool,
    /// The hold at which the run ends.
    pub(super) ended_at: Option<Hold>,
    /// A worker is processing a suspect: nothing else is claimed until it is finished.
    pub(super) holds_suspect: bool,
    /// The kind of draft that follows the last claim.
    pub(super) next: Next,
    pub(super) processed: Vec<Processed>,
    /// Since when the first of them has waited.
    pub(super) processed_since: Option<Instant>,
    /// Workers that have not ended.
    pub(super) workers: usize,
    /// Workers that wait for a claim.
    pub(super) idle: usize,
    pub(super) batch_size: BatchSize,
    /// The store failed, so that claims were left behind.
    pub(super) abandoned: bool,
    /// When a processor last returned a result, or when the run began.
    pub(super) last_result: Instant,
    /// A failure of the machine was logged already.
    pub(super) machine_fault_logged: bool,
}

/// A draft that a worker is processing.
#[derive(Debug, Clone, Copy)]
pub(super) struct InHand {
    pub(super) claim: ClaimId,
    pub(super) since: Instant,
    /// Its claim was lost, and the processor was told to stop.
    pub(super) stopped: bool,
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
                claimed_ahead: VecDeque::new(),
                claimed_ahead_changed: Instant::now(),
                processing: 0,
                in_hand: vec![None; workers],
                claims_checked: Instant::now(),
                hold: None,
                hold_requested: false,
                ended_at: None,
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
            taken: AtomicUsize::new(0),
            stops: (0..workers).map(|_| StopSignal::default()).collect(),
            next_worker: AtomicUsize::new(0),
            report: Mutex::new(RunReport { summary, stopped_by: None }),
        }
    }

    /// Call `work` with the log subscriber and within the span of the run, on any thread.
    pub(super) fn within_span<T>(&self, work: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.dispatch, || self.span.in_scope(work))
    }

    /// End the run because one of its threads could not be started.
    pub(super) fn cannot_start(&self, source: io::Error) {
        let path = self.runner.store.path().to_owned();
        self.stopped_by(LibrarianError::Io { doing: "start a worker for", path, source });
        lock(&self.state).stopped = true;
    }

    /// The next claim for this worker; `None` when the run has ended.
    pub(super) fn take_claim(&self, worker: usize) -> Option<Box<Claim>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped || state.ended_at.is_some() || self.runner.cancellation.is_cancelled()
            {
                return None;
            }
            if state.claimed_ahead.is_empty() && state.is_done() {
                return None;
            }
            if state.is_on_hold() {
                self.writer_needed.notify_one();
                let check = Instant::now() + END_CHECK_INTERVAL;
                state = wait(&self.claims_arrived, state, Some(check));
                continue;
            }
            if let Some(claim) = state.claimed_ahead.pop_front() {
                let now = Instant::now();
                state.claimed_ahead_changed = now;
                state.processing += 1;
                let in_hand = InHand { claim: claim.claim_id(), since: now, stopped: false };
                if let Some(slot) = state.in_hand.get_mut(worker) {
                    *slot = Some(in_hand);
                }
                self.taken.fetch_add(1, Ordering::Relaxed);
                return Some(claim);
            }
            state.idle += 1;
            self.writer_needed.notify_one();
            state = wait(&self.claims_arrived, state, None);
            state.idle -= 1;
        }
    }

    pub(super) fn submit_result(&self, worker: usize, mut processed: Processed, took: Duration) {
        let mut state = lock(&self.state);
        state.processing -= 1;
        state.batch_size.record(took);
        if let Some(slot) = state.in_hand.get_mut(worker)
            && let Some(InHand { stopped: true, .. }) = slot.take()
        {
            processed.unwanted = true;
            if let Some(stop) = self.stops.get(worker) {
                stop.reset();
            }
        }
        match &processed.result {
            Ok(outcome) => {
                state.hold_requested |= outcome.hold().is_some_and(|hold| !hold.is_zero());
            }
            Err(_) if processed.unwanted => {}
            Err(error) => state.stopped |= self.runner.stop_at_error || !error.is_charged(),
        }
        state.processed.push(processed);
        let last_before_suspect = state.waits_until_idle() && state.processing == 0;
        if state.processed_since.is_none() || last_before_suspect || state.hold_requested {
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

    /// The report of the run, at its end.
    pub(super) fn close(self) -> RunReport {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        let summary = &mut report.summary;
        summary.claimed = self.taken.into_inner();
        summary.hold = state.ended_at;
        if state.abandoned {
            self.runner.drop_registration();
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

    /// Whether workers take no drafts because of a hold.
    pub(super) fn is_on_hold(&self) -> bool {
        self.hold.is_some() || self.hold_requested || self.ended_at.is_some()
    }

    /// Whether nothing may be claimed while a worker is processing a draft.
    pub(super) fn waits_until_idle(&self) -> bool {
        self.holds_suspect || self.next == Next::Suspect
    }

    /// When to release the drafts that were claimed ahead, if there are any.
    pub(super) fn release_at(&self, now: Instant) -> Option<Instant> {
        // A waiting worker has been notified, and is about to take one.
        let since = if self.idle > 0 { now } else { self.claimed_ahead_changed };
        (!self.claimed_ahead.is_empty()).then(|| since + IDLE_CLAIM_LIMIT)
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
