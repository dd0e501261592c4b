//! How long to wait for others' locks, and how often to try.
//!
//! A time-out counts from the last sign that other writers make progress. So a call waits through a
//! long queue of writers, and not for one writer that keeps the lock. Reads, and the opening of a
//! connection, wait in SQLite's busy handler. Writes do not: they wait in the queue of `turn.rs`,
//! and while they try SQLite's lock the handler returns at once.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::error::TransactionError;
use super::facts::{Owner, with_suffix};
use super::runners_directory::RunnersDirectory;
use crate::error::LibrarianError;

/// How long a connection waits for others' locks unless it is configured otherwise.
pub(crate) const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A wait ends after this many time-outs, however much progress the others make.
pub(super) const MAX_TIMEOUTS: u32 = 12;

/// How often a wait checks for progress of other writers.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The database and its WAL, whose metadata shows that another process has committed. Reading the
/// metadata opens nothing: closing a descriptor of the database would drop SQLite's locks.
#[derive(Debug)]
pub(super) struct Files {
    database: PathBuf,
    owner: Owner,
}

type Stamp = (u64, u64, i64, i64);

impl Files {
    /// Of the database at this resolved path.
    pub(super) fn new(database: &Path, owner: Owner) -> Arc<Self> {
        Arc::new(Self { database: database.to_owned(), owner })
    }

    /// The runners directory, created if it is not there.
    pub(super) fn runners_directory(&self) -> Result<RunnersDirectory, LibrarianError> {
        RunnersDirectory::open_or_create(&RunnersDirectory::path_beside(&self.database), self.owner)
    }

    /// Values that change when a process writes.
    fn stamps(&self) -> [Option<Stamp>; 2] {
        [&self.database, &with_suffix(&self.database, "-wal")].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
        })
    }
}

/// One wait for others' locks.
#[derive(Debug, Clone)]
pub(super) struct Wait {
    files: Arc<Files>,
    limit: Duration,
    began: Instant,
    /// Since when no other writer has made progress, as far as this wait has seen.
    idle_since: Instant,
    last_check: Option<(Instant, [Option<Stamp>; 2])>,
    tries: u32,
}

impl Wait {
    /// A wait that has lasted since `began`, for at most `limit` without progress.
    pub(super) fn new(files: &Arc<Files>, limit: Duration, began: Instant) -> Self {
        let files = Arc::clone(files);
        Self { files, limit, began, idle_since: began, last_check: None, tries: 0 }
    }

    /// Whether to give up: no other writer has made progress for as long as the limit, or the wait
    /// has lasted for [`MAX_TIMEOUTS`] times the limit.
    pub(super) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let is_idle = |since: Instant| now.duration_since(since) >= self.limit;
        let checks = match &self.last_check {
            Some((last, _)) => {
                now.duration_since(*last) >= PROGRESS_INTERVAL || is_idle(self.idle_since)
            }
            None => true,
        };
        if checks && !self.limit.is_zero() {
            let stamps = self.files.stamps();
            if self.last_check.is_some_and(|(_, seen)| seen != stamps) {
                self.idle_since = now;
            }
            self.last_check = Some((now, stamps));
        }
        now.duration_since(self.idle_since) >= self.limit
            || now.duration_since(self.began) >= self.limit.saturating_mul(MAX_TIMEOUTS)
    }

    /// How long to sleep at most before the next [`is_over`](Self::is_over).
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.idle_since.elapsed())
    }

    /// Sleep before the next try, longer each time and with jitter, so that many waiting processes
    /// do not fill the processors.
    pub(super) fn back_off(&mut self, longest: Duration) {
        let pause = Duration::from_micros(250 << self.tries.min(12)).min(longest);
        self.tries += 1;
        sleep_about(pause.min(self.left().max(Duration::from_millis(1))));
    }

    /// The error of a wait that has failed.
    pub(super) fn busy(&self) -> TransactionError {
        let millis = self.began.elapsed().max(self.limit).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let waited = match millis {
            1_000.. => Duration::from_secs(millis / 1_000),
            _ => Duration::from_millis(millis),
        };
        LibrarianError::Busy { path: self.files.database.clone(), waited }.into()
    }
}

/// Sleep for this long, give or take a half.
pub(super) fn sleep_about(pause: Duration) {
    let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX).max(2);
    std::thread::sleep(Duration::from_micros(micros / 2 + fastrand::u64(0..micros)));
}

/// Whether another process holds the lock, so that a retry may succeed.
pub(super) fn is_busy(error: &TransactionError) -> bool {
    matches!(
        error,
        TransactionError::Sqlite(error) if matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed)
        )
    )
}

/// The busy handler's behaviour on this thread. SQLite passes it nothing but a count.
#[derive(Debug)]
enum Handler {
    /// Not set: wait for the default time-out.
    Unset,
    /// Do not wait.
    Fail,
    Wait(Wait),
}

thread_local! {
    static HANDLER: RefCell<Handler> = const { RefCell::new(Handler::Unset) };
}

/// The longest pause of the busy handler. At this pause, 200 waiting processes cost a sixth of a
/// core.
const HANDLER_PAUSE: Duration = Duration::from_millis(100);

/// Call `body` with a busy handler that waits as `wait` does.
pub(super) fn waiting<T>(wait: &Wait, body: impl FnOnce() -> T) -> T {
    with_handler(Handler::Wait(wait.clone()), body)
}

/// Call `body` with a busy handler that does not wait.
pub(super) fn failing<T>(body: impl FnOnce() -> T) -> T {
    with_handler(Handler::Fail, body)
}

fn with_handler<T>(handler: Handler, body: impl FnOnce() -> T) -> T {
    struct Restore(Option<Handler>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(before) = self.0.take() {
                HANDLER.replace(before);
            }
        }
    }
    let _restore = Restore(Some(HANDLER.replace(handler)));
    body()
}

/// The busy handler of every connection.
pub(super) fn wait_for_lock(count: i32) -> bool {
    HANDLER.with_borrow_mut(|handler| match handler {
        Handler::Fail => false,
        Handler::Wait(wait) => {
            if wait.is_over() {
                return false;
            }
            if count == 0 {
                wait.tries = 0;
            }
            wait.back_off(HANDLER_PAUSE);
            true
        }
        // The pauses add up to the default time-out, about.
        Handler::Unset => {
            sleep_about(Duration::from_micros(250 << count.clamp(0, 8)));
            count < 85
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn wait(directory: &Path, lasted: Duration) -> Wait {
        let began = Instant::now().checked_sub(lasted).unwrap();
        Wait::new(&Files::new(&directory.join("q.db"), Owner::caller()), LIMIT, began)
    }

    #[test]
    fn a_wait_ends_when_nobody_makes_progress() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!wait(directory.path(), Duration::ZERO).is_over());
        assert!(wait(directory.path(), LIMIT).is_over());
    }

    #[test]
    fn a_write_to_the_database_or_its_wal_is_progress() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["q.db", "q.db-wal"] {
            let mut wait = wait(directory.path(), Duration::ZERO);
            assert!(!wait.is_over());
            std::thread::sleep(LIMIT);
            fs::write(directory.path().join(name), name).unwrap();
            assert!(!wait.is_over(), "{name} was written");
            std::thread::sleep(LIMIT);
            assert!(wait.is_over(), "{name} was not written again");
        }
    }

    #[test]
    fn a_wait_ends_however_much_progress_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut wait = wait(directory.path(), LIMIT * MAX_TIMEOUTS);
        wait.idle_since = Instant::now();
        assert!(wait.is_over());
    }

    /// It says what a person wants to know, and not how many milliseconds the last try took.
    #[test]
    fn a_wait_of_a_second_or_more_is_said_in_whole_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let said = |limit, lasted| {
            let mut wait = wait(directory.path(), lasted);
            wait.limit = limit;
            match wait.busy() {
                TransactionError::Ours(LibrarianError::Busy { waited, .. }) => waited,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(said(LIMIT, Duration::from_millis(1_002)), LIMIT);
        let (short, hour) = (Duration::from_millis(250), Duration::from_secs(3_600));
        assert_eq!(said(short, Duration::ZERO), short);
        assert_eq!(said(hour, Duration::ZERO), hour);
    }

    #[test]
    fn the_busy_handler_waits_as_last_set() {
        let directory = tempfile::tempdir().unwrap();
        assert!(wait_for_lock(0), "it waits if nothing was said");
        waiting(&wait(directory.path(), Duration::ZERO), || {
            assert!(wait_for_lock(0));
            failing(|| assert!(!wait_for_lock(0)));
            assert!(wait_for_lock(1));
        });
        waiting(&wait(directory.path(), LIMIT), || assert!(!wait_for_lock(0)));
        assert!(wait_for_lock(0));
        assert!(!wait_for_lock(85));
    }
}
