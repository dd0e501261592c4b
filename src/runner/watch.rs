//! Run after run, also when the database is replaced meanwhile.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::cancellation::Cancellation;
use super::options::Runner;
use super::summary::RunReport;
use super::wait::{Waiter, Wake};
use crate::error::LibrarianError;
use crate::processor::DraftProcessor;
use crate::store::DraftStore;

/// The pause of a watch after its first failed iteration.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How often a watch whose database was removed tries to open another.
const REOPEN_INTERVAL: Duration = Duration::from_millis(200);

/// A longer interval could be beyond the range of the clock.
const LONGEST_INTERVAL: Duration = Duration::from_secs(u32::MAX as u64);

/// An event of a watch.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one event per iteration")]
#[non_exhaustive]
pub enum WatchEvent<'a> {
    /// An iteration ended. If an error ended it early, the watch continues.
    Ran {
        /// What the iteration did.
        report: RunReport,
        /// How long it took.
        took: Duration,
    },
    /// Another operation failed. The watch continues.
    Failed(LibrarianError),
    /// The database was removed or replaced. The watch has closed the file that it had open, and
    /// waits until it can open one. It creates none.
    Replaced {
        /// The database.
        path: &'a Path,
    },
    /// After that, the file at the path cannot be opened. The watch continues to try; the same
    /// error is reported once.
    CannotReopen(LibrarianError),
    /// After that, the file at the path was opened.
    Reopened {
        /// The database.
        path: &'a Path,
    },
}

impl Runner {
    /// Run over the pending drafts, and again whenever a draft is submitted or becomes due, until
    /// the cancellation is requested, for at most `iterations` iterations.
    ///
    /// A draft that is deferred repeatedly without a delay waits longer each time: 30 s, then twice
    /// as long each time, up to an hour.
    ///
    /// New drafts begin an iteration at once; otherwise one begins at each `poll_interval`. After a
    /// failed iteration the watch pauses for a second, then two, and so on up to the
    /// `poll_interval`.
    ///
    /// An iteration that meets a [`Hold`](crate::Hold) ends, does not count, and the next one begins
    /// within a second of the end of the hold.
    ///
    /// A waiting watch notices within a second that the database was removed or replaced, and a
    /// working one at the next claim or decision. A decision that could not be stored is lost with
    /// the file. The watch consumes the runner, because another clone of its store would keep the
    /// old file open, and no process can write to the new one before that clone is dropped.
    ///
    /// # Errors
    ///
    /// The error that `on_event` returns, which ends the watch; [`LibrarianError::Busy`] and
    /// [`LibrarianError::Database`] if the watch cannot begin.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn watch<P: DraftProcessor + Send, E: From<LibrarianError>>(
        mut self,
        processors: &mut [P],
        poll_interval: Duration,
        iterations: Option<u64>,
        mut on_event: impl FnMut(WatchEvent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let poll_interval = poll_interval.min(LONGEST_INTERVAL);
        self.backs_off = true;
        // The waiter waits for the end of a hold.
        self.hold_wait = Duration::ZERO;
        let cancellation = self.cancellation.clone();
        let mut waiter = self.waiter()?;
        let mut pause = FIRST_PAUSE;
        let mut iterations_left = iterations.unwrap_or(u64::MAX);
        while iterations_left > 0 {
            if !self.store.is_current() {
                let path = self.store.path().to_owned();
                let open = self.store.opener();
                self.drop_registration();
                drop((waiter, self.store));
                on_event(WatchEvent::Replaced { path: &path })?;
                let Some(store) = open_next(open, &cancellation, &mut on_event)? else {
                    return Ok(());
                };
                self.store = store;
                waiter = self.waiter()?;
                on_event(WatchEvent::Reopened { path: &path })?;
            }
            let started = Instant::now();
            let next = started + poll_interval;
            if let Err(error) = waiter.mark() {
                on_event(WatchEvent::Failed(error))?;
            }
            let report = self.run(processors, SystemTime::now());
            let failed = report.stopped_by.is_some();
            let on_hold = report.summary.hold.is_some();
            on_event(WatchEvent::Ran { report, took: started.elapsed() })?;
            if on_hold {
                waiter.expect_end_of_hold();
            } else {
                iterations_left -= 1;
            }
            if iterations_left == 0 || !self.store.is_current() {
                continue;
            }
            if failed {
                // The pending work would end a wait at once.
                pause = pause.min(poll_interval);
                if cancellation.wait_until(Instant::now() + pause) {
                    return Ok(());
                }
                pause *= 2;
                continue;
            }
            pause = FIRST_PAUSE;
            match waiter.wait(next, &cancellation) {
                Ok(Wake::Cancelled) => return Ok(()),
                Ok(Wake::Work | Wake::Deadline | Wake::Replaced) => {}
                Err(error) => {
                    on_event(WatchEvent::Failed(error))?;
                    if cancellation.wait_until(next) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl Runner {
    /// A waiter for the drafts that this runner claims.
    fn waiter(&self) -> Result<Waiter, LibrarianError> {
        Ok(Waiter::new(&self.store)?.processor(&self.processor).filter(self.filter.clone()))
    }
}

/// Wait for a database that can be opened. `None` if the cancellation is requested first.
fn open_next<E>(
    open: impl Fn() -> Result<DraftStore, LibrarianError>,
    cancellation: &Cancellation,
    on_event: &mut impl FnMut(WatchEvent<'_>) -> Result<(), E>,
) -> Result<Option<DraftStore>, E> {
    let mut last_message = String::new();
    loop {
        match open() {
            Ok(store) => return Ok(Some(store)),
            Err(LibrarianError::NoDatabase { .. }) => last_message.clear(),
            Err(error) => {
                let message = error.to_string();
                if message != last_message {
                    on_event(WatchEvent::CannotReopen(error))?;
                    last_message = message;
                }
            }
        }
        if cancellation.wait_until(Instant::now() + REOPEN_INTERVAL) {
            return Ok(None);
        }
    }
}
