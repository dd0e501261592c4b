//! One run: recover claims, read which drafts are pending, and process them.

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
    /// One run over the drafts that are pending now, with one worker per processor.
    ///
    /// `now` is for the stale cutoff alone: claims without an owner that were made at or before
    /// `now - stale_after`, but not before the epoch, are recovered. All stamps come from the
    /// store's clock.
    ///
    /// While a processor takes less than a few milliseconds, some drafts are claimed ahead, and the
    /// moves of several drafts share a commit. No move waits for others for longer than 5 ms, and
    /// none is reported before it is durable. After a crash, drafts whose move was not durable are
    /// processed again.
    ///
    /// While a [`Hold`](crate::Hold) is in force for the processor, nothing is claimed; drafts that
    /// workers are processing are finished. The run waits for the end of the hold
    /// ([`hold_wait`](Self::hold_wait)), and then ends; [`DraftRunSummary::hold`] says so.
    ///
    /// # Panics
    ///
    /// If a processor or the observer panics. The other workers finish their drafts first. The
    /// panicking processor's draft stays in processing with the panic as its error, and is
    /// recovered later.
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

    /// The parts of every run: the span, recovery, the snapshot, and the end.
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
        if lock(&self.registration).as_ref().is_some_and(|registration| !registration.is_in_place())
        {
            self.drop_registration();
        }
        self.store.check_runners_directory(lock(&self.registration).is_some())?;
        let stale_before = now.checked_sub(self.stale_after).unwrap_or(SystemTime::UNIX_EPOCH);
        let recovery = self.store.recover(stale_before)?;
        summary.recovered_processing = recovery.to_pending.len();
        summary.exhausted = recovery.to_failed.len();
        self.store.release_due_of(&self.filter)?;
        let snapshot = self.store.filtered_snapshot(&self.filter)?;
        summary.pending_seen = snapshot.pending_seen();
        Ok(snapshot)
    }
}

/// Ends the registration after a panic: a panic leaves claims behind, and its caller may catch it
/// and keep the runner.
struct Abandoning<'r>(&'r Runner);

impl Drop for Abandoning<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.drop_registration();
        }
    }
}

/// Run a processor once over the drafts that are pending, on this thread.
///
/// Recovers abandoned claims (of dead runners, and those without an owner that were made at or
/// before `now - stale_after`), reads which drafts are pending then, and claims, processes and
/// moves them one by one, in order of submission. Drafts that are submitted later, or that this run
/// deferred, are left for the next run. Drafts that another runner claims first are counted as
/// `claim_misses`. The name of the processor is `library`; during a hold it waits for at most 10 s,
/// then ends ([`DraftRunSummary::hold`]).
///
/// # Errors
///
/// A processor's error ends the run with that error; the draft stays in `processing` with the error
/// stored, and is tried again once its claim is stale. Errors of the database end the run too.
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
