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
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Dispatch, Span, dispatcher};

use super::batch::{BatchSize, MAX_BATCH};
use super::{DraftRunSummary, RunReport, Runner, lock};
use crate::draft::Draft;
use crate::error::{ErrorKind, LibrarianError, ProcessorError};
use crate::id::DraftId;
use crate::outcome::Outcome;
use crate::processor::DraftProcessor;
use crate::state::DraftState;
use crate::store::batch::{Exchanged, Processed};
use crate::store::claim::{Claim, Claimed, Next, PendingSnapshot};
use crate::store::finish::Stored;

/// How often a claim is tried while the database is busy; each try waits as long as the store
/// does.
const CLAIM_TRIES: u32 = 12;

/// How long a run that was asked to end goes on trying to store its results.
const LAST_TRIES: Duration = Duration::from_secs(60);

/// The pause after the first try that failed, and the longest one.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How long a result waits for others to share its commit. The promise is 5 ms, and the writer
/// thread may wake late.
const COMMIT_DELAY: Duration = Duration::from_millis(4);

/// When no worker has come for what was claimed ahead for so long, it is given back, so that
/// another runner can claim it.
const IDLE_CLAIM_LIMIT: Duration = Duration::from_millis(20);

/// How often a worker that waits checks whether the run has ended meanwhile.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a run goes on trying while the machine lets no processor work; then it ends.
const MACHINE_PATIENCE: Duration = Duration::from_secs(10);

/// The longest pause between two such tries.
const MAX_MACHINE_PAUSE: Duration = Duration::from_secs(1);

/// One run of a runner, shared by its workers and the writer thread.
pub(super) struct Dispatcher<'r> {
    runner: &'r Runner,
    span: &'r Span,
    /// The log of the thread that began the run; the other threads use it too.
    dispatch: Dispatch,
    state: Mutex<State>,
    /// Workers wait here for claims.
    claims_arrived: Condvar,
    /// The writer thread waits here for something to do.
    writer_needed: Condvar,
    /// How many drafts workers have begun.
    begun: AtomicUsize,
    report: Mutex<RunReport>,
}

struct State {
    snapshot: PendingSnapshot,
    /// How many more drafts the limit allows.
    left: usize,
    /// An error ended the run: what is in hand is finished, nothing else is begun.
    stopped: bool,
    /// Claimed and not begun, in order.
    ahead: VecDeque<Box<Claim>>,
    /// When a claim last arrived there or was taken from there.
    ahead_moved: Instant,
    /// How many drafts workers are processing.
    in_hand: usize,
    /// A suspect is in hand: nothing else is claimed until it is processed.
    holds_suspect: bool,
    /// What the last claim left as the next draft.
    next: Next,
    processed: Vec<Processed>,
    /// Since when the first of them waits.
    processed_since: Option<Instant>,
    /// Workers that have not ended.
    workers: usize,
    /// Workers that wait for a claim.
    idle: usize,
    batch_size: BatchSize,
    /// Claims were left behind that the store could not be told of.
    abandoned: bool,
    /// When a processor last came to a result, or the run began.
    last_result: Instant,
    /// A fault of the machine was logged already.
    machine_fault_logged: bool,
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

    /// One worker. As many are to be made as the dispatcher was told of: the writer thread waits
    /// until all have ended.
    pub(super) fn worker(&self) -> Worker<'_, 'r> {
        Worker(self)
    }

    /// A thread of the run could not be started: the run ends.
    pub(super) fn cannot_start(&self, source: io::Error) {
        let path = self.runner.store.path().to_owned();
        self.stopped_by(LibrarianError::Io { doing: "start a worker for", path, source });
        lock(&self.state).stopped = true;
    }

    /// The next claim for a worker; `None` when the run is over.
    fn take_claim(&self) -> Option<Box<Claim>> {
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

    /// Ask the processor. While the machine does not let it work (no process, no memory, …), try
    /// again after a pause: the draft is not to blame, and stays in this worker's hands.
    fn process<P: DraftProcessor + ?Sized>(
        &self,
        processor: &mut P,
        draft: &Draft,
    ) -> Result<Outcome, LibrarianError> {
        let begun = Instant::now();
        let mut pause = RETRY_PAUSES.0;
        loop {
            match processor.process_to_outcome(draft) {
                Err(error) if !error.is_charged() => {
                    if self.runner.stop_at_error || !self.may_try_again(begun, &error) {
                        return Err(error);
                    }
                    let jitter = pause.mul_f64(fastrand::f64());
                    if self.runner.cancellation.wait_until(Instant::now() + pause + jitter) {
                        return Err(error);
                    }
                    pause = (pause * 2).min(MAX_MACHINE_PAUSE);
                }
                result => {
                    lock(&self.state).last_result = Instant::now();
                    return result;
                }
            }
        }
    }

    /// Whether to try again although the machine lets no processor work: for as long as another
    /// worker comes to results, and for some seconds more.
    fn may_try_again(&self, begun: Instant, error: &LibrarianError) -> bool {
        let mut state = lock(&self.state);
        if !state.machine_fault_logged {
            state.machine_fault_logged = true;
            tracing::warn!(
                target: "mimir.librarian.machine_fault",
                class = error.class(),
                "a processor cannot work at the moment; the run waits and tries again: {error}"
            );
        }
        !state.stopped && state.last_result.max(begun).elapsed() < MACHINE_PATIENCE
    }

    fn hand_in(&self, processed: Processed, took: Duration) {
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

    /// The writer thread: exchange with the store until all workers have ended.
    pub(super) fn write(&self) {
        let _ending = WriterEnding(self);
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let over = state.workers == 0;
            let ending = over || state.stopped || self.runner.cancellation.is_cancelled();
            let holding = self.runner.held_until().is_some();
            let awaited = state.idle > 0 && state.ahead.is_empty();
            let may_claim = !ending && !holding && !state.is_done();
            let claims =
                awaited && may_claim && (state.in_hand == 0 || !state.waits_for_empty_hands());
            let commit_at = state.processed_since.map(|since| since + COMMIT_DELAY);
            let stores = !state.processed.is_empty()
                && (awaited
                    || ending
                    || state.processed.len() >= MAX_BATCH
                    || commit_at.is_some_and(|at| now >= at));
            let release_at = state.release_at(now);
            let releases = !state.ahead.is_empty()
                && (ending || holding || release_at.is_some_and(|at| now >= at));
            if awaited && !may_claim {
                // Nothing will arrive; the workers check why.
                self.claims_arrived.notify_all();
            }
            if claims || stores || releases {
                state = self.exchange(state, claims, releases);
            } else if over {
                return;
            } else {
                let until = commit_at.into_iter().chain(release_at).min();
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
        let mut released: Vec<Box<Claim>> = Vec::new();
        if releases {
            released.extend(state.ahead.drain(..));
            // Before the exchange: a worker that comes meanwhile must not find the run done.
            state.left = state.left.saturating_add(released.len());
            state.snapshot.rewind(&released);
            state.batch_size.reset(IDLE_CLAIM_LIMIT);
        }
        let want = if claims {
            (state.batch_size.next() * state.idle).min(MAX_BATCH).min(state.left)
        } else {
            0
        };
        let holds_nothing = state.in_hand == 0;
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
        let Exchanged { stored, claims } = match exchanged {
            Ok(exchanged) => exchanged,
            Err(error) => return self.fail(error),
        };
        for (processed, stored) in processed.into_iter().zip(stored) {
            self.report(processed, stored);
        }

        let mut state = lock(&self.state);
        if want > 0 {
            state.snapshot.advance(&claims);
            state.left -= claims.found.len().min(state.left);
            state.next = claims.next;
            state.holds_suspect = claims.found_suspect;
            state.ahead_moved = Instant::now();
            for (_, claimed) in claims.found {
                match claimed {
                    Claimed::Draft(claim) => state.ahead.push_back(claim),
                    Claimed::Unreadable { id, state } => self.report_damaged(id, state),
                }
            }
        }
        self.claims_arrived.notify_all();
        state
    }

    /// Try until the store has taken it. Results are kept for as long as this runner lives: behind
    /// one may be an hour of a model's work. What only claims is given up before long.
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
                    self.runner.forget_registration();
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
                if since.elapsed() >= LAST_TRIES {
                    return Err(error);
                }
            }
            if holds_results && (!busy || tries >= CLAIM_TRIES) {
                tracing::warn!(
                    target: "mimir.librarian.not_stored",
                    "results could not be stored yet; they are kept and tried again: {error}"
                );
            }
            // Not on the cancellation: the results are to be stored all the same.
            thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// The store failed: the run ends, and what it has claimed is left to be recovered.
    fn fail(&self, error: LibrarianError) -> MutexGuard<'_, State> {
        self.stopped_by(error);
        let mut state = lock(&self.state);
        state.stopped = true;
        state.abandoned = true;
        state.ahead.clear();
        self.claims_arrived.notify_all();
        state
    }

    fn stopped_by(&self, error: LibrarianError) {
        let mut report = lock(&self.report);
        if report.stopped_by.is_none() {
            report.stopped_by = Some(error);
        }
    }

    /// Report a draft that is durably where it belongs, or whose claim was lost.
    fn report(&self, Processed { claim, result }: Processed, stored: Stored) {
        let id = claim.draft().id();
        match (stored, &result) {
            (Stored::ClaimLost, _) => {
                tracing::warn!(
                    target: "mimir.librarian.lost_claim",
                    draft_id = %id,
                    "claim was lost; its late result changed nothing"
                );
                self.progress(|summary| summary.lost_claims += 1);
            }
            (Stored::Damaged, _) => self.report_error(id, "damaged"),
            (Stored::Moved, Ok(outcome)) => self.report_outcome(id, outcome),
            (Stored::Moved, Err(error)) if !error.is_charged() => {
                self.progress(|summary| summary.released += 1);
            }
            (Stored::Moved, Err(error)) => self.report_error(id, error.class()),
        }
        if let Err(error) = result
            && (self.runner.stop_at_error
                || (!error.is_charged() && !self.runner.cancellation.is_cancelled()))
        {
            self.stopped_by(error);
        }
    }

    fn report_outcome(&self, id: DraftId, outcome: &Outcome) {
        let decision = outcome.decision();
        self.progress(|summary| summary.add_decision(id, decision, self.runner.most_items));
        tracing::info!(
            target: "mimir.librarian.draft_processed",
            draft_id = %id,
            decision = decision.as_str(),
            final_state = decision.target_state().as_str(),
            "draft processed"
        );
    }

    fn report_error(&self, id: DraftId, class: &str) {
        tracing::warn!(
            target: "mimir.librarian.draft_error",
            draft_id = %id,
            class,
            "processor reached no decision"
        );
        self.progress(|summary| {
            summary.add_error(id, class, DraftState::Processing, self.runner.most_items);
        });
    }

    fn report_damaged(&self, id: DraftId, state: DraftState) {
        tracing::warn!(
            target: "mimir.librarian.draft_error",
            draft_id = %id,
            class = "damaged",
            "draft is damaged and was not processed"
        );
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.progress(|summary| summary.add_error(id, "damaged", state, self.runner.most_items));
    }

    fn progress(&self, change: impl FnOnce(&mut DraftRunSummary)) {
        let mut report = lock(&self.report);
        change(&mut report.summary);
        report.summary.claimed = self.begun.load(Ordering::Relaxed);
        self.runner.observe(&report.summary);
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
    fn is_done(&self) -> bool {
        self.left == 0 || self.snapshot.is_used_up()
    }

    /// Whether nothing may be claimed while a draft is in hand.
    fn waits_for_empty_hands(&self) -> bool {
        self.holds_suspect || self.next == Next::Suspect
    }

    /// When what was claimed ahead, if anything, is to be given back.
    fn release_at(&self, now: Instant) -> Option<Instant> {
        // A worker that waits has been told, and is about to come.
        let since = if self.idle > 0 { now } else { self.ahead_moved };
        (!self.ahead.is_empty()).then(|| since + IDLE_CLAIM_LIMIT)
    }
}

/// A worker's place in the run. It ends also when the processor panics, or when the worker's
/// thread was never started.
pub(super) struct Worker<'d, 'r>(&'d Dispatcher<'r>);

impl Worker<'_, '_> {
    /// Take a claim, ask the processor, hand in the result, until nothing is left.
    pub(super) fn work<P: DraftProcessor + ?Sized>(self, processor: &mut P) {
        let Self(dispatcher) = &self;
        while let Some(claim) = dispatcher.take_claim() {
            let mut in_hand = InHand { dispatcher, begun: Instant::now(), claim: Some(claim) };
            let result = match &in_hand.claim {
                Some(claim) => dispatcher.process(processor, claim.draft()),
                None => continue,
            };
            in_hand.hand_in(result);
        }
    }
}

impl Drop for Worker<'_, '_> {
    fn drop(&mut self) {
        let Self(dispatcher) = self;
        let mut state = lock(&dispatcher.state);
        state.workers -= 1;
        // The others finish what they have in hand; the panic is not to wait for the whole queue.
        state.stopped |= thread::panicking();
        dispatcher.writer_needed.notify_one();
    }
}

/// The draft that a worker processes. If the processor panics, that is the draft's error.
struct InHand<'w, 'r> {
    dispatcher: &'w Dispatcher<'r>,
    begun: Instant,
    claim: Option<Box<Claim>>,
}

impl InHand<'_, '_> {
    fn hand_in(&mut self, result: Result<Outcome, LibrarianError>) {
        if let Some(claim) = self.claim.take() {
            self.dispatcher.hand_in(Processed { claim, result }, self.begun.elapsed());
        }
    }
}

impl Drop for InHand<'_, '_> {
    fn drop(&mut self) {
        self.hand_in(Err(ProcessorError::new("panic", "the processor panicked").into()));
    }
}

/// The end of the writer thread. If it is by a panic (of an observer or a log's subscriber), the
/// workers must not wait for it.
struct WriterEnding<'d, 'r>(&'d Dispatcher<'r>);

impl Drop for WriterEnding<'_, '_> {
    fn drop(&mut self) {
        let Self(dispatcher) = self;
        lock(&dispatcher.state).stopped |= thread::panicking();
        dispatcher.claims_arrived.notify_all();
    }
}

fn wait<'t>(
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
