//! One run: recover, read what is pending, and process it.

use std::thread;
use std::time::{Duration, SystemTime};

use tracing::field;

use super::dispatcher::Dispatcher;
use super::lock::lock;
use super::options::Runner;
use super::summary::{DraftRunSummary, RunReport, record};
use super::worker::Worker;
use crate::error::LibrarianError;
use crate::processor::DraftProcessor;
use crate::store::DraftStore;
use crate::store::snapshot::PendingSnapshot;

impl Runner {
    /// One run over what is pending now, with one worker per processor.
    ///
    /// `now` is for the stale cutoff alone: what was claimed at or before `now - stale_after`,
    /// but not before the epoch. All stamps come from the store's clock.
    ///
    /// While a processor takes less than a few milliseconds, drafts are claimed some ahead, and
    /// the moves of several drafts share a commit; none waits for others for longer than 5 ms, and
    /// none is reported before it is durable. What a crash takes with it is processed again.
    ///
    /// # Panics
    ///
    /// If a processor or the observer does. The drafts in the other workers' hands are finished
    /// first; the one that was in hand goes back at the next run, its panic counted as an error.
    pub fn run<P: DraftProcessor + Send>(
        &self,
        processors: &mut [P],
        now: SystemTime,
    ) -> RunReport {
        let workers = processors.len();
        self.conduct(now, workers, |dispatcher| match processors {
            [] => {}
            [processor] => Worker::new(dispatcher).work(processor),
            processors => thread::scope(|scope| {
                for processor in processors {
                    let worker = Worker::new(dispatcher);
                    let work = move || dispatcher.within_span(|| worker.work(processor));
                    if let Err(error) = thread::Builder::new().spawn_scoped(scope, work) {
                        dispatcher.cannot_start(error);
                    }
                }
            }),
        })
    }

    /// One run with one worker, on this thread; otherwise as [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn run_one<P: DraftProcessor>(&self, processor: &mut P, now: SystemTime) -> RunReport {
        self.conduct(now, 1, |dispatcher| Worker::new(dispatcher).work(processor))
    }

    /// What is the same for every run: the span, recovery, the snapshot, and the end.
    fn conduct(
        &self,
        now: SystemTime,
        workers: usize,
        work: impl FnOnce(&Dispatcher<'_>),
    ) -> RunReport {
        let span = tracing::info_span!(
            target: "mimir.librarian.run",
            "mimir.librarian.run",
            recovered_processing = field::Empty,
            pending_seen = field::Empty,
            claimed = field::Empty,
            accepted = field::Empty,
            skipped = field::Empty,
            failed = field::Empty,
            quarantined = field::Empty,
            deferred = field::Empty,
            claim_misses = field::Empty,
        );
        let _entered = span.enter();
        let mut summary = DraftRunSummary::default();
        let prepared = self.prepare(now, &mut summary);
        record(&span, &summary);
        let report = match prepared {
            Err(error) => RunReport { summary, stopped_by: Some(error) },
            Ok(snapshot) => {
                self.observe(&summary);
                match snapshot.is_used_up() || workers == 0 {
                    true => RunReport { summary, stopped_by: None },
                    false => {
                        let _abandoning = Abandoning(self);
                        let dispatcher = Dispatcher::new(self, &span, snapshot, summary, workers);
                        thread::scope(|scope| {
                            let write = || dispatcher.within_span(|| dispatcher.write());
                            match thread::Builder::new().spawn_scoped(scope, write) {
                                Ok(_) => work(&dispatcher),
                                Err(error) => dispatcher.cannot_start(error),
                            }
                        });
                        dispatcher.close()
                    }
                }
            }
        };
        record(&span, &report.summary);
        report
    }

    fn prepare(
        &self,
        now: SystemTime,
        summary: &mut DraftRunSummary,
    ) -> Result<PendingSnapshot, LibrarianError> {
        self.store.check_file()?;
        self.store.check_runners_directory(lock(&self.registration).is_some())?;
        let stale_before = now.checked_sub(self.stale_after).unwrap_or(SystemTime::UNIX_EPOCH);
        let recovery = self.store.recover(stale_before)?;
        summary.recovered_processing = recovery.to_pending.len();
        summary.exhausted = recovery.to_failed.len();
        self.store.release_due()?;
        let snapshot = self.store.pending_snapshot()?;
        summary.pending_seen = snapshot.pending_seen();
        Ok(snapshot)
    }
}

/// A panic in a run leaves claims behind, and its caller may catch it and keep the runner.
struct Abandoning<'r>(&'r Runner);

impl Drop for Abandoning<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.forget_registration();
        }
    }
}

/// Run a processor once over what is pending, on this thread.
///
/// Takes back what dead runs left (claimed at or before `now - stale_after`, or by a runner that
/// is dead), looks at what is pending then, and claims, processes and moves those drafts one by
/// one, first in, first out. What comes in later, and what this run deferred, is left for the
/// next. Drafts that another runner takes first are counted as `claim_misses`.
///
/// # Errors
///
/// A processor's error ends the run with that error; the draft stays in `processing` with the
/// error on record and is tried again once its claim is stale. Errors of the database end it too.
pub fn run_once<P: DraftProcessor>(
    store: &DraftStore,
    processor: &mut P,
    now: SystemTime,
    stale_after: Duration,
) -> Result<DraftRunSummary, LibrarianError> {
    Runner::new(store, "library")
        .stale_after(stale_after)
        .stop_at_error(true)
        .run_one(processor, now)
        .into_result()
}
