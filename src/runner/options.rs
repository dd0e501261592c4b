//! A runner, its options and its registration.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::cancellation::Cancellation;
use super::lock::lock;
use super::summary::DraftRunSummary;
use crate::error::LibrarianError;
use crate::outcome::MAX_DELAY;
use crate::store::DraftStore;
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
    pub(super) store: DraftStore,
    pub(super) processor: String,
    pub(super) stale_after: Duration,
    pub(super) max_errors: u32,
    pub(super) backs_off: bool,
    pub(super) limit: Option<usize>,
    pub(super) stop_at_error: bool,
    pub(super) most_items: usize,
    pub(super) cancellation: Cancellation,
    pub(super) observer: Option<Observer>,
    pub(super) registration: Mutex<Option<Arc<RunnerRegistration>>>,
    /// No claim is made before this: a processor asked the runner to hold.
    pub(super) hold_until: Mutex<Option<Instant>>,
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

    /// Let the registration go. Claims that are left behind under it can be taken back then: as
    /// long as it stands the runner counts as alive. The next claim makes another.
    pub(super) fn forget_registration(&self) {
        *lock(&self.registration) = None;
    }

    pub(super) fn observe(&self, summary: &DraftRunSummary) {
        if let Some(observer) = &self.observer {
            observer(summary);
        }
    }

    /// Until when a processor asked the runner to hold, if that is still to come.
    pub(super) fn held_until(&self) -> Option<Instant> {
        lock(&self.hold_until).filter(|until| *until > Instant::now())
    }

    pub(super) fn hold_for(&self, hold: Duration) {
        let until = Instant::now().checked_add(hold.min(MAX_DELAY));
        let mut hold_until = lock(&self.hold_until);
        *hold_until = (*hold_until).max(until);
    }
}
