//! Waiting for work.
//!
//! Five things wake a waiting runner. A **notification**: a process that submits or requeues wakes
//! one waiting runner for each draft, within some ten microseconds (`store/wakeup.rs`). The **end
//! of a runner**: the kernel closes its lock file, which inotify reports. A **due time**, which is
//! known beforehand. The **end of a hold**: while a hold is in force, nothing else wakes a runner. And
//! **polling**, for writers that do not notify, such as a SQL shell: a cheap query for the end of the
//! history, twice a second.

use std::time::{Duration, Instant};

use super::cancellation::Cancellation;
use crate::error::LibrarianError;
use crate::filter::DraftFilter;
use crate::store::DraftStore;
use crate::store::new_work::Seeker;
use crate::store::wakeup::{Event, Listener};

/// How often to poll for new work of writers that do not notify, for a hold, and for a cancellation.
///
/// A draft that a poll finds was most often submitted a moment ago, and another runner was woken
/// for it. So this runner begins only if the next poll finds a draft that was there at this one:
/// otherwise a crowd of waiting runners begins a run for each draft.
const POLL_INTERVAL: Duration = Duration::from_millis(450);

/// How often to test whether the other runners are alive, and whether another file is at the
/// database's path. Every second poll checks, so that a waiting runner wakes up no more often.
const CHECK_INTERVAL: Duration = Duration::from_millis(900);

/// The kernel reports that a lock file was closed a moment before it frees the lock.
const LOCK_RELEASE: Duration = Duration::from_millis(2);

/// A wait that is longer than any other.
const FAR: Duration = Duration::from_secs(86_400);

/// What a wait knows of the work to come.
struct Polling {
    /// When to look for new work.
    next: Instant,
    /// When the next delayed draft is due.
    due: Option<Instant>,
    /// Whether the next poll begins with any draft that it finds. True at first, because nobody may
    /// have been woken for what was submitted before this wait.
    begin_at_once: bool,
    /// The seq of the last draft that the last poll found.
    last_seen: Option<i64>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wake {
    /// There may be something to do.
    Work,
    /// The deadline has passed.
    Deadline,
    /// The cancellation was requested.
    Cancelled,
    /// The store's file is no longer at its path.
    Replaced,
}

/// Waits for work on one store.
///
/// A draft that is submitted during a run ends the wait after it: call [`mark`](Self::mark) before
/// each run.
#[derive(Debug)]
pub struct Waiter {
    store: DraftStore,
    listener: Option<Listener>,
    seeker: Seeker,
    mark: i64,
    next_check: Instant,
    /// A hold was in force when it was last looked for.
    on_hold: bool,
}

impl Waiter {
    /// Begin to listen. If inotify is not available (its limits are per user), polling alone finds
    /// new work.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; [`LibrarianError::CannotCreate`]
    /// and [`LibrarianError::Untrusted`] if the runners directory cannot be used.
    pub fn new(store: &DraftStore) -> Result<Self, LibrarianError> {
        let listener = store.listen()?;
        let mut waiter = Self {
            store: store.clone(),
            listener,
            seeker: Seeker::default(),
            mark: 0,
            next_check: Instant::now(),
            on_hold: false,
        };
        waiter.mark()?;
        Ok(waiter)
    }

    /// Wait for a processor of this name, and so for the end of its holds. If not set, only holds for
    /// all processors are heeded.
    #[must_use]
    pub fn processor(mut self, name: &str) -> Self {
        name.clone_into(&mut self.seeker.processor);
        self
    }

    /// Wait for drafts that pass the filter; all if not set.
    #[must_use]
    pub fn filter(self, filter: DraftFilter) -> Self {
        Self { seeker: Seeker { filter, ..self.seeker }, ..self }
    }

    /// The last run met a hold, so the end of the hold ends the next wait, also if it is over already.
    pub(super) fn expect_end_of_hold(&mut self) {
        self.on_hold = true;
    }

    /// Ignore everything that happened up to now. Call it before each run.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn mark(&mut self) -> Result<(), LibrarianError> {
        if self.listener.is_none() {
            self.listener = self.store.listen()?;
        }
        // No event is newer than the largest number.
        self.mark = self.store.new_work(&self.seeker, i64::MAX)?.last_event;
        Ok(())
    }

    /// Wait until there may be work, until the deadline, or until the cancellation is requested.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; [`LibrarianError::Untrusted`] if
    /// the file must not be used any more, because it was given a second name, for example.
    pub fn wait(
        &mut self,
        deadline: Instant,
        cancellation: &Cancellation,
    ) -> Result<Wake, LibrarianError> {
        let ended = self.wait_for_work(deadline, cancellation);
        if self.listener.as_mut().is_some_and(Listener::end) {
            match ended {
                Ok(Wake::Work) => {}
                Ok(Wake::Deadline) => return Ok(Wake::Work),
                // This runner does not run now, so another one must.
                Ok(Wake::Cancelled | Wake::Replaced) | Err(_) => self.store.notify(1),
            }
        }
        ended
    }

    fn wait_for_work(
        &mut self,
        deadline: Instant,
        cancellation: &Cancellation,
    ) -> Result<Wake, LibrarianError> {
        let mut polling =
            Polling { next: Instant::now(), due: None, begin_at_once: true, last_seen: None };
        if !self.seeker.filter.is_empty() {
            let due = self.store.next_due_ms(&self.seeker.filter)?;
            polling.due = due.map(|due_ms| self.instant_of(due_ms));
        }
        loop {
            let now = Instant::now();
            if cancellation.is_cancelled() {
                return Ok(Wake::Cancelled);
            }
            if now >= deadline {
                return Ok(Wake::Deadline);
            }
            // While a hold is in force, a due draft is no work.
            let due = polling.due.filter(|_| !self.on_hold);
            if due.is_some_and(|due| now >= due) {
                return Ok(Wake::Work);
            }
            if now >= polling.next && self.poll(&mut polling, now)? {
                return Ok(Wake::Work);
            }
            if now >= self.next_check {
                self.next_check = now + CHECK_INTERVAL;
                if !self.store.is_current() {
                    return Ok(Wake::Replaced);
                }
                self.store.check_file()?;
                if self.store.has_dead_runner()? {
                    return Ok(Wake::Work);
                }
            }
            let due = polling.due.filter(|_| !self.on_hold);
            let until = [Some(deadline), due, Some(polling.next), Some(self.next_check)];
            let until = until.into_iter().flatten().min().unwrap_or(deadline);
            match self.wait_for_event(until) {
                Event::Woken => {
                    polling.begin_at_once = true;
                    polling.next = Instant::now();
                }
                Event::RunnerEnded => self.next_check = Instant::now() + LOCK_RELEASE,
                Event::Lost => {
                    polling.next = Instant::now();
                    self.listener = self.store.listen().unwrap_or_default();
                }
                Event::None => {}
            }
        }
    }

    /// Look for work; whether there is some.
    fn poll(&mut self, polling: &mut Polling, now: Instant) -> Result<bool, LibrarianError> {
        let new_work = self.store.new_work(&self.seeker, self.mark)?;
        if let Some(hold) = new_work.hold {
            self.on_hold = true;
            if self.listener.as_mut().is_some_and(Listener::end) {
                // This runner does not run now, so another one must.
                self.store.notify(1);
            }
            let end = hold.until_unix_ms.map(|until_ms| self.instant_of(until_ms));
            polling.next = end.into_iter().fold(now + POLL_INTERVAL, Instant::min);
            return Ok(false);
        }
        if std::mem::take(&mut self.on_hold) {
            // There may be work that came before the mark.
            return Ok(true);
        }
        let seen_before = |first: i64| polling.last_seen.is_some_and(|last| first <= last);
        if let Some(claimable) = new_work.claimable
            && (polling.begin_at_once || seen_before(claimable.first))
        {
            return Ok(true);
        }
        polling.begin_at_once = false;
        polling.last_seen = new_work.claimable.map(|claimable| claimable.last);
        let due = new_work.next_due_ms.map(|due_ms| self.instant_of(due_ms));
        polling.due = match self.seeker.filter.is_empty() {
            true => due,
            // Only the drafts that have moved since the mark were read.
            false => polling.due.into_iter().chain(due).min(),
        };
        polling.next = now + POLL_INTERVAL;
        if self.next_check < now + POLL_INTERVAL / 2 {
            self.next_check = now;
        }
        if new_work.claimable.is_some() {
            return Ok(false);
        }
        self.mark = new_work.last_event;
        if let Some(listener) = &mut self.listener
            && !listener.can_be_woken()
            && listener.begin(&self.store, &self.seeker.filter)
        {
            // Nobody may have been woken for what was submitted since the query.
            polling.begin_at_once = true;
            polling.next = now;
        }
        Ok(false)
    }

    /// The moment at which the store's clock shows this time, if it is not set meanwhile.
    fn instant_of(&self, unix_ms: i64) -> Instant {
        let left = unix_ms.saturating_sub(self.store.clock().now_ms()).max(0);
        let now = Instant::now();
        // A moment beyond the range of the clock is later than any deadline.
        now.checked_add(Duration::from_millis(left.unsigned_abs())).unwrap_or(now + FAR)
    }

    fn wait_for_event(&mut self, until: Instant) -> Event {
        match &mut self.listener {
            Some(listener) => listener.wait(until),
            None => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                Event::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn woken(store: &DraftStore) -> Waiter {
        let mut waiter = Waiter::new(store).unwrap();
        assert!(waiter.listener.as_mut().unwrap().begin(store, &DraftFilter::default()));
        store.notify(1);
        waiter
    }

    #[test]
    fn a_waiter_that_was_woken_and_does_not_run_wakes_another() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        let in_a_minute = Instant::now() + Duration::from_secs(60);
        let mut waiter = woken(&store);
        let mut other = store.listen().unwrap().unwrap();
        assert!(other.begin(&store, &DraftFilter::default()));
        let cancellation = Cancellation::default();
        cancellation.cancel();
        assert_eq!(waiter.wait(in_a_minute, &cancellation).unwrap(), Wake::Cancelled);
        assert_eq!(other.wait(in_a_minute), Event::Woken);
        // A deadline that has passed as well is no reason not to run.
        let mut waiter = woken(&store);
        let ended = waiter.wait(Instant::now(), &Cancellation::default()).unwrap();
        assert_eq!(ended, Wake::Work);
    }
}
