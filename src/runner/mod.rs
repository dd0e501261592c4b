//! The mechanics of a run: recover what a dead run left, claim, ask the processor, move the
//! draft on. The judgement is the processor's ([`DraftProcessor`]).

mod batch;
mod cancellation;
mod dispatcher;
mod summary;
mod wait;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::field;

pub use self::cancellation::Cancellation;
use self::dispatcher::Dispatcher;
use self::summary::record;
pub use self::summary::{DraftRunError, DraftRunItem, DraftRunSummary, RunReport};
pub use self::wait::{Waiter, Wake};
pub use self::watch::WatchEvent;
use crate::error::LibrarianError;
use crate::outcome::MAX_DELAY;
use crate::processor::DraftProcessor;
use crate::store::DraftStore;
use crate::store::claim::PendingSnapshot;
use crate::store::registration::{DEFAULT_MAX_ERRORS, RunnerInfo, RunnerRegistration};

/// Age in seconds after which a claim that has no owner is taken back.
pub const DEFAULT_PROCESSING_STALE_SECS: u64 = 900;

type Observer = Box<dyn Fn(&DraftRunSummary) + Send + Sync>;

/// Runs processors over a store's drafts, with as many workers as there are processors.
///
/// A runner registers itself with the store at its first claim and stays registered until it is
/// dropped; while it lives, nobody takes its claims, however long its processors take.
#[must_use = "a runner does nothing until it is run"]
pub struct Runner {
    store: DraftStore,
    processor: String,
    stale_after: Duration,
    max_errors: u32,
    backs_off: bool,
    limit: Option<usize>,
    stop_at_error: bool,
    most_items: usize,
    cancellation: Cancellation,
    observer: Option<Observer>,
    registration: Mutex<Option<Arc<RunnerRegistration>>>,
    /// No claim is made before this: a processor asked the runner to hold.
    hold_until: Mutex<Option<Instant>>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("store", &self.store.path())
            .field("processor", &self.processor)
            .field("stale_after", &self.stale_after)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Runner {
    /// A runner over this store; `processor` is the word for what it runs that others see in the
    /// `runners` table.
    pub fn new(store: &DraftStore, processor: &str) -> Self {
        Self {
            store: store.clone(),
            processor: processor.to_owned(),
            stale_after: Duration::from_secs(DEFAULT_PROCESSING_STALE_SECS),
            max_errors: DEFAULT_MAX_ERRORS,
            backs_off: false,
            limit: None,
            stop_at_error: false,
            most_items: usize::MAX,
            cancellation: Cancellation::default(),
            observer: None,
            registration: Mutex::new(None),
            hold_until: Mutex::new(None),
        }
    }

    /// How old a claim without an owner must be to be taken back; 900 s if not given.
    pub fn stale_after(self, stale_after: Duration) -> Self {
        Self { stale_after, ..self }
    }

    /// How many errors and crashes a draft may have under this runner before it goes to `failed`;
    /// 5 if not given, 0 for no limit.
    pub fn max_errors(self, max_errors: u32) -> Self {
        Self { max_errors, ..self }
    }

    /// Whether a draft that is deferred again and again without a delay waits longer each time
    /// (30 s, doubling, to an hour at most). For a runner that runs again and again.
    pub fn backs_off(self, backs_off: bool) -> Self {
        Self { backs_off, ..self }
    }

    /// Claim at most this many drafts in a run, over all workers.
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Whether a processor's error ends the run; if not (the default), it is recorded and the
    /// run goes on.
    pub fn stop_at_error(self, stop_at_error: bool) -> Self {
        Self { stop_at_error, ..self }
    }

    /// How many drafts the summary lists one by one; all by default, and then its memory grows
    /// with the run.
    pub fn most_items(self, most_items: usize) -> Self {
        Self { most_items, ..self }
    }

    /// End early when this is asked for.
    pub fn cancellation(self, cancellation: Cancellation) -> Self {
        Self { cancellation, ..self }
    }

    /// Be told how far the run is: when it knows what is pending, and after each draft. Called
    /// on threads of the run, one at a time; a slow observer slows it.
    pub fn observer(self, observer: impl Fn(&DraftRunSummary) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Box::new(observer)), ..self }
    }

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
            [processor] => dispatcher.worker().work(processor),
            processors => thread::scope(|scope| {
                for processor in processors {
                    let worker = dispatcher.worker();
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
        self.conduct(now, 1, |dispatcher| dispatcher.worker().work(processor))
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
        if lock(&self.registration).as_ref().is_some_and(|registration| !registration.is_in_place())
        {
            self.forget_registration();
        }
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

    fn registration(&self) -> Result<Arc<RunnerRegistration>, LibrarianError> {
        let mut registration = lock(&self.registration);
        if let Some(registration) = &*registration {
            return Ok(Arc::clone(registration));
        }
        let new = Arc::new(self.store.register_runner(
            RunnerInfo::new(&self.processor).max_errors(self.max_errors).backs_off(self.backs_off),
        )?);
        *registration = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Let the registration go. Claims that are left behind under it can be taken back then: as
    /// long as it stands the runner counts as alive. The next claim makes another.
    fn forget_registration(&self) {
        *lock(&self.registration) = None;
    }

    fn observe(&self, summary: &DraftRunSummary) {
        if let Some(observer) = &self.observer {
            observer(summary);
        }
    }

    /// Until when a processor asked the runner to hold, if that is still to come.
    fn held_until(&self) -> Option<Instant> {
        lock(&self.hold_until).filter(|until| *until > Instant::now())
    }

    fn hold_for(&self, hold: Duration) {
        let until = Instant::now().checked_add(hold.min(MAX_DELAY));
        let mut hold_until = lock(&self.hold_until);
        *hold_until = (*hold_until).max(until);
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

/// A poisoned lock means that a processor panicked in another worker; the numbers behind it are
/// whole, because none of ours panics while it changes them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
