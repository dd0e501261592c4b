//! Waiting for work without asking all the time.
//!
//! Four things wake a waiting runner. The **wakeup file**: whoever submits or requeues writes to it
//! after the commit, and inotify reports that within some ten microseconds. The **end of a
//! runner**: the kernel closes its lock file, which inotify reports as well. A **due time**, which
//! is known beforehand. And **polling**, for writers that do not notify, such as a SQL shell: a
//! cheap query for the end of the history, three times a second.

use std::io;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Cancellation;
use crate::error::LibrarianError;
use crate::store::DraftStore;
use crate::store::wakeup::WAKEUP_FILE;

/// How often to poll for new work of writers that do not notify, for a cancellation, and for
/// another file at the database's path.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// How often to ask whether the other runners live.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(900);

/// The longest delay before a waiting runner looks for work that it was notified of, if others
/// have taken the work every time before.
const LONGEST_DELAY: Duration = Duration::from_millis(100);

/// The kernel tells that a lock file was closed a moment before it frees the lock.
const LOCK_RELEASE: Duration = Duration::from_millis(2);

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wake {
    /// There may be something to do.
    Work,
    /// The deadline came.
    Deadline,
    /// An end was asked for.
    Cancelled,
    /// The store's file is not at its path any more.
    Replaced,
}

/// Waits for work on one store.
///
/// It listens from the moment it is made, so that what comes in during a run ends the wait after
/// it: make it before the first run, and call [`mark`](Self::mark) before each.
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
    /// Begin to listen. Where inotify is not to be had (its limits are per user), the net alone
    /// catches what comes in.
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

    /// What happened up to now is known; to be called before each run.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn mark(&mut self) -> Result<(), LibrarianError> {
        if self.inotify.is_none() {
            self.inotify = self.store.listen()?;
        }
        // Nothing is newer than the end of time.
        self.mark = self.store.new_work(i64::MAX)?.last_event;
        Ok(())
    }

    /// Say whether the run after a wait found work. Where many runners wait, all are notified of
    /// each draft and one gets it; those that did not get the last ones look a little later than
    /// those that did, at another moment each, and one look answers several notifications.
    pub fn found_work(&mut self, found: bool) {
        if found {
            self.misses = 0;
        } else if self.notified {
            self.misses = self.misses.saturating_add(1);
        }
    }

    /// Wait until there may be work, until the deadline, or until an end is asked for.
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
        let mut next_look = Instant::now();
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
            if now >= next_look {
                next_look = now + POLL_INTERVAL;
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
            let until = [Some(deadline), due, Some(next_look), Some(self.next_liveness)];
            let until = until.into_iter().flatten().min().unwrap_or(deadline);
            match self.wait_for_event(until) {
                Event::Notified => {
                    self.let_others_go_first();
                    next_look = Instant::now();
                    self.notified = true;
                }
                Event::RunnerEnded => self.next_liveness = Instant::now() + LOCK_RELEASE,
                Event::None => {}
            }
        }
    }

    fn let_others_go_first(&self) {
        // The first misses may be of work that came in during this runner's own run.
        if let Some(doublings) = self.misses.checked_sub(3) {
            let longest = Duration::from_micros(500 << doublings.min(12)).min(LONGEST_DELAY);
            std::thread::sleep(longest.mul_f32(fastrand::f32()));
        }
    }

    /// Wait until then, or until inotify reports something.
    fn wait_for_event(&mut self, until: Instant) -> Event {
        let left = until.saturating_duration_since(Instant::now());
        let Some(inotify) = &mut self.inotify else {
            std::thread::sleep(left);
            return Event::None;
        };
        // An interruption or an odd timeout ends the wait early: the loop looks round and goes on.
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
                    // The directory was deleted. Listen to the new one, and look.
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

/// What inotify reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    None,
    /// A runner's lock file was closed.
    RunnerEnded,
    /// Somebody wrote to the wakeup file.
    Notified,
}

impl Event {
    fn or(self, other: Self) -> Self {
        if self == Self::None { other } else { self }
    }
}
