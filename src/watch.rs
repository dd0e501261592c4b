//! Waiting for work without asking all the time.
//!
//! Four things wake a waiting runner. A **bell**: who submits or requeues writes to a small file
//! after the commit, and inotify tells within some ten microseconds. The **end of a runner**: the
//! kernel closes its lock file, which inotify tells as well. A **due time**, which is known
//! beforehand. And a **net** for writers that do not ring, such as a SQL shell: a cheap look at
//! the end of the history, three times a second.

use std::io;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::database::make_private_directory;
use crate::error::LibrarianError;
use crate::runner::Cancellation;
use crate::store::DraftStore;
use crate::store::news::BELL;

/// How often to look for those who did not ring, and at whether somebody wants an end.
const NET_INTERVAL: Duration = Duration::from_millis(300);

/// How often to ask whether the other runners live.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(900);

/// The kernel tells that a lock file was closed a moment before it frees the lock.
const LOCK_RELEASE: Duration = Duration::from_millis(2);

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There may be something to do.
    Work,
    /// The deadline came.
    Deadline,
    /// An end was asked for.
    Cancelled,
}

/// Waits for work on one store.
///
/// It listens from the moment it is made, so that what comes in during a run ends the wait after
/// it: make it before the first run, and call [`mark`](Self::mark) before each.
#[derive(Debug)]
pub struct Waiter {
    store: DraftStore,
    ears: Option<Inotify>,
    mark: i64,
    next_liveness: Instant,
}

impl Waiter {
    /// Begin to listen. Where inotify is not to be had (its limits are per user), the net alone
    /// catches what comes in.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn new(store: &DraftStore) -> Result<Self, LibrarianError> {
        let ears = listen(store).ok();
        let mut waiter =
            Self { store: store.clone(), ears, mark: 0, next_liveness: Instant::now() };
        waiter.mark()?;
        Ok(waiter)
    }

    /// What happened up to now is known; to be called before each run.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn mark(&mut self) -> Result<(), LibrarianError> {
        if self.ears.is_none() {
            self.ears = listen(&self.store).ok();
        }
        // Nothing is newer than the end of time.
        self.mark = self.store.outlook(i64::MAX)?.mark;
        Ok(())
    }

    /// Wait until there may be work, until the deadline, or until an end is asked for.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn wait(
        &mut self,
        deadline: Instant,
        cancellation: &Cancellation,
    ) -> Result<Wake, LibrarianError> {
        let mut next_look = Instant::now();
        let mut due = None;
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
                next_look = now + NET_INTERVAL;
                let outlook = self.store.outlook(self.mark)?;
                if outlook.work {
                    return Ok(Wake::Work);
                }
                self.mark = outlook.mark;
                due = outlook.next_due_ms.map(|due_ms| {
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
            match self.hear(until) {
                Heard::Bell => return Ok(Wake::Work),
                Heard::End => self.next_liveness = Instant::now() + LOCK_RELEASE,
                Heard::Nothing => {}
            }
        }
    }

    /// Listen until then, or until something is heard.
    fn hear(&mut self, until: Instant) -> Heard {
        let left = until.saturating_duration_since(Instant::now());
        let Some(ears) = &mut self.ears else {
            std::thread::sleep(left);
            return Heard::Nothing;
        };
        // An interruption or an odd timeout ends the wait early: the loop looks round and goes on.
        let timeout = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&*ears, PollFlags::IN)], timeout.as_ref());
        let mut heard = Heard::Nothing;
        let mut buffer = [0; 4096];
        loop {
            let events = match ears.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(_) => {
                    self.ears = None;
                    return Heard::Bell;
                }
            };
            for event in events {
                if event.mask.contains(EventMask::IGNORED) {
                    // The directory was deleted. Listen to the new one, and look.
                    self.ears = listen(&self.store).ok();
                    return Heard::Bell;
                }
                let bell = event.name.is_none_or(|name| name == BELL);
                heard = if bell { Heard::Bell } else { heard.or(Heard::End) };
            }
        }
    }
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// A runner's lock file was closed.
    End,
    Bell,
}

impl Heard {
    fn or(self, other: Self) -> Self {
        if self == Self::Nothing { other } else { self }
    }
}

/// Make the bell, if there is none, and listen to it and to the lock files beside it.
fn listen(store: &DraftStore) -> io::Result<Inotify> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let directory = store.runners_directory();
    make_private_directory(directory)?;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(directory.join(BELL))?;
    let inotify = Inotify::init()?;
    // Each ring opens, writes and closes, and so does the end of a runner that held a lock.
    inotify.watches().add(directory, WatchMask::CLOSE_WRITE)?;
    Ok(inotify)
}
