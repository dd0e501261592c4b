//! Waiting for work.
//!
//! Four things wake a waiting runner. The **wakeup file**: a process that submits or requeues
//! writes to it after the commit, and inotify reports that within some ten microseconds. The **end
//! of a runner**: the kernel closes its lock file, which inotify reports as well. A **due time**,
//! which is known beforehand. And **polling**, for writers that do not notify, such as a SQL shell:
//! a cheap query for the end of the history, three times a second.

use std::io;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cancellation::Cancellation;
use crate::error::LibrarianError;
use crate::store::DraftStore;
use crate::store::wakeup::WAKEUP_FILE;

/// How often to poll for new work of writers that do not notify, for a cancellation, and for
/// another file at the database's path.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// How often to test whether the other runners are alive.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(900);

/// The longest delay between a notification and the query for new work, if other runners took the
/// work each time before.
const LONGEST_DELAY: Duration = Duration::from_millis(100);

/// The kernel reports that a lock file was closed a moment before it frees the lock.
const LOCK_RELEASE: Duration = Duration::from_millis(2);

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
/// It listens from its creation, so that a draft that is submitted during a run ends the wait after
/// it: create it before the first run, and call [`mark`](Self::mark) before each run.
#[derive(Debug)]
pub struct Waiter {
    store: DraftStore,
    inotify: Option<Inotify>,
    mark: i64,
    next_liveness: Instant,
    /// How many times in a row others have taken the work that this runner was notified of.
    misses: u32,
    /// Whether the last wait ended because of a notification.
    notified: bool,
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
        let inotify = store.listen()?;
        let next_liveness = Instant::now();
        let store = store.clone();
        let mut waiter =
            Self { store, inotify, mark: 0, next_liveness, misses: 0, notified: false };
        waiter.mark()?;
        Ok(waiter)
    }

    /// Ignore everything that happened up to now. Call it before each run.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn mark(&mut self) -> Result<(), LibrarianError> {
        if self.inotify.is_none() {
            self.inotify = self.store.listen()?;
        }
        // No event is newer than the largest number.
        self.mark = self.store.new_work(i64::MAX)?.last_event;
        Ok(())
    }

    /// Report whether the run after a wait found work. If many runners wait, each draft notifies
    /// all of them and one gets it. Those that found none react a little later the next time, each
    /// with its own jitter, so that one query answers several notifications.
    pub fn found_work(&mut self, found: bool) {
        if found {
            self.misses = 0;
        } else if self.notified {
            self.misses = self.misses.saturating_add(1);
        }
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
        let mut next_poll = Instant::now();
        let mut due = None;
        self.notified = false;
        loop {
            let now = Instant::now();
            if cancellation.is_cancelled() {
                return Ok(Wake::Cancelled);
            }
            if now >= deadline {
                return Ok(Wake::Deadline);
            }
            if due.is_some_and(|due| now >= due) {
                return Ok(Wake::Work);
            }
            if now >= next_poll {
                next_poll = now + POLL_INTERVAL;
                if !self.store.is_current() {
                    return Ok(Wake::Replaced);
                }
                self.store.check_file()?;
                let new_work = self.store.new_work(self.mark)?;
                if new_work.work {
                    return Ok(Wake::Work);
                }
                self.found_work(false);
                self.notified = false;
                self.mark = new_work.last_event;
                due = new_work.next_due_ms.map(|due_ms| {
                    let left = due_ms.saturating_sub(self.store.clock().now_ms()).max(0);
                    now + Duration::from_millis(left.unsigned_abs()).min(deadline - now)
                });
            }
            if now >= self.next_liveness {
                self.next_liveness = now + LIVENESS_INTERVAL;
                if self.store.has_dead_runner()? {
                    return Ok(Wake::Work);
                }
            }
            let until = [Some(deadline), due, Some(next_poll), Some(self.next_liveness)];
            let until = until.into_iter().flatten().min().unwrap_or(deadline);
            match self.wait_for_event(until) {
                Event::Notified => {
                    self.delay_after_misses();
                    next_poll = Instant::now();
                    self.notified = true;
                }
                Event::RunnerEnded => self.next_liveness = Instant::now() + LOCK_RELEASE,
                Event::None => {}
            }
        }
    }

    fn delay_after_misses(&self) {
        // The first misses may be due to work of this runner's own run.
        if let Some(doublings) = self.misses.checked_sub(3) {
            let longest = Duration::from_micros(500 << doublings.min(12)).min(LONGEST_DELAY);
            std::thread::sleep(longest.mul_f32(fastrand::f32()));
        }
    }

    /// Wait until `until`, or until inotify reports an event.
    fn wait_for_event(&mut self, until: Instant) -> Event {
        let left = until.saturating_duration_since(Instant::now());
        let Some(inotify) = &mut self.inotify else {
            std::thread::sleep(left);
            return Event::None;
        };
        // An interruption ends the wait early; the caller's loop continues.
        let timeout = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&*inotify, PollFlags::IN)], timeout.as_ref());
        let mut event_seen = Event::None;
        let mut buffer = [0; 4096];
        loop {
            let events = match inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return event_seen,
                Err(_) => {
                    self.inotify = None;
                    return Event::Notified;
                }
            };
            for event in events {
                if event.mask.contains(EventMask::IGNORED) {
                    // The directory was deleted. Listen to the new one, and query for work.
                    self.inotify = self.store.listen().unwrap_or_default();
                    return Event::Notified;
                }
                let wakeup = event.name.is_none_or(|name| name == WAKEUP_FILE);
                event_seen =
                    if wakeup { Event::Notified } else { event_seen.or(Event::RunnerEnded) };
            }
        }
    }
}

/// The event that inotify reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    None,
    /// A runner's lock file was closed.
    RunnerEnded,
    /// A process wrote to the wakeup file.
    Notified,
}

impl Event {
    fn or(self, other: Self) -> Self {
        if self == Self::None { other } else { self }
    }
}
