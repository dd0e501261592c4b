//! Run after run over what comes in, also when the database is replaced meanwhile.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::wait::{Waiter, Wake};
use super::{Cancellation, RunReport, Runner};
use crate::error::LibrarianError;
use crate::processor::DraftProcessor;
use crate::store::DraftStore;

/// How long a watch waits after an iteration that failed, for the first time in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How often a watch whose database is gone looks for another.
const REOPEN_INTERVAL: Duration = Duration::from_millis(200);

/// A longer interval is as good as none, and could be past the end of the clock.
const LONGEST_INTERVAL: Duration = Duration::from_secs(u32::MAX as u64);

/// What a watch tells of.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchEvent<'a> {
    /// An iteration ended. If something cut it short, the watch goes on all the same.
    Ran {
        /// What it did.
        report: RunReport,
        /// How long it took.
        took: Duration,
    },
    /// Something else failed, and the watch goes on.
    Failed(LibrarianError),
    /// The database was removed, or another was put in its place. The watch has closed the file
    /// that it had open, and waits until there is one that it can open. It makes none.
    Replaced {
        /// The database.
        path: &'a Path,
    },
    /// After that, there is a file that cannot be opened. The watch goes on trying; the same thing
    /// is told once.
    CannotReopen(LibrarianError),
    /// After that, the file that is at the path by now was opened.
    Reopened {
        /// The database.
        path: &'a Path,
    },
}

impl Runner {
    /// Run over what is pending, and again whenever something comes in or becomes due, until the
    /// cancellation is asked for, for at most so many iterations.
    ///
    /// A draft that is deferred again and again without a delay waits longer each time: 30 s, then
    /// twice as long each time, up to an hour.
    ///
    /// What comes in is noticed at once; beyond that, each `poll_interval` is the beginning of a
    /// new iteration. After an iteration that failed it pauses for a second, then two, and so on
    /// up to the `poll_interval`.
    ///
    /// That the database was removed or replaced is noticed within a second while it waits, and at
    /// the next claim or decision otherwise; the decision that could not be stored is lost with the
    /// file. For that the runner is consumed: another clone of its store would keep the old file
    /// open, and nobody can write to the new one before that is dropped.
    ///
    /// # Errors
    ///
    /// What `on_event` returns, which ends the watch; [`LibrarianError::Busy`] and
    /// [`LibrarianError::Database`] if it cannot begin.
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
        let cancellation = self.cancellation.clone();
        let mut waiter = Waiter::new(&self.store)?;
        let mut pause = FIRST_PAUSE;
        let mut iterations_left = iterations.unwrap_or(u64::MAX);
        while iterations_left > 0 {
            if !self.store.is_current() {
                let path = self.store.path().to_owned();
                let open = self.store.opener();
                self.forget_registration();
                drop((waiter, self.store));
                on_event(WatchEvent::Replaced { path: &path })?;
                let Some(store) = open_next(open, &cancellation, &mut on_event)? else {
                    return Ok(());
                };
                self.store = store;
                waiter = Waiter::new(&self.store)?;
                on_event(WatchEvent::Reopened { path: &path })?;
            }
            let begun = Instant::now();
            let next = begun + poll_interval;
            if let Err(error) = waiter.mark() {
                on_event(WatchEvent::Failed(error))?;
            }
            let report = self.run(processors, SystemTime::now());
            let failed = report.stopped_by.is_some();
            waiter.found_work(report.summary.did_something());
            on_event(WatchEvent::Ran { report, took: begun.elapsed() })?;
            iterations_left -= 1;
            if iterations_left == 0 || !self.store.is_current() {
                continue;
            }
            if failed {
                // There is work, or the run would not have failed; it will be noticed at once.
                pause = pause.min(poll_interval);
                if cancellation.wait_until(Instant::now() + pause) {
                    return Ok(());
                }
                pause *= 2;
            } else {
                pause = FIRST_PAUSE;
            }
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

/// Wait for a database that can be opened. `None` if an end was asked for before.
fn open_next<E>(
    open: impl Fn() -> Result<DraftStore, LibrarianError>,
    cancellation: &Cancellation,
    on_event: &mut impl FnMut(WatchEvent<'_>) -> Result<(), E>,
) -> Result<Option<DraftStore>, E> {
    let mut told = String::new();
    loop {
        match open() {
            Ok(store) => return Ok(Some(store)),
            Err(LibrarianError::NoDatabase { .. }) => told.clear(),
            Err(error) => {
                let message = error.to_string();
                if message != told {
                    on_event(WatchEvent::CannotReopen(error))?;
                    told = message;
                }
            }
        }
        if cancellation.wait_until(Instant::now() + REOPEN_INTERVAL) {
            return Ok(None);
        }
    }
}
