//! The connections of a store: the first one, and a pool for other threads.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, Pool, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use scheduled_thread_pool::ScheduledThreadPool;

use super::busy::{self, Files, Wait};
use super::connection::{configure, harden, open_flags};
use super::error::TransactionError;
use super::file::{self, FileIdentity};
use super::in_use::{InUse, Joined};
use crate::error::LibrarianError;

/// How often a thread that waits for a connection of the pool checks whether the first is free.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How long the last use of a file that is gone from its path waits for locks.
const RETIRE_LIMIT: Duration = Duration::from_millis(200);

/// The connections to one file.
#[derive(Debug)]
pub(super) struct Connections {
    /// The connection that opened the database. Most processes need no other, and the pool, which
    /// starts a thread to open one, would be a tenth of the time of a short command.
    first: Mutex<Connection>,
    others: OnceLock<Pool<Connector>>,
    limit: u32,
    last_connect_error: LastError,
    files: Arc<Files>,
    busy_timeout: Duration,
    /// Dropped after the connections.
    place: Arc<Place>,
}

/// A file and its path.
#[derive(Debug)]
pub(super) struct Place {
    /// As it was given.
    named: PathBuf,
    /// All links followed.
    path: PathBuf,
    identity: FileIdentity,
    /// Shows other processes that the file is open here.
    _in_use: InUse,
}

impl Place {
    pub(super) fn new(named: &Path, joined: Joined) -> Self {
        let Joined { path, identity, in_use, .. } = joined;
        Self { named: named.to_owned(), path, identity, _in_use: in_use }
    }

    /// Whether the file is still there.
    fn is_current(&self) -> bool {
        file::is_at(&self.named, self.identity)
    }
}

/// A connection that one thread uses.
pub(super) enum Lease<'d> {
    First(MutexGuard<'d, Connection>),
    Pooled(PooledConnection<Connector>),
}

impl Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(pooled) => &pooled.connection,
        }
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(pooled) => &mut pooled.connection,
        }
    }
}

impl Connections {
    /// At most `limit` connections, and never fewer than two, of which `first` is one.
    pub(super) fn new(
        first: Connection,
        place: Place,
        limit: u32,
        busy_timeout: Duration,
        files: &Arc<Files>,
    ) -> Self {
        Self {
            first: Mutex::new(first),
            others: OnceLock::new(),
            limit,
            last_connect_error: LastError::default(),
            files: Arc::clone(files),
            busy_timeout,
            place: Arc::new(place),
        }
    }

    /// Fail if the file at the path was removed or replaced.
    pub(super) fn check_current(&self) -> Result<(), TransactionError> {
        if self.place.is_current() {
            return Ok(());
        }
        let path = self.place.path.clone();
        Err(TransactionError::Ours(LibrarianError::FileReplaced { path }))
    }

    /// Wait for a free connection.
    pub(super) fn lease(&self, wait: &mut Wait) -> Result<Lease<'_>, TransactionError> {
        loop {
            match self.first.try_lock() {
                Ok(connection) => return Ok(Lease::First(connection)),
                // A panic in the middle of a transaction has rolled it back.
                Err(TryLockError::Poisoned(poisoned)) => {
                    return Ok(Lease::First(poisoned.into_inner()));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            // A new connection would be to the file that is there now.
            self.check_current()?;
            // Not for the whole time at once: the first connection may be free before one of the
            // pool's.
            let pool = self.others.get_or_init(|| self.pool());
            if let Ok(connection) = pool.get_timeout(FIRST_CHECK_INTERVAL) {
                return Ok(Lease::Pooled(connection));
            }
            if wait.is_over() {
                break;
            }
        }
        let error = self.last_connect_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(match error {
            Some(error) => TransactionError::Sqlite(error),
            // All connections were in use for the whole wait.
            None => wait.busy(),
        })
    }

    /// The pool of the other connections, which opens them as they are needed.
    fn pool(&self) -> Pool<Connector> {
        let connector = Connector {
            place: Arc::clone(&self.place),
            files: Arc::clone(&self.files),
            busy_timeout: self.busy_timeout,
            manager: SqliteConnectionManager::file(&self.place.path).with_flags(open_flags()),
            last_error: Arc::clone(&self.last_connect_error),
        };
        Pool::builder()
            .max_size(self.limit.saturating_sub(1).max(1))
            .min_idle(Some(0))
            // Connections live as long as the store. A timer that replaces them would wake an idle
            // process.
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            // One thread is enough to open connections.
            .thread_pool(Arc::new(ScheduledThreadPool::builder().num_threads(1).build()))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(connector)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let first = self.first.get_mut().unwrap_or_else(PoisonError::into_inner);
        // This is the slowest part of closing. The time after the next check must be short, because
        // SQLite keeps the -wal of a file that is moved in between.
        first.flush_prepared_statement_cache();
        if !self.place.is_current() {
            retire(first, &self.files);
        }
    }
}

/// For the last connection to a file that is no longer at its path: checkpoint its -wal into the
/// file, which may have been moved, and leave the -wal empty, because its name is now that of the
/// next file's -wal.
pub(super) fn retire(connection: &Connection, files: &Arc<Files>) {
    let wait = Wait::new(files, RETIRE_LIMIT, Instant::now());
    // When it closes, SQLite compares the inode before it removes a -wal by name. This also covers
    // a file on another device.
    let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    // If this fails, another process has the file open, and does the same when it closes.
    let _ = busy::waiting(&wait, || {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    });
}

/// A connection of the pool.
#[derive(Debug)]
pub(super) struct Pooled {
    connection: Connection,
    /// Dropped after the connection.
    _place: Arc<Place>,
}

type LastError = Arc<Mutex<Option<rusqlite::Error>>>;

/// Opens connections as the pool asks for them.
#[derive(Debug)]
pub(super) struct Connector {
    place: Arc<Place>,
    files: Arc<Files>,
    busy_timeout: Duration,
    manager: SqliteConnectionManager,
    /// r2d2 reports a time-out in place of a connection's error; this keeps the error.
    last_error: LastError,
}

impl ManageConnection for Connector {
    type Connection = Pooled;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Pooled, rusqlite::Error> {
        // This runs on a thread of the pool, where no busy handler is set.
        let wait = Wait::new(&self.files, self.busy_timeout, Instant::now());
        let ready = busy::waiting(&wait, || {
            let connection = self.manager.connect()?;
            harden(&connection)?;
            match configure(&connection, &self.place.path, self.busy_timeout) {
                // SQLite may have opened another file that was at the path.
                Ok(()) if !self.place.is_current() => {
                    Err(rusqlite::Error::InvalidPath(self.place.path.clone()))
                }
                Ok(()) => Ok(Pooled { connection, _place: Arc::clone(&self.place) }),
                Err(TransactionError::Sqlite(error)) => Err(error),
                // The first connection of this process passed the same checks.
                Err(TransactionError::Ours(_)) => Err(rusqlite::Error::InvalidQuery),
            }
        });
        // A success clears the last error.
        let failure = ready.as_ref().err().map(|error| match error {
            rusqlite::Error::SqliteFailure(code, text) => {
                rusqlite::Error::SqliteFailure(*code, text.clone())
            }
            _ => rusqlite::Error::InvalidQuery,
        });
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        ready
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), rusqlite::Error> {
        self.manager.is_valid(&mut pooled.connection)
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        self.manager.has_broken(&mut pooled.connection)
    }
}

#[cfg(test)]
mod tests {
    use super::super::in_use;
    use super::*;

    #[test]
    fn a_waiting_thread_gets_whichever_connection_is_free_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let limit = Duration::from_secs(20);
        let joined = in_use::join(&path, true, limit).unwrap();
        let first = Connection::open(&joined.path).unwrap();
        let files = Files::new(&joined.path, joined.owner);
        let place = Place::new(&path, joined);
        let connections = Connections::new(first, place, 2, limit, &files);
        let mut wait = Wait::new(&files, limit, Instant::now());
        let mut waiting_thread = wait.clone();
        let first = connections.lease(&mut wait).unwrap();
        let pooled = connections.lease(&mut wait).unwrap();
        assert!(matches!((&first, &pooled), (Lease::First(_), Lease::Pooled(_))));
        std::thread::scope(|scope| {
            let (begun, waits) = std::sync::mpsc::channel();
            let connections = &connections;
            let waiting = scope.spawn(move || {
                begun.send(()).unwrap();
                matches!(connections.lease(&mut waiting_thread), Ok(Lease::First(_)))
            });
            waits.recv().unwrap();
            // The pool's connection stays leased for the whole wait.
            drop(first);
            assert!(waiting.join().unwrap());
        });
        drop(pooled);
    }

    /// No more are opened than were asked for.
    #[test]
    fn a_thread_that_finds_all_connections_in_use_fails_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let joined = in_use::join(&path, true, Duration::from_secs(20)).unwrap();
        let first = Connection::open(&joined.path).unwrap();
        let files = Files::new(&joined.path, joined.owner);
        let place = Place::new(&path, joined);
        let connections = Connections::new(first, place, 2, Duration::from_secs(20), &files);
        let mut wait = Wait::new(&files, Duration::from_secs(20), Instant::now());
        let _first = connections.lease(&mut wait).unwrap();
        let _pooled = connections.lease(&mut wait).unwrap();
        let mut short = Wait::new(&files, Duration::from_millis(100), Instant::now());
        let third = connections.lease(&mut short);
        assert!(matches!(third, Err(TransactionError::Ours(LibrarianError::Busy { .. }))));
    }

    #[test]
    fn a_connection_of_the_pool_waits_for_as_long_as_the_store_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let busy_timeout = Duration::from_millis(200);
        let joined = in_use::join(&path, true, busy_timeout).unwrap();
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let connector = Connector {
            files: Files::new(&joined.path, joined.owner),
            place: Arc::new(Place::new(&path, joined)),
            busy_timeout,
            manager: SqliteConnectionManager::file(&path).with_flags(open_flags()),
            last_error: LastError::default(),
        };
        let begun = Instant::now();
        // As r2d2 does, connect on another thread.
        let failed = std::thread::scope(|scope| {
            scope.spawn(|| connector.connect().is_err()).join().unwrap()
        });
        assert!(failed);
        let waited = begun.elapsed();
        assert!((busy_timeout..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    }
}
