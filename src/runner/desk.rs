//! The desk between a run's workers and the store.
//!
//! Workers take claims from the desk and lay their verdicts on it. A clerk, a thread of its own,
//! carries both to the store and back: what was settled is stored and the next drafts are claimed
//! in one transaction. With a slow processor that is one draft at a time. With a fast one a
//! commit would cost a hundred times what the processor does, so drafts are claimed some ahead
//! and verdicts share a commit; they wait for each other a few milliseconds at the most, and are
//! reported only when they are durable.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Dispatch, Span, dispatcher};

use super::{DraftRunItem, DraftRunSummary, RunReport, Runner, lock};
use crate::database::retry_while_busy;
use crate::draft::DraftId;
use crate::error::LibrarianError;
use crate::processor::{DraftProcessor, Outcome};
use crate::store::claim::{Claim, Claimed, Exchanged, PendingSnapshot, Settled};

/// For how long a move is tried again while the database is busy: behind it may stand an hour of
/// a model's work.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);

/// How long a verdict waits for others to share its commit. The promise is 5 ms, and the clerk
/// may be woken late.
const SHARE: Duration = Duration::from_millis(4);

/// When no worker has come for what was claimed ahead for so long, it is given back, so that another
/// runner can take it.
const SLOW: Duration = Duration::from_millis(20);

/// How often a worker that holds looks whether the run was ended meanwhile.
const HOLD_LOOK: Duration = Duration::from_millis(100);

/// About how much work is claimed at once.
const BATCH_WORK: Duration = Duration::from_millis(5);

/// Most drafts that are claimed or settled at once: more would hold the database's one write lock
/// for longer than others should have to wait.
const MAX_BATCH: usize = 512;

/// One run of a runner, shared by its workers and the clerk.
pub(super) struct Desk<'r> {
    runner: &'r Runner,
    span: &'r Span,
    /// The log of the thread that began the run; it is the others' too.
    dispatch: Dispatch,
    tray: Mutex<Tray>,
    /// Workers wait here for claims.
    claims_in: Condvar,
    /// The clerk waits here for something to do.
    orders: Condvar,
    /// Drafts that a worker has begun.
    begun: AtomicUsize,
    report: Mutex<RunReport>,
}

/// What lies on the desk.
struct Tray {
    snapshot: PendingSnapshot,
    /// How many more drafts the limit allows.
    left: usize,
    /// An error ended the run: what is in hand is finished, nothing else is begun.
    stopped: bool,
    /// Claimed and not begun, in order.
    ahead: VecDeque<Box<Claim>>,
    /// When a claim was last laid there or taken from there.
    ahead_moved: Instant,
    settled: Vec<Settled>,
    /// Since when the first of them waits.
    settled_since: Option<Instant>,
    /// Workers that have not left.
    workers: usize,
    /// Workers that wait for a claim.
    idle: usize,
    pace: Pace,
    /// Whether claims were left behind that the store could not be told of.
    abandoned: bool,
}

impl<'r> Desk<'r> {
    pub(super) fn new(
        runner: &'r Runner,
        span: &'r Span,
        snapshot: PendingSnapshot,
        summary: DraftRunSummary,
        seats: usize,
    ) -> Self {
        Self {
            runner,
            span,
            dispatch: dispatcher::get_default(Clone::clone),
            tray: Mutex::new(Tray {
                snapshot,
                left: runner.limit.unwrap_or(usize::MAX),
                stopped: false,
                ahead: VecDeque::new(),
                ahead_moved: Instant::now(),
                settled: Vec::new(),
                settled_since: None,
                workers: seats,
                idle: 0,
                pace: Pace::default(),
                abandoned: false,
            }),
            claims_in: Condvar::new(),
            orders: Condvar::new(),
            begun: AtomicUsize::new(0),
            report: Mutex::new(RunReport { summary, stopped_by: None }),
        }
    }

    /// Do this with the log and within the span of the run, on whatever thread.
    pub(super) fn within_span<T>(&self, work: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.dispatch, || self.span.in_scope(work))
    }

    /// The seat of one worker. All seats are to be taken: the clerk waits until all are left.
    pub(super) fn seat(&self) -> Seat<'_, 'r> {
        Seat(self)
    }

    /// A thread of the run could not be started: the run ends.
    pub(super) fn cannot_start(&self, source: io::Error) {
        let path = self.runner.store.path().to_owned();
        self.stopped_by(LibrarianError::Io { doing: "start a worker for", path, source });
        lock(&self.tray).stopped = true;
    }

    fn next(&self) -> Option<Box<Claim>> {
        let mut tray = lock(&self.tray);
        loop {
            if tray.stopped || self.runner.cancellation.is_cancelled() {
                return None;
            }
            if tray.ahead.is_empty() && tray.is_done() {
                return None;
            }
            if let Some(until) = self.runner.held_until() {
                self.orders.notify_one();
                drop(tray);
                // Not to its end at once: an error may end the run before.
                let _ = self.runner.cancellation.wait_until(until.min(Instant::now() + HOLD_LOOK));
                tray = lock(&self.tray);
                continue;
            }
            if let Some(claim) = tray.ahead.pop_front() {
                tray.ahead_moved = Instant::now();
                self.begun.fetch_add(1, Ordering::Relaxed);
                return Some(claim);
            }
            tray.idle += 1;
            self.orders.notify_one();
            tray = wait(&self.claims_in, tray, None);
            tray.idle -= 1;
        }
    }

    fn settle(&self, settled: Settled, took: Duration) {
        let mut tray = lock(&self.tray);
        tray.pace.note(took);
        match &settled.verdict {
            Ok(outcome) => {
                if let Some(hold) = outcome.hold() {
                    self.runner.hold_for(hold);
                }
            }
            Err(_) => tray.stopped |= self.runner.stop_at_error,
        }
        tray.settled.push(settled);
        if tray.settled_since.is_none() {
            tray.settled_since = Some(Instant::now());
            self.orders.notify_one();
        }
    }

    /// The clerk: carry between desk and store until all workers have left.
    pub(super) fn serve(&self) {
        let _leaving = ClerkLeaving(self);
        let mut tray = lock(&self.tray);
        loop {
            let now = Instant::now();
            let over = tray.workers == 0;
            let ending = over || tray.stopped || self.runner.cancellation.is_cancelled();
            let holding = self.runner.held_until().is_some();
            let awaited = tray.idle > 0 && tray.ahead.is_empty();
            let claims = awaited && !ending && !holding && !tray.is_done();
            let share_until = tray.settled_since.map(|since| since + SHARE);
            let stores = !tray.settled.is_empty()
                && (awaited
                    || ending
                    || tray.settled.len() >= MAX_BATCH
                    || share_until.is_some_and(|until| now >= until));
            let slow_at = tray.slow_at(now);
            let releases = !tray.ahead.is_empty()
                && (ending || holding || slow_at.is_some_and(|slow| now >= slow));
            if awaited && !claims {
                // There is nothing to wait for; the workers see why.
                self.claims_in.notify_all();
            }
            if claims || stores || releases {
                tray = self.exchange(tray, claims, releases);
            } else if over {
                return;
            } else {
                tray = wait(&self.orders, tray, share_until.into_iter().chain(slow_at).min());
            }
        }
    }

    /// One trip to the store. The desk is free meanwhile.
    fn exchange<'t>(
        &'t self,
        mut tray: MutexGuard<'t, Tray>,
        claims: bool,
        releases: bool,
    ) -> MutexGuard<'t, Tray> {
        let settled = std::mem::take(&mut tray.settled);
        tray.settled_since = None;
        let mut released: Vec<Box<Claim>> = Vec::new();
        if releases {
            released.extend(tray.ahead.drain(..));
            // Before the trip: a worker that comes meanwhile must not take the run for done.
            tray.left = tray.left.saturating_add(released.len());
            tray.snapshot.take_back(&released);
            tray.pace.slow_down();
        }
        let want =
            if claims { (tray.pace.batch() * tray.idle).min(MAX_BATCH).min(tray.left) } else { 0 };
        let snapshot = tray.snapshot.clone();
        drop(tray);

        let exchange = || {
            let registration = self.runner.registration()?;
            let store = &self.runner.store;
            let began = Instant::now();
            retry_while_busy(
                || began.elapsed() < BUSY_PATIENCE,
                || store.exchange(&registration, &settled, &released, &snapshot, want),
            )
        };
        let exchanged = match exchange() {
            Err(LibrarianError::RunnerEnded { .. }) => {
                self.runner.forget_registration();
                exchange()
            }
            exchanged => exchanged,
        };
        let Exchanged { held, claimed } = match exchanged {
            Ok(exchanged) => exchanged,
            Err(error) => return self.fail(error),
        };
        for (settled, held) in settled.into_iter().zip(held) {
            self.report(settled, held);
        }

        let mut tray = lock(&self.tray);
        if want > 0 {
            tray.snapshot.pass(&claimed);
            tray.left -= claimed.len().min(tray.left);
            tray.ahead_moved = Instant::now();
            for (_, claimed) in claimed {
                match claimed {
                    Claimed::Draft(claim) => tray.ahead.push_back(claim),
                    Claimed::Unreadable(id) => self.report_unreadable(id),
                }
            }
        }
        self.claims_in.notify_all();
        tray
    }

    /// The store failed: the run ends, and what it has claimed is left to be recovered.
    fn fail(&self, error: LibrarianError) -> MutexGuard<'_, Tray> {
        self.stopped_by(error);
        let mut tray = lock(&self.tray);
        tray.stopped = true;
        tray.abandoned = true;
        tray.ahead.clear();
        self.claims_in.notify_all();
        tray
    }

    fn stopped_by(&self, error: LibrarianError) {
        let mut report = lock(&self.report);
        if report.stopped_by.is_none() {
            report.stopped_by = Some(error);
        }
    }

    /// Tell of a draft that is durably where it belongs, or whose claim was lost.
    fn report(&self, Settled { claim, verdict }: Settled, held: bool) {
        let id = claim.draft().id();
        match &verdict {
            _ if !held => {
                tracing::warn!(
                    target: "mimir.librarian.lost_claim",
                    draft_id = %id,
                    "claim was lost; its late result changed nothing"
                );
                self.progress(|summary| summary.lost_claims += 1);
            }
            Ok(outcome) => self.report_outcome(id, outcome),
            Err(error) => {
                tracing::warn!(
                    target: "mimir.librarian.draft_error",
                    draft_id = %id,
                    class = error.class(),
                    "processor came to no decision"
                );
                self.progress(|summary| summary.errors += 1);
            }
        }
        if let Err(error) = verdict
            && self.runner.stop_at_error
        {
            self.stopped_by(error);
        }
    }

    fn report_outcome(&self, id: DraftId, outcome: &Outcome) {
        let decision = outcome.decision();
        let final_state = decision.target_state().dir_name();
        self.progress(|summary| {
            summary.count(decision);
            if summary.items.len() < self.runner.most_items {
                let final_state = final_state.to_owned();
                summary.items.push(DraftRunItem { id: id.to_hex(), decision, final_state });
            } else {
                summary.items_left_out += 1;
            }
        });
        tracing::info!(
            target: "mimir.librarian.draft_processed",
            draft_id = %id,
            decision = decision.as_str(),
            final_state,
            "draft processed"
        );
    }

    fn report_unreadable(&self, id: DraftId) {
        tracing::warn!(
            target: "mimir.librarian.draft_error",
            draft_id = %id,
            class = "unreadable",
            "draft could not be read back"
        );
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.progress(|summary| summary.errors += 1);
    }

    fn progress(&self, change: impl FnOnce(&mut DraftRunSummary)) {
        let mut report = lock(&self.report);
        change(&mut report.summary);
        report.summary.claimed = self.begun.load(Ordering::Relaxed);
        self.runner.observe(&report.summary);
    }

    /// The end: what the run did.
    pub(super) fn close(self) -> RunReport {
        let tray = self.tray.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        let summary = &mut report.summary;
        summary.claimed = self.begun.into_inner();
        if tray.abandoned {
            self.runner.forget_registration();
        } else if tray.snapshot.is_used_up() {
            summary.claim_misses = summary.pending_seen.saturating_sub(summary.claimed);
        }
        report
    }
}

impl Tray {
    /// Whether no more can be claimed.
    fn is_done(&self) -> bool {
        self.left == 0 || self.snapshot.is_used_up()
    }

    /// When what was claimed ahead, if anything, will have lain there for too long.
    fn slow_at(&self, now: Instant) -> Option<Instant> {
        // A worker that waits has been told, and is on its way.
        let since = if self.idle > 0 { now } else { self.ahead_moved };
        (!self.ahead.is_empty()).then(|| since + SLOW)
    }
}

/// A worker's seat. It is left also when the processor panics, or the worker never came.
pub(super) struct Seat<'d, 'r>(&'d Desk<'r>);

impl Seat<'_, '_> {
    /// Take a claim, ask the processor, lay down the verdict, until nothing is left.
    pub(super) fn work<P: DraftProcessor + ?Sized>(self, processor: &mut P) {
        let Self(desk) = &self;
        while let Some(claim) = desk.next() {
            let begun = Instant::now();
            let verdict = processor.process_to_outcome(claim.draft());
            desk.settle(Settled { claim, verdict }, begun.elapsed());
        }
    }
}

impl Drop for Seat<'_, '_> {
    fn drop(&mut self) {
        let Self(desk) = self;
        let mut tray = lock(&desk.tray);
        tray.workers -= 1;
        // The others finish what they have in hand; the panic is not to wait for the whole queue.
        tray.stopped |= thread::panicking();
        desk.orders.notify_one();
    }
}

/// The clerk's leave. If it is by a panic (of an observer or a log's subscriber), the workers must
/// not wait for it.
struct ClerkLeaving<'d, 'r>(&'d Desk<'r>);

impl Drop for ClerkLeaving<'_, '_> {
    fn drop(&mut self) {
        let Self(desk) = self;
        lock(&desk.tray).stopped |= thread::panicking();
        desk.claims_in.notify_all();
    }
}

/// How fast the processors are, and so how many drafts are claimed at once.
#[derive(Debug, Default)]
struct Pace {
    /// A moving average of what a draft takes.
    per_draft: Option<Duration>,
    last_batch: usize,
}

impl Pace {
    fn note(&mut self, took: Duration) {
        self.per_draft = Some(match self.per_draft {
            None => took,
            Some(average) => (average * 7 + took) / 8,
        });
    }

    /// Something took long of a sudden: begin again with one.
    fn slow_down(&mut self) {
        *self = Self { per_draft: Some(SLOW), last_batch: 1 };
    }

    /// How many drafts a worker should be given: about 5 ms of work, and not many more than the
    /// last time.
    fn batch(&mut self) -> usize {
        let Some(per_draft) = self.per_draft else { return 1 };
        let fitting = BATCH_WORK.as_nanos() / per_draft.as_nanos().max(1);
        let fitting = usize::try_from(fitting).unwrap_or(MAX_BATCH);
        self.last_batch = fitting.clamp(1, self.last_batch.max(1) * 8).min(MAX_BATCH);
        self.last_batch
    }
}

fn wait<'t>(
    condvar: &Condvar,
    tray: MutexGuard<'t, Tray>,
    until: Option<Instant>,
) -> MutexGuard<'t, Tray> {
    let Some(until) = until else {
        return condvar.wait(tray).unwrap_or_else(PoisonError::into_inner);
    };
    let left = until.saturating_duration_since(Instant::now());
    condvar.wait_timeout(tray, left).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_grows_with_the_pace_and_a_slow_processor_gets_one() {
        let mut pace = Pace::default();
        assert_eq!(pace.batch(), 1, "nothing is known yet");
        pace.note(Duration::from_micros(5));
        let batches: Vec<usize> = (0..5).map(|_| pace.batch()).collect();
        assert_eq!(batches, [8, 64, 512, 512, 512]);
        for _ in 0..200 {
            pace.note(Duration::from_millis(6));
        }
        assert_eq!(pace.batch(), 1);
        pace.slow_down();
        assert_eq!(pace.batch(), 1);
    }
}
