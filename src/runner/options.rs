//! A runner, its options and its registration.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::cancellation::Cancellation;
use super::lock::lock;
use super::summary::DraftRunSummary;
use crate::error::LibrarianError;
use crate::filter::DraftFilter;
use crate::store::DraftStore;
use crate::store::registration::{DEFAULT_MAX_ERRORS, RunnerInfo, RunnerRegistration};

/// The age in seconds at which a claim without an owner is recovered.
pub const DEFAULT_PROCESSING_STALE_SECS: u64 = 900;

/// How many seconds a run waits for the end of a hold if not set.
pub const DEFAULT_HOLD_WAIT_SECS: u64 = 10;

type Observer = Box<dyn Fn(&DraftRunSummary) + Send + Sync>;

/// Runs processors over a store's drafts, with as many workers as there are processors.
///
/// A runner registers with the store at its first claim and stays registered until it is dropped.
/// While it lives, no other runner recovers its claims, however long its processors take.
#[must_use = "a runner does nothing until it is run"]
pub struct Runner {
    pub(super) store: DraftStore,
    pub(super) processor: String,
    pub(super) stale_after: Duration,
    pub(super) max_errors: u32,
    pub(super) backs_off: bool,
    pub(super) limit: Option<usize>,
    pub(super) stop_at_error: bool,
    pub(super) max_items: usize,
    pub(super) cancellation: Cancellation,
    pub(super) observer: Option<Observer>,
    pub(super) registration: Mutex<Option<Arc<RunnerRegistration>>>,
    pub(super) filter: DraftFilter,
    pub(super) hold_wait: Duration,
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
    /// A runner over this store. `processor` is the name of the processor in the `runners` table, and
    /// the name by which holds concern it.
    pub fn new(store: &DraftStore, processor: &str) -> Self {
        Self {
            store: store.clone(),
            processor: processor.to_owned(),
            stale_after: Duration::from_secs(DEFAULT_PROCESSING_STALE_SECS),
            max_errors: DEFAULT_MAX_ERRORS,
            backs_off: false,
            limit: None,
            stop_at_error: false,
            max_items: usize::MAX,
            cancellation: Cancellation::default(),
            observer: None,
            registration: Mutex::new(None),
            filter: DraftFilter::default(),
            hold_wait: Duration::from_secs(DEFAULT_HOLD_WAIT_SECS),
        }
    }

    /// The age at which a claim without an owner is recovered; 900 s if not set.
    pub fn stale_after(self, stale_after: Duration) -> Self {
        Self { stale_after, ..self }
    }

    /// How many errors and crashes a draft may have under this runner before it goes to `failed`; 5
    /// if not set, 0 for no limit.
    pub fn max_errors(self, max_errors: u32) -> Self {
        Self { max_errors, ..self }
    }

    /// Whether a draft that is deferred repeatedly without a delay waits longer each time (30 s,
    /// doubling, up to an hour). For a runner that runs repeatedly.
    pub fn backs_off(self, backs_off: bool) -> Self {
        Self { backs_off, ..self }
    }

    /// Claim at most this many drafts in a run, over all workers.
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Whether a processor's error ends the run. If not (the default), the error is recorded and
    /// the run continues.
    pub fn stop_at_error(self, stop_at_error: bool) -> Self {
        Self { stop_at_error, ..self }
    }

    /// How many drafts the summary lists; all by default, and then its memory grows with the run.
    pub fn max_items(self, max_items: usize) -> Self {
        Self { max_items, ..self }
    }

    /// Let this end the run early.
    pub fn cancellation(self, cancellation: Cancellation) -> Self {
        Self { cancellation, ..self }
    }

    /// Claim only drafts that pass the filter, so that several processors share one inbox, each with
    /// its own drafts; all if not set. Recovery concerns all drafts.
    pub fn filter(self, filter: DraftFilter) -> Self {
        Self { filter, ..self }
    }

    /// How long a run waits for the end of a [`Hold`](crate::Hold) before it ends; 10 s if not set. A
    /// [`watch`](Self::watch) waits for as long as the hold lasts.
    pub fn hold_wait(self, hold_wait: Duration) -> Self {
        Self { hold_wait, ..self }
    }

    /// Call this with the progress of the run: when the number of pending drafts is known, and
    /// after each draft. It is called on threads of the run, one at a time; a slow observer slows
    /// the run.
    pub fn observer(self, observer: impl Fn(&DraftRunSummary) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Box::new(observer)), ..self }
    }

    pub(super) fn registration(&self) -> Result<Arc<RunnerRegistration>, LibrarianError> {
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

    /// Drop the registration, so that claims that were left behind under it can be recovered: until
    /// then the runner counts as alive. The next claim registers again.
    pub(super) fn drop_registration(&self) {
        *lock(&self.registration) = None;
    }

    pub(super) fn observe(&self, summary: &DraftRunSummary) {
        if let Some(observer) = &self.observer {
            observer(summary);
        }
    }
}
